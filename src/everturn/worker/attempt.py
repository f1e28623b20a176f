"""One attempt: from Started to its report.

Whatever happens in the author's code becomes one of six outcomes, and is reported under a shield,
because reporting matters most when the attempt is being stopped. Not reported: a run that was
lost or evicted, since it belongs to somebody else by then. The report waits through a lost
connection as long as the lease holds; when the lease ends first, the server decides by itself.

A report that the server refuses is followed by a plain one, that the run failed and why. When
that is not taken either, the run is let go of: the next connection does not name it, and the
server recovers it like any run whose holder is gone, counted and bounded. Silence would leave a
run that the server takes for running for as long as this process lives.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Literal

import anyio
import msgspec

from everturn.client.config import ClientConfig, enter
from everturn.errors import EverturnError, Fenced, LeaseLost
from everturn.protocol.runs import RunOutcome
from everturn.tasks import isolation
from everturn.tasks import runtime as runtimes
from everturn.tasks import scope as scopes
from everturn.tasks.failures import failed, internal_error, outcome_of
from everturn.tasks.isolation import SyncRunner
from everturn.tasks.registry import Definition
from everturn.worker.parking import Evicted
from everturn.worker.runtime import LinkRuntime

log = logging.getLogger("everturn.worker")

#: The link ends a report when the lease is over; this bound is for a server that never answers.
REPORT_S_MAX: Final = 60.0

StopReason = Literal["canceled", "timed_out", "drain", "lost"]


class Attempt:
    """One attempt at a run, and the handle its worker stops it by."""

    __slots__ = (
        "_client",
        "_definition",
        "_left_s",
        "_scope",
        "_stopped",
        "_stopped_at",
        "_sync_runner",
        "given_up",
        "runtime",
    )

    def __init__(
        self,
        runtime: LinkRuntime,
        definition: Definition,
        *,
        client: ClientConfig,
        sync_runner: SyncRunner | None = None,
    ) -> None:
        """`client` is where calls of the author's code go: the link's own server and key."""
        self.runtime = runtime
        self._definition = definition
        self._client = client
        self._sync_runner = sync_runner
        self._scope = anyio.CancelScope()
        self._stopped: StopReason | None = None
        self._stopped_at: float | None = None
        #: Whether its end was reported in place of its code, which goes on.
        self.given_up = False
        #: Seconds of `max_duration` left while the clock stands still (suspended).
        self._left_s = _seconds_max(runtime)
        runtime.on_parked = self._clock_stopped

    @property
    def lost(self) -> bool:
        return self._stopped == "lost"

    @property
    def stopped(self) -> StopReason | None:
        """Why it was told to end; None while nobody has."""
        if self._stopped is None and self._overdue_s() > 0:
            return "timed_out"
        return self._stopped

    def stopped_for_s(self) -> float:
        """How long ago it was told to end, by `stop`, `lose` or its own time limit; 0 if never."""
        if self._stopped_at is None:
            return self._overdue_s()
        return anyio.current_time() - self._stopped_at

    def _overdue_s(self) -> float:
        return max(0.0, anyio.current_time() - self._scope.deadline)

    def stop(self, reason: StopReason, message: str) -> None:
        """End the attempt: the signal first, so that code that looks at it sees why."""
        if self._stopped is None:
            self._stopped = reason
            self._stopped_at = anyio.current_time()
            self.runtime.cancelled.abort(message)
            self._scope.cancel()

    def lose(self, error: Fenced | LeaseLost) -> None:
        """The run is somebody else's: end it, and write nothing."""
        # A loss outranks other reasons: it forbids the report.
        self._stopped = "lost"
        if self._stopped_at is None:
            self._stopped_at = anyio.current_time()
        self.runtime.lost(error)
        self.runtime.cancelled.abort(error.message)
        self._scope.cancel()

    async def give_up(self) -> None:
        """Report in place of code that does not end; it can write nothing from here on."""
        self.given_up = True
        error = LeaseLost("the run has ended without waiting for its code")
        self.runtime.lost(error)
        if not self.lost and not self.runtime.evicted:
            await self._report(self._cut_short())
        self.lose(error)

    async def run(self) -> None:
        """Work the attempt to its report. On return, every task it started has ended."""
        outcome: RunOutcome | None = RunOutcome(kind="interrupted")
        try:
            outcome = await self._work()
        finally:
            # Also when we are cancelled from above: `outcome` then says interrupted.
            await self._report(outcome)
            self.runtime.close()

    async def _work(self) -> RunOutcome | None:
        """The outcome of the author's code; None when nothing may be reported."""
        outcome: RunOutcome | None = None
        with self._scope:
            self._clock_stopped(False)
            outcome = await self._author()
        if self._stopped == "lost" or self.runtime.evicted:
            return None
        if outcome is not None and self._stopped != "canceled":
            return outcome
        return self._cut_short()

    async def _author(self) -> RunOutcome | None:
        scope = self._surround()
        try:
            output = await self._definition.run(self.runtime)
        except Evicted:
            return None
        except (Fenced, LeaseLost) as error:
            self.lose(error)
            return None
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # the author's code may raise anything
            return outcome_of(error, self.runtime)
        else:
            return RunOutcome(kind="completed", output=output)
        finally:
            await self._settle(scope)

    def _surround(self) -> scopes.RunScope:
        """What the author's code finds around it: this run, its context, its metadata.

        Nothing is put back at the end: an attempt is a task of its own, whose context ends with
        it, and the frames that would put it back weigh more than all the rest of a parked run.
        """
        isolation.sync_runner.set(self._sync_runner)
        runtimes.enter(self.runtime)
        enter(self._client)
        scope = scopes.of(self.runtime)
        self.runtime.before_suspend = scope.flush
        return scope

    async def _settle(self, scope: scopes.RunScope) -> None:
        """Make durable what the author wrote, before the outcome says that the run is over."""
        if self._stopped == "lost" or self.runtime.evicted:
            return
        with anyio.move_on_after(REPORT_S_MAX, shield=True):
            try:
                await scope.flush()
                await self.runtime.flush()
            except (Fenced, LeaseLost) as error:
                self.lose(error)
            except EverturnError as error:
                log.error(
                    "run.unsettled: %s could not store its last writes: %s",
                    self.runtime.run_id,
                    error,
                )

    def _cut_short(self) -> RunOutcome:
        if self._stopped == "canceled":
            error = {"type": "INTERNAL_ERROR", "code": "TASK_RUN_CANCELLED"}
            return RunOutcome(kind="canceled", error=error)
        if self._stopped == "drain":
            return RunOutcome(kind="interrupted")
        seconds = self.runtime.info.max_duration_s
        return RunOutcome(
            kind="timed_out",
            error={
                "type": "INTERNAL_ERROR",
                "code": "MAX_DURATION_EXCEEDED",
                "message": f"the attempt ran for more than {seconds} s",
            },
            retryable=False,
        )

    async def _report(self, outcome: RunOutcome | None) -> None:
        if outcome is None or self._stopped == "lost":
            return
        with anyio.move_on_after(REPORT_S_MAX, shield=True):
            refusal = await self._told(outcome)
            if refusal is not None and outcome.kind != "interrupted":
                reason = f"the server did not take its outcome ({outcome.kind}): {refusal}"
                error = internal_error("TASK_OUTPUT_ERROR", reason)
                refusal = await self._told(failed(error, retryable=False))
            if refusal is None:
                return
        if self.lost:
            return  # The lease ended meanwhile.
        log.error("run.unreported: %s is let go of", self.runtime.run_id)
        self._stopped = "lost"
        self.runtime.abandon("a run whose outcome could not be reported")

    async def _told(self, outcome: RunOutcome) -> EverturnError | None:
        """Report an outcome; None when the server took it or knew better, else its refusal."""
        runtime = self.runtime
        outcome = msgspec.structs.replace(
            outcome,
            cursor=runtime.cursor.seq_num,
            decided=tuple(sorted(runtime.cursor.decided)),
            turns=runtime.turns,
        )
        try:
            await runtime.finish(as_builtins(outcome))
        except Fenced:
            # The server had decided already: a cancelled run is final before we hear of it.
            log.info("run.superseded: %s ended %s", runtime.run_id, outcome.kind)
        except LeaseLost as error:
            log.warning("run.unreported: %s ended %s: %s", runtime.run_id, outcome.kind, error)
        except EverturnError as error:
            log.warning(
                "run.refused: %s ended %s, and the server did not take it: %s",
                runtime.run_id,
                outcome.kind,
                error,
            )
            return error
        return None

    def _clock_stopped(self, parked: bool) -> None:
        """`max_duration` counts running time only (tasks-and-runs §12.3)."""
        if self._left_s is None:
            return
        if parked:
            self._left_s = max(0.0, self._scope.deadline - anyio.current_time())
            self._scope.deadline = float("inf")
        else:
            self._scope.deadline = anyio.current_time() + self._left_s


def _seconds_max(runtime: LinkRuntime) -> float | None:
    seconds = runtime.info.max_duration_s
    return None if seconds is None else float(seconds)


def as_builtins(outcome: RunOutcome) -> dict[str, Any]:
    """An outcome as a Call carries it; bytes stay bytes."""
    built: dict[str, Any] = msgspec.to_builtins(outcome, builtin_types=(bytes,))
    return built
