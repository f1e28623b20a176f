"""In-run calls from `def` tasks: the same names, blocking.

A sync task runs in a process of its own, without a loop. There `wait.for_(minutes=5)` blocks and
returns, where an async task would await it: the call is carried out on a loop that exists for
nothing else, and whose runtime reaches the worker over a socket. Everywhere else these functions
are the coroutine functions they look like.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_runner: asyncio.Runner | None = None


def install(runner: asyncio.Runner) -> None:
    """This process runs one sync task: in-run calls block from now on."""
    global _runner
    _runner = runner


def blocking() -> bool:
    """True in the code of a sync task; False on any loop, an async step of such a task included."""
    if _runner is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def run(call: Coroutine[Any, Any, T]) -> T:
    """Carry out an in-run call to its end."""
    assert _runner is not None
    return _runner.run(call, context=contextvars.copy_context())


def either(fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a coroutine function block, and return its result, where `blocking()`."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        made = fn(*args, **kwargs)
        if not blocking():
            return made
        # The type is that of async code; sync code gets T itself (see the page above).
        result: Any = run(made)
        return result  # type: ignore[no-any-return]

    return call
