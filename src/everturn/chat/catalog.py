"""Things an app declares once, by id, at module level: locals, prompts, skills.

Two places that claim the same id would share what they each think is their own, so the second one
fails when it is imported, with both places in the message. The same line again is the same module
imported under another name, or a test that declares in its body: that replaces the first.
"""

from __future__ import annotations

from typing import Final

from everturn.errors import ConfigurationError
from everturn.rules import limits
from everturn.tasks.registry import author_place


class Catalog:
    """The ids of one kind of thing, and where each was declared. Grows with the app's code only."""

    def __init__(self, kind: str) -> None:
        self._kind: Final = kind
        self._places: dict[str, str] = {}

    def declare(self, id: str) -> str:
        """Claim an id for the author's line that is being run; returns `file:line`.

        Raises ConfigurationError for a malformed id, or one that another line claims.
        """
        if not id or len(id) > limits.TASK_ID_CHARS_MAX:
            raise ConfigurationError(
                f"a {self._kind} id has 1 to {limits.TASK_ID_CHARS_MAX} characters, not {len(id)}"
            )
        place = author_place()
        earlier = self._places.setdefault(id, place)
        if earlier != place:
            raise ConfigurationError(f"{self._kind} {id!r} is declared twice: {earlier}, {place}")
        return place
