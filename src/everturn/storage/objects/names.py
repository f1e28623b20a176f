"""What an object may be called."""

from __future__ import annotations

NAME_CHARS_MAX = 1024


def checked_name(name: str) -> str:
    """The name itself. Raises ValueError for one that could leave its store or mean two things.

    Names are made by us, so a bad one is a mistake in our code and not a client's request.
    """
    parts = name.split("/")
    if len(name) > NAME_CHARS_MAX or "\0" in name or any(part[:1] in ("", ".") for part in parts):
        raise ValueError(f"not an object name: {name[:80]!r}")
    return name
