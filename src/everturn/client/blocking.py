"""The client for code without an event loop: the same names, calls that wait.

    from everturn import blocking

    chat = blocking.AgentChat("my-agent", id="chat-1")
    for chunk in chat.send_message("hello"):
        print(chunk)

There are no hand-written twins. `blocking.<name>` is the public name of the same spelling behind
a facade: what it calls runs on one event loop in a background thread, awaitables are waited for,
asynchronous iterators become plain ones, and `async with` becomes `with`. Plain values pass
through; objects that have something to await come back behind a facade themselves.

The thread starts with the first call, serves all threads of the process, starts anew after a
fork, and ends with the program. Calling from a thread that runs an event loop would block that
loop, so it is refused; use the asynchronous names there. Callbacks handed in (`on_turn_complete`,
handlers) run on the background loop and must not call back into this facade.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from importlib import import_module
from typing import Any, Final, TypeVar

import anyio
import msgspec
from anyio.from_thread import BlockingPortal

from everturn.errors import RunContextError

T = TypeVar("T")

#: Public names that have something to wait for, and where they live.
_NAMES: Final = {
    "AgentChat": "everturn.client.agent_chat:AgentChat",
    "Api": "everturn.client.api:Api",
    "auth": "everturn.client.auth",
    "runs": "everturn.client.runs",
    "sessions": "everturn.client.sessions",
    "Signal": "everturn.tasks.signals:Signal",
    "trigger": "everturn.client.runs:trigger",
}


class _Background:
    """The event loop in its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` on the loop, wait for what it returns, and raise what it raises."""
        _refuse_inside_a_loop()
        future: Future[Any] = self._running().start_task_soon(
            functools.partial(_waited_for, function, args, kwargs)
        )
        try:
            return future.result()
        except BaseException:
            # Nobody waits for it any more (a keyboard interrupt); a future that is done ignores it.
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread, and with it every call in progress."""
        with self._lock:
            portal, thread = self._portal, self._thread
            self._portal = self._thread = None
        if portal is not None and thread is not None:
            portal.call(portal.stop, True)
            thread.join()

    def forget(self) -> None:
        """After a fork: the thread is the parent's, and another may have held the lock."""
        self._lock = threading.Lock()
        self._portal = self._thread = None

    def _running(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                started: Future[BlockingPortal] = Future()
                # A daemon, because the program's end must not wait for it: it is `close`, called
                # at exit, that ends it in order.
                self._thread = threading.Thread(
                    target=anyio.run, args=(_serve, started), name="everturn-blocking", daemon=True
                )
                self._thread.start()
                self._portal = started.result()
            return self._portal


async def _serve(started: Future[BlockingPortal]) -> None:
    async with BlockingPortal() as portal:
        started.set_result(portal)
        await portal.sleep_until_stopped()


_background = _Background()
atexit.register(_background.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_background.forget)


def close() -> None:
    """End the background thread now. It starts again with the next call."""
    _background.close()


def __getattr__(name: str) -> Any:
    home = _NAMES.get(name)
    if home is None:
        raise AttributeError(f"everturn.blocking has no attribute {name!r}")
    module_name, _, attribute = home.partition(":")
    module = import_module(module_name)
    return _Facade(getattr(module, attribute) if attribute else module)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})


class _Facade:
    """An object whose calls wait."""

    __slots__ = ("_target",)

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if callable(value):
            return _Call(value)
        return _faced(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._target, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        iterator = _background.call(aiter, self._target)
        try:
            while True:
                item = _background.call(anext, iterator, _END)
                if item is _END:
                    return
                yield _faced(item)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                _background.call(close)

    def __enter__(self) -> Any:
        entered = _background.call(self._target.__aenter__)
        return self if entered is self._target else _faced(entered)

    def __exit__(self, *exc: Any) -> Any:
        return _background.call(self._target.__aexit__, *exc)

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"


class _Call:
    """A function or method that waits. Its attributes and documentation are the original's."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__wrapped__ = function
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _faced(getattr(self._function, name))


class _End:
    """What an exhausted iterator gives; StopAsyncIteration does not cross threads."""


_END: Final = _End()


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _faced(
        _background.call(
            function,
            *(_bare(value) for value in args),
            **{name: _bare(value) for name, value in kwargs.items()},
        )
    )


async def _waited_for(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    value = function(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


def _faced(value: Any) -> Any:
    """The value itself, or behind a facade if it has something to wait for."""
    return _Facade(value) if _waits(value) else value


def _bare(value: Any) -> Any:
    return value._target if isinstance(value, _Facade) else value


def _waits(value: Any) -> bool:
    if isinstance(value, AsyncIterator):
        return True
    if isinstance(value, type):
        return False
    if _has_async_methods(type(value)):
        return True
    # A record of such objects, such as the handle of a session with its two channels.
    return isinstance(value, msgspec.Struct) and any(
        _has_async_methods(type(getattr(value, field))) for field in value.__struct_fields__
    )


#: Types looked at so far; as many as the client has.
_async_types: dict[type, bool] = {}


def _has_async_methods(kind: type) -> bool:
    known = _async_types.get(kind)
    if known is None:
        known = _async_types[kind] = kind.__module__.startswith("everturn.") and any(
            inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
            for member in (inspect.getattr_static(kind, name) for name in dir(kind))
        )
    return known


def _refuse_inside_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RunContextError(
        "everturn.blocking was called in a thread that runs an event loop and would block it: "
        "await the asynchronous name instead (for example everturn.AgentChat)"
    )
