"""What triggering a task returns: a handle, or a result to await and unwrap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from everturn.client.results import Err, Ok
from everturn.errors import SubtaskError
from everturn.protocol.runs import RunResult as WireResult
from everturn.tasks import codec
from everturn.tasks.bridge import either

O = TypeVar("O")  # noqa: E741 - the output type, as the papers name it


class RunHandle(msgspec.Struct, Generic[O], frozen=True, kw_only=True):
    """A triggered run.

    Attributes:
        is_cached: an idempotency key found an earlier run; this payload was ignored.
        public_access_token: reads this run and nothing else; only when triggered from outside.
    """

    id: str
    task_id: str
    is_cached: bool = False
    public_access_token: str | None = None


class RunResult(msgspec.Struct, Generic[O], frozen=True, kw_only=True):
    """How a child run ended. Its failure raises only when unwrapped."""

    ok: bool
    id: str
    task_id: str
    output: O | None = None
    error: Mapping[str, Any] | None = None

    def unwrap(self) -> O:
        """The output. Raises SubtaskError, naming task, run and the child's error, on failure."""
        if self.ok:
            return self.output  # type: ignore[return-value]  # None is the output of such a task
        error = self.error or {}
        said = error.get("message") or error.get("raw") or error.get("code") or "it failed"
        raise SubtaskError(
            f"run {self.id} of task {self.task_id!r}: {said}",
            task_id=self.task_id,
            run_id=self.id,
            error=dict(error),
        )


class PendingResult(Generic[O]):
    """What `trigger_and_wait` returns: `await it` for the result, `await it.unwrap()` for the
    output. Nothing is triggered before it is awaited."""

    def __init__(self, start: Callable[[], Awaitable[RunResult[O]]]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, Any, RunResult[O]]:
        return self._start().__await__()

    @either
    async def unwrap(self) -> O:
        """The output; raises SubtaskError when the child failed."""
        return (await self._start()).unwrap()


class PendingOutput(Generic[O]):
    """What `wait.for_token` returns: `await it` for `Ok` or `Err`, `await it.unwrap()` for the
    output. Nothing is waited for before it is awaited."""

    def __init__(self, start: Callable[[], Awaitable[Ok[O] | Err]]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, Any, Ok[O] | Err]:
        return self._start().__await__()

    @either
    async def unwrap(self) -> O:
        """The output; raises WaitTimeoutError when the time was up."""
        return (await self._start()).unwrap()


def result_of(wire: WireResult, output_type: Any = Any) -> RunResult[Any]:
    """A finished run as its waiting parent sees it."""
    output = None
    if wire.output is not None:
        output = codec.decode_packet(wire.output, wire.output_type or codec.JSON)
        output = codec.validator(output_type)(output)
    return RunResult(
        ok=wire.ok, id=wire.run_id, task_id=wire.task_id, output=output, error=wire.error
    )
