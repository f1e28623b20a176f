"""Seams to the rooms above: they set what the client must not import.

`in_run` lets `sessions.open` find out that it was called inside a run of that very session. The
run's own handle writes under the run's fence, reads the run's own cursor and may suspend; a handle
over HTTP could do none of that, and would deadlock a run that waits for itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

#: Answers the in-run handle of a session, by either of its ids, or None if it is another session.
InRun = Callable[[str], Any]

in_run: ContextVar[InRun | None] = ContextVar("everturn.session_in_run", default=None)


@contextmanager
def bound(find: InRun) -> Iterator[None]:
    """Answer `sessions.open` from `find` inside the block and in tasks started by it."""
    token = in_run.set(find)
    try:
        yield
    finally:
        in_run.reset(token)


def enter(find: InRun) -> None:
    """`bound` for the rest of the task this is called in, for tasks that end with their work."""
    in_run.set(find)


def handle_in_run(session: str) -> Any:
    """The in-run handle for a session, None outside of its runs."""
    find = in_run.get()
    return None if find is None else find(session)


class MessageReducer(Protocol):
    """Builds a UI message from its chunks (chat-agent §4.2.4)."""

    def snapshot(self) -> dict[str, Any]:
        """A copy of the message so far."""
        ...

    def feed(self, chunk: Mapping[str, Any]) -> bool:
        """Take one chunk. True when the message changed. Raises UIMessageStreamError."""
        ...


#: Where the reducer lives: with the code of agents, which build the same messages. It is named
#: here and imported on first use, so that a client that never asks for messages never loads it.
REDUCER = "everturn.chat.reducer:MessageReducer"


def message_reducer(seed: Mapping[str, Any] | None = None) -> MessageReducer:
    """A fresh reducer for one answer, which continues the message `seed` if it is given."""
    module, _, name = REDUCER.partition(":")
    return cast(MessageReducer, getattr(importlib.import_module(module), name)(seed))
