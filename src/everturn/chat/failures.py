"""Telling failures of an author's code from the end of the attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from everturn.errors import Fenced, LeaseLost
from everturn.tasks.signals import Stopped

log = logging.getLogger("everturn.chat")


def ends_attempt(error: BaseException) -> bool:
    """Whether an exception is no failure of the turn but the end of this attempt."""
    if isinstance(error, Fenced | LeaseLost | MemoryError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(ends_attempt(inner) for inner in error.exceptions)
    return not isinstance(error, Exception)


def means_stopped(error: BaseException) -> bool:
    """Whether an exception only says that what it comes from was stopped.

    Ours, or that of the model library for a run that a cancellation token ended; told by name, so
    that nobody pays its import to ask.
    """
    kind = type(error)
    library = kind.__module__.partition(".")[0] == "pydantic_ai"
    return isinstance(error, Stopped) or (library and kind.__name__ == "RunCancelled")


def say_where(error: BaseException, where: str) -> None:
    """Note on an exception of an author's code what called it: tracebacks and logs show it.

    Once only: some code raises the same exception object again and again.
    """
    if where not in getattr(error, "__notes__", ()):
        error.add_note(where)


async def logged(call: Callable[[], Any], name: str) -> None:
    """Await a hook, or other author's code, whose failure changes nothing (D-13)."""
    try:
        await call()
    except Exception as error:  # author code
        if ends_attempt(error):
            raise
        log.exception("hook.failed: %s", name)
