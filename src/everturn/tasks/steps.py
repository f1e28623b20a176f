"""`step(name, fn, *args)`: a piece of work whose result is kept.

    summary = await step("summarise", summarise, document)

The first time the function runs and its result is stored before it is returned. When the run is
interrupted later, its next attempt gets the stored result and the function does not run again. A
crash between the function's effect and the storing of its result runs it again, so an effect that
must not happen twice needs an idempotency key of its own.

Results are JSON: what comes back is what was written, validated into the function's return
annotation when that names a model or dataclass. It comes back the same way the first time, so
that code that works once also works after a recovery.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_type_hints, overload

from everturn.errors import InvalidRequest
from everturn.tasks import codec
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.bridge import either

T = TypeVar("T")


class Step:
    """`step`, callable, and `step.run`, the same by another name."""

    @overload
    async def __call__(self, name: str, fn: Callable[..., Awaitable[T]], *args: Any) -> T: ...

    @overload
    async def __call__(self, name: str, fn: Callable[..., T], *args: Any) -> T: ...

    @either
    async def __call__(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """Do `fn(*args)` once per run, and return its result.

        Args:
            name: says which step it is; together with its place in the run's order of steps.
            fn: sync or async; its result must be writable as JSON, at most 1 MiB.

        Raises:
            NotInRunError: called outside a run.
            NonDeterminismError: the recovered run did not come by its steps in their order.
            InvalidRequest: the result cannot be written as JSON.
            Whatever `fn` raises; that is not stored, and the step runs again next time.
        """
        if not name:
            raise InvalidRequest("a step needs a name")
        runtime = runtimes.current()
        journal = scopes.of(runtime).journal
        key = f"step:{name}"
        place, stored = journal.take(key)
        if stored is None:
            result = fn(*args)
            if inspect.isawaitable(result):
                result = await result
            stored = codec.encode(result)
            await journal.put(runtime, place, key, stored)
        return codec.decode(stored, return_type(fn))

    run = __call__


def return_type(fn: Callable[..., Any]) -> Any:
    """The return annotation of a function where values need validating into it, else Any."""
    try:
        found = get_type_hints(fn).get("return", Any)
    except (NameError, TypeError, AttributeError):
        # Annotations that cannot be resolved (a name of a TYPE_CHECKING block) or no function.
        return Any
    plain = (Any, None, type(None), str, int, float, bool, dict, list)
    return Any if found in plain or isinstance(found, TypeVar) else found


step = Step()
