"""Hooks: what runs around a task's function, and how functions get their arguments.

A hook is sync or async and receives the arguments it declares, by name (tasks-and-runs §3.4). For
one moment the hooks of the whole app run first, in the order they were registered, then the
task's own; `catch_error` is the exception, where the task's come first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from everturn.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])

MOMENTS: Final = (
    "on_start",
    "on_start_attempt",
    "on_success",
    "on_failure",
    "on_complete",
    "on_wait",
    "on_resume",
    "on_cancel",
    "catch_error",
    "init",
    "cleanup",
    "middleware",
)


class HookSet:
    """Hooks by moment. Each method is a decorator that returns the function it was given."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[Callable[..., Any]]] = {}

    def of(self, moment: str) -> list[Callable[..., Any]]:
        return self._hooks.get(moment, [])

    def add(self, moment: str, fn: F) -> F:
        if not callable(fn):
            raise ConfigurationError(f"{moment} takes a function")
        self._hooks.setdefault(moment, []).append(fn)
        return fn

    def include(self, others: HookSet) -> None:
        """Add the hooks of another set after those there are."""
        for moment, hooks in others._hooks.items():
            self._hooks.setdefault(moment, []).extend(hooks)

    def on_start(self, fn: F) -> F:
        """Before the first attempt's function."""
        return self.add("on_start", fn)

    def on_start_attempt(self, fn: F) -> F:
        """Before every attempt's function."""
        return self.add("on_start_attempt", fn)

    def on_success(self, fn: F) -> F:
        """After a success: also gets `output`. An exception in it is logged only."""
        return self.add("on_success", fn)

    def on_failure(self, fn: F) -> F:
        """After the last attempt failed: also gets `error`. An exception in it is logged only."""
        return self.add("on_failure", fn)

    def on_complete(self, fn: F) -> F:
        """After success or final failure: also gets `result`."""
        return self.add("on_complete", fn)

    def on_wait(self, fn: F) -> F:
        """Before the run suspends: also gets `wait`."""
        return self.add("on_wait", fn)

    def on_resume(self, fn: F) -> F:
        """After the run went on: also gets `wait`."""
        return self.add("on_resume", fn)

    def on_cancel(self, fn: F) -> F:
        """When the run is cancelled while it executes; has 30 s."""
        return self.add("on_cancel", fn)

    def catch_error(self, fn: F) -> F:
        """After a failure: gets `error`, may return a CatchErrorResult."""
        return self.add("catch_error", fn)

    def init(self, fn: F) -> F:
        """Before the function: what it returns (a dict) is passed on as `init`."""
        return self.add("init", fn)

    def cleanup(self, fn: F) -> F:
        """At the end of every attempt that was not stopped from outside."""
        return self.add("cleanup", fn)

    def middleware(self, fn: F) -> F:
        """Around everything else: gets `next`, and has to await it once."""
        return self.add("middleware", fn)


#: Hooks of the whole app: `from everturn import tasks`, then `@tasks.on_failure`.
hooks: Final = HookSet()


def hooks_of(own: HookSet, moment: str) -> list[Callable[..., Any]]:
    """The hooks of a moment in the order they run."""
    if moment == "catch_error":
        return [*own.of(moment), *hooks.of(moment)]
    return [*hooks.of(moment), *own.of(moment)]


async def call(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a sync or async function with those of the arguments that it declares."""
    result = fn(**accepted(fn, arguments))
    return await result if inspect.isawaitable(result) else result


def accepted(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments a function declares; all of them when it takes `**kwargs`.

    Raises:
        ConfigurationError: it requires an argument that there is none of.
    """
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(arguments)
    missing = [
        p.name
        for p in parameters
        if p.name not in arguments and p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    ]
    if missing:
        name = getattr(fn, "__name__", "the hook")
        offered = ", ".join(arguments)
        raise ConfigurationError(f"{name} asks for {missing[0]!r}; there are {offered}")
    return {p.name: arguments[p.name] for p in parameters if p.name in arguments}
