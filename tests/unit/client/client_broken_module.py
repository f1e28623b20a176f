"""A module whose own import fails, for a test."""

import nowhere_to_be_found  # type: ignore[import-not-found]  # on purpose

__all__ = ["nowhere_to_be_found"]
