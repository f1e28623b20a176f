"""Calls of the link whose answer is awaited, and answers that are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import anyio

from everturn import errors
from everturn.protocol import link as frames


class OpenCall:
    """A call whose answer is awaited. `answered` may be shared with another thing waited for."""

    __slots__ = ("answered", "frame", "result")

    def __init__(self, frame: frames.Call, answered: anyio.Event) -> None:
        self.frame = frame
        self.answered = answered
        self.result: frames.Result | errors.EverturnError | None = None

    def answer(self, result: frames.Result | errors.EverturnError) -> None:
        """Its answer, or why there will be none."""
        self.result = result
        self.answered.set()

    def value(self) -> Any:
        """The answer. Raises what the server answered, or why no answer will come."""
        if isinstance(self.result, errors.EverturnError):
            raise self.result
        assert self.result is not None
        if self.result.error is not None:
            raise error_of(self.result.error)
        return self.result.value


def _by_code() -> dict[str, type[errors.EverturnError]]:
    """Error classes that can be rebuilt from `(message, **details)`, by their code."""
    found: dict[str, type[errors.EverturnError]] = {}
    for value in vars(errors).values():
        if (
            isinstance(value, type)
            and issubclass(value, errors.EverturnError)
            and (value.__init__ is errors.EverturnError.__init__ or value is errors.Unavailable)
        ):
            found[value.code] = value
    return found


_ERRORS: Final = _by_code()


def error_of(error: Mapping[str, Any]) -> errors.EverturnError:
    """The exception of a Result's `{code, message, details}`."""
    code = str(error.get("code", "error"))
    message = str(error.get("message", "")) or code
    details = error.get("details")
    if code == errors.CursorTrimmed.code and isinstance(details, Mapping):
        first = details.get("first_seq_num")
        return errors.CursorTrimmed(first if isinstance(first, int) else 0)
    return _ERRORS.get(code, errors.EverturnError)(message)
