"""Waits that may end without what was waited for: values, not exceptions (chat-agent §6.4).

The same two classes inside a run (`tasks/channels.py`) and outside of it (`client/channels.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar

from everturn.errors import WaitTimeoutError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """A wait that ended with a value. `seq_num` is the number of the record it came in."""

    output: T
    seq_num: int = -1
    ok: Literal[True] = True
    error: None = None

    def unwrap(self) -> T:
        """The value it ended with."""
        return self.output


@dataclass(frozen=True, slots=True)
class Err:
    """A wait whose time was up."""

    error: WaitTimeoutError
    ok: Literal[False] = False
    output: Any = None

    def unwrap(self) -> NoReturn:
        """Raises the error the wait ended with."""
        raise self.error
