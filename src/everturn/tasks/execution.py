"""One attempt of a task, in the order of tasks-and-runs §3.4.

    payload -> middleware( init -> on_start -> on_start_attempt -> function
                           -> on_success, on_complete | catch_error, on_failure, on_complete
                           -> cleanup )

Failures become decided outcomes here, because whether `on_failure` may run depends on whether the
run gets another attempt. They leave as AttemptFailed; control signals (cancellation, eviction)
pass through everything: of the hooks, only `on_cancel` runs for a cancelled attempt, and none for
an evicted one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from everturn.errors import EverturnError, Fenced, InvalidRequest, LeaseLost
from everturn.protocol.runs import RunOutcome
from everturn.rules import limits
from everturn.rules.durations import parse
from everturn.tasks import codec, hooks, isolation
from everturn.tasks import scope as scopes
from everturn.tasks.failures import (
    AttemptFailed,
    CompleteTask,
    PayloadValidationError,
    failed,
    internal_error,
    outcome_of,
    stack_of,
    stored_error,
)
from everturn.tasks.own_session import own_session
from everturn.tasks.retries import CatchErrorResult
from everturn.tasks.runtime import RunRuntime

if TYPE_CHECKING:
    from everturn.tasks.definition import Task

log = logging.getLogger("everturn.tasks")

CANCEL_HOOKS_S_MAX: Final = 30.0


class Execution:
    """One attempt at a task."""

    def __init__(self, task: Task[Any], runtime: RunRuntime) -> None:
        self._task = task
        self._runtime = runtime
        self._scope = scopes.of(runtime)
        self._arguments: dict[str, Any] = {}
        self._output: bytes | None = None
        self._failure: RunOutcome | None = None

    async def run(self) -> bytes | None:
        """The output as JSON text. Raises AttemptFailed, carrying the outcome."""
        self._arguments = {
            "payload": self._payload(),
            "ctx": self._scope.context,
            "task": self._task,
            "signal": self._runtime.cancelled,
            "init": None,
        }
        self._scope.on_wait = self._wait_hooks("on_wait")
        self._scope.on_resume = self._wait_hooks("on_resume")
        try:
            await self._through_middleware()
        except anyio.get_cancelled_exc_class():
            await self._cancel_hooks()
            raise
        if self._failure is not None:
            raise AttemptFailed(self._failure)
        return self._output

    def _payload(self) -> Any:
        info = self._runtime.info
        try:
            payload = codec.decode_packet(info.payload, info.payload_type)
            return self._task.validate(payload)
        except (EverturnError, ValueError, TypeError) as error:
            # pydantic's ValidationError is a ValueError; other schemas raise what they like.
            raise PayloadValidationError(str(error)) from error

    # --- the onion -----------------------------------------------------------------------------

    async def _through_middleware(self) -> None:
        work: Callable[[], Awaitable[None]] = self._work
        for middleware in reversed(hooks.hooks_of(self._task.hooks, "middleware")):
            work = self._wrapped(middleware, work)
        await work()

    def _wrapped(
        self, middleware: Callable[..., Any], inner: Callable[[], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            called = False

            async def next_() -> None:
                nonlocal called
                called = True
                await inner()

            try:
                await hooks.call(middleware, {**self._arguments, "next": next_})
                if not called:
                    raise InvalidRequest("the middleware did not call next()")
            except (Fenced, LeaseLost):
                raise
            except Exception as error:  # the author's middleware
                code = internal_error("TASK_MIDDLEWARE_ERROR", str(error), stack_of(error))
                self._failure = failed(code, retryable=True)

        return run

    async def _work(self) -> None:
        """Everything inside the middleware; never raises for a failed run."""
        try:
            result = await self._function()
        except (Fenced, LeaseLost):
            raise  # the run is somebody else's by now: it has not failed, and nobody is told
        except Exception as error:  # the author's code
            await self._failed(error)
        else:
            await self._succeeded(result)
        if self._failure is None or self._failure.kind == "failed":
            await self._cleanup()

    async def _function(self) -> Any:
        attempt = self._scope.context.attempt.number
        self._arguments["init"] = await self._init()
        if attempt == 1:
            await self._each("on_start")
        await self._each("on_start_attempt")
        async with own_session(self._runtime) as own:
            try:
                output = await isolation.run(self._task, self._arguments, self._runtime)
            except CompleteTask as done:
                output = done.output
            if own is not None:
                await own.settle()
        return output

    async def _init(self) -> dict[str, Any] | None:
        merged: dict[str, Any] | None = None
        for hook in hooks.hooks_of(self._task.hooks, "init"):
            found = await hooks.call(hook, self._arguments)
            if isinstance(found, dict):
                merged = {**(merged or {}), **found}
        return merged

    async def _each(self, moment: str, **more: Any) -> None:
        for hook in hooks.hooks_of(self._task.hooks, moment):
            await hooks.call(hook, {**self._arguments, **more})

    async def _each_logged(self, moment: str, **more: Any) -> None:
        """Hooks that tell of a decided outcome: their exceptions change nothing."""
        try:
            await self._each(moment, **more)
        except Exception:  # the author's hook
            log.exception("hook.failed: %s of task %s", moment, self._task.task_id)

    # --- endings -------------------------------------------------------------------------------

    async def _succeeded(self, result: Any) -> None:
        try:
            self._output = None if result is None else codec.encode(result)
        except InvalidRequest as error:
            self._failure = failed(internal_error("TASK_OUTPUT_ERROR", str(error)), retryable=True)
            return
        size = len(self._output or b"")
        if size > limits.OUTPUT_BYTES_MAX:
            reason = f"the output is {size} bytes, at most {limits.OUTPUT_BYTES_MAX}"
            self._failure = failed(internal_error("TASK_OUTPUT_ERROR", reason), retryable=True)
            self._output = None
            return
        await self._each_logged("on_success", output=result)
        await self._each_logged("on_complete", result={"ok": True, "data": result})

    async def _failed(self, error: Exception) -> None:
        self._failure = await self._decided(error)
        if self._failure.kind != "failed" or self._will_retry(self._failure):
            return
        await self._each_logged("on_failure", error=error)
        await self._each_logged("on_complete", result={"ok": False, "error": error})

    def _will_retry(self, outcome: RunOutcome) -> bool:
        """As the server will decide it: retryable, and failures below the bound."""
        return outcome.retryable and (
            self._runtime.info.failures + 1 < self._runtime.info.max_attempts
        )

    async def _decided(self, error: Exception) -> RunOutcome:
        """The outcome of a failure, after `catch_error` had its say."""
        outcome = outcome_of(error, self._runtime)
        if outcome.kind != "failed" or not outcome.retryable:
            return outcome
        policy = self._task.retry
        delay_s = None
        if policy is not None and self._will_retry(outcome):
            delay_s = policy.delay_s(self._runtime.info.failures + 1, self._runtime.ids)
        try:
            for hook in hooks.hooks_of(self._task.hooks, "catch_error"):
                said = await hooks.call(
                    hook,
                    {**self._arguments, "error": error, "retry": policy, "retry_delay": delay_s},
                )
                if isinstance(said, CatchErrorResult):
                    return self._overruled(outcome, said)
        except Exception as broken:  # the author's hook
            code = internal_error("HANDLE_ERROR_ERROR", str(broken), stack_of(broken))
            return RunOutcome(kind="crashed", error=code, retryable=False)
        return outcome

    def _overruled(self, outcome: RunOutcome, said: CatchErrorResult) -> RunOutcome:
        now_ms = self._runtime.clock.now_ms()
        retry_at_ms = None
        if said.retry_at is not None:
            retry_at_ms = round(said.retry_at.timestamp() * 1000)
        elif said.retry_delay is not None:
            retry_at_ms = now_ms + round(parse(said.retry_delay) * 1000)
        elif said.retry is not None:
            failures = self._runtime.info.failures + 1
            delay_s = said.retry.delay_s(failures, self._runtime.ids)
            retry_at_ms = now_ms + round(delay_s * 1000) if delay_s is not None else None
            if delay_s is None:
                outcome = msgspec.structs.replace(outcome, retryable=False)
        if said.error is not None:
            outcome = msgspec.structs.replace(outcome, error=stored_error(said.error))
        return msgspec.structs.replace(
            outcome,
            retryable=outcome.retryable and not said.skip_retrying,
            retry_at_ms=retry_at_ms,
        )

    async def _cleanup(self) -> None:
        try:
            await self._each("cleanup")
        except Exception as error:  # the author's hook: it fails the attempt
            if self._failure is None:
                self._failure = outcome_of(error, self._runtime)

    # --- from outside --------------------------------------------------------------------------

    async def _cancel_hooks(self) -> None:
        """`on_cancel`, when the run was executing and somebody cancelled it."""
        if self._runtime.cancelled.reason is None or self._scope.waiting:
            return
        with anyio.move_on_after(CANCEL_HOOKS_S_MAX, shield=True):
            await self._each_logged("on_cancel")

    def _wait_hooks(self, moment: str) -> scopes.WaitHook | None:
        if not hooks.hooks_of(self._task.hooks, moment):
            return None

        async def run(wait: dict[str, Any]) -> None:
            await self._each(moment, wait=wait)

        return run
