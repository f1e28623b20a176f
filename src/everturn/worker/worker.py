"""A worker: serves an app's tasks and agents to one server, within a number of slots.

Credit is the number of free slots. It is told to the server whenever a slot becomes free; claims
that were on their way at that moment may take the worker over its number for a while, which costs
no more than some contention on its loop. Suspended runs hold no slot.

Stopping. `stop` (SIGTERM, SIGINT) ends the credit, tells the runs (`draining`), asks parked ones
to be evicted, and gives the others DRAIN_S to end or to park: a chat that waits for its next
message ends at once, one in the middle of a turn ends after it. What still runs then is
interrupted: reported as such, it costs no retry, and another worker goes on with it at once. A
second signal does not wait; nor does a worker whose server stays away meanwhile. Code that does
not end is left behind in the end (`stubborn`).
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx2
import msgspec
from anyio.abc import TaskGroup

from everturn.client.config import ClientConfig
from everturn.clock import Clock, SystemClock
from everturn.errors import ConfigurationError, EverturnError, Fenced, LeaseLost
from everturn.ids import Ids, RandomIds
from everturn.protocol import link as frames
from everturn.protocol.runs import RunInfo, RunOutcome
from everturn.rules import limits
from everturn.tasks import metadata as task_metadata
from everturn.tasks import scope as scopes
from everturn.tasks.failures import internal_error
from everturn.tasks.signals import Signal
from everturn.worker.attempt import Attempt, as_builtins
from everturn.worker.link import Link
from everturn.worker.loading import App, load_app, version_of
from everturn.worker.parking import IDLE_TTL_S, Parking, calm_collector, evict_all
from everturn.worker.pool import Pool
from everturn.worker.probe import StallProbe
from everturn.worker.runtime import LinkRuntime
from everturn.worker.sockets import Dial
from everturn.worker.stubborn import Stubborn, end_process
from everturn.worker.tails import LinkTail

log = logging.getLogger("everturn.worker")

CONCURRENCY: Final = 100
_LOOK_S: Final = 0.25


class Worker:
    """Runs what an app defines."""

    def __init__(
        self,
        app: str | App,
        url: str,
        key: str,
        *,
        concurrency: int = CONCURRENCY,
        version: str | None = None,
        worker_id: str | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
        idle_ttl_s: float = IDLE_TTL_S,
        dial: Dial | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Load the app; nothing is connected yet.

        Args:
            app: a path, an import path, or an app loaded with `load_app`.
            url: HTTP address of the server.
            key: secret key of the environment to serve.
            concurrency: runs that execute at the same time; parked ones do not count.
            idle_ttl_s: seconds after which a parked run is let go of (tasks-and-runs §29.5).
            version: of the code; EVERTURN_VERSION or a hash of its files when left out.
            dial, transport: how the link and the runs' own HTTP calls travel, in place of real
                connections; for systems in one process.
            worker_id: what the server knows this process by; new for each start of it. A
                supervisor gives one, to tell the server when it has seen the process exit.

        Raises:
            ConfigurationError: one line saying what is wrong with the app or the settings.
        """
        if concurrency < 1:
            raise ConfigurationError(f"concurrency is {concurrency}, at least 1")
        self.clock: Clock = clock or SystemClock()
        self.ids: Ids = ids or RandomIds()
        self.app = app if isinstance(app, App) else load_app(app)
        self.version = version or version_of(self.app, self.clock)
        self.id = worker_id or self.ids.new("worker")
        self.concurrency = concurrency
        self._client = ClientConfig(url=url, secret_key=key, transport=transport)
        self.link = Link(url, key, self, clock=self.clock, ids=self.ids, dial=dial)
        self.parking = Parking(self.clock, idle_ttl_s=idle_ttl_s)
        self.probe = StallProbe(self.clock, running=self._running_now)
        self._pool = Pool(self.app)
        self._attempts: dict[str, Attempt] = {}
        self.stubborn = Stubborn(
            self.clock, self._attempts.values, leaving=lambda: self.draining.aborted
        )
        self._tails: dict[int, LinkTail] = {}
        self._active = 0
        self._changed = anyio.Event()
        self._stop = anyio.Event()
        self._hurry = anyio.Event()
        self.draining = Signal()
        self._runs: TaskGroup | None = None

    # --- life ----------------------------------------------------------------------------------

    async def run(self, *, handle_signals: bool = False) -> None:
        """Serve until `stop`, or for ever. On return no run of this worker is left.

        Args:
            handle_signals: stop on SIGTERM and SIGINT; for a process that is a worker.

        Raises:
            NotAuthenticated: the server does not accept the key.
            ProtocolError: the server speaks another version of the link.
        """
        if handle_signals:
            calm_collector()
            self.stubborn.on_left_behind = end_process
        try:
            async with (
                self._services(handle_signals) as services,
                anyio.create_task_group() as runs,
            ):
                self._runs = runs
                services.start_soon(self.link.run)
                await self._stop.wait()
                await self._drain()
        except* EverturnError as group:
            # One clear error instead of a group of one.
            raise _only(group) from None

    @asynccontextmanager
    async def _services(self, handle_signals: bool) -> AsyncIterator[TaskGroup]:
        """The worker's own loops, which outlive its runs: the runs report over the link."""
        async with self._pool, anyio.create_task_group() as tasks:
            tasks.start_soon(self.parking.keep)
            tasks.start_soon(self._flush_metadata)
            tasks.start_soon(self.probe.run)
            tasks.start_soon(self.stubborn.watch)
            if handle_signals:
                tasks.start_soon(self._obey_signals)
            yield tasks
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """Drain and leave (see above). A second call does not wait for runs to end."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("worker.stopping: %s", signal.Signals(number).name)
                self.stop()

    async def _drain(self) -> None:
        """Let runs end or park, evict the parked, interrupt the rest. The caller awaits them."""
        self.draining.abort("the worker is stopping")
        self.link.credit_changed()
        with anyio.move_on_after(limits.DRAIN_S) as grace:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cut_grace, grace)
                tasks.start_soon(self._leave_when_alone)
                while self._attempts:
                    changed = self._changed
                    await evict_all(list(self.parking))
                    if self._attempts:
                        await changed.wait()
                tasks.cancel_scope.cancel()
        for attempt in list(self._attempts.values()):
            attempt.stop("drain", "the worker is stopping")

    async def _cut_grace(self, grace: anyio.CancelScope) -> None:
        await self._hurry.wait()
        grace.cancel()

    async def _leave_when_alone(self) -> None:
        """A server that stays away has given our runs to others: nothing is left to finish."""
        away_s = 0.0
        while away_s < limits.LINK_GRACE_MS / 1000:
            await self.clock.sleep(_LOOK_S)
            away_s = 0.0 if self.link.connected else away_s + _LOOK_S
        self.lease_lost()

    async def _flush_metadata(self) -> None:
        while True:
            await self.clock.sleep(task_metadata.FLUSH_S)
            await scopes.flush_dirty()

    # --- Peer: what the link asks and tells ----------------------------------------------------

    def hello(self) -> frames.Hello:
        registry = self.app.registry
        return frames.Hello(
            worker_id=self.id,
            version=self.version,
            tasks=[one.declaration() for one in registry.definitions.values()],
            queues=dict(registry.queues),
            held=[
                frames.HeldRun(run_id, attempt.runtime.info.fence)
                for run_id, attempt in self._attempts.items()
                if not attempt.lost
            ],
        )

    def welcomed(self, welcome: frames.Welcome) -> None:
        lost = frozenset(welcome.lost)
        for run_id, attempt in list(self._attempts.items()):
            if run_id in lost:
                attempt.lose(Fenced("the run was given to another worker meanwhile"))
            elif not attempt.lost:
                if not attempt.runtime.is_parked:
                    # The server may not have seen the first one. A parked run's has been: only
                    # a started run can suspend.
                    self.link.send(frames.Started(run_id, attempt.runtime.info.fence))
                attempt.runtime.reconnected()

    def credit(self) -> int:
        return 0 if self.draining.aborted else max(0, self.concurrency - self._active)

    def lease_lost(self) -> None:
        for attempt in list(self._attempts.values()):
            attempt.lose(LeaseLost("the lease of this worker is over"))

    def received(self, frame: frames.ServerFrame) -> None:
        match frame:
            case frames.Acked():
                if (attempt := self._attempts.get(frame.run_id)) is not None:
                    attempt.runtime.acked(frame)
            case frames.Records():
                if (tail := self._tails.get(frame.sub)) is not None:
                    tail.received(frame.records)
            case frames.Claim():
                self._claimed(frame.run)
            case frames.Wake():
                if (attempt := self._attempts.get(frame.run_id)) is not None:
                    attempt.runtime.wake(frame)
            case frames.Cancel():
                if (attempt := self._attempts.get(frame.run_id)) is not None:
                    attempt.stop("canceled", frame.reason)
            case frames.Lost():
                if (attempt := self._attempts.get(frame.run_id)) is not None:
                    attempt.lose(Fenced("the run belongs to another worker now"))
            case frames.Refused():
                self._refused(frame)
            case _:
                log.warning("link.unexpected: a %s frame", type(frame).__name__)

    def _refused(self, frame: frames.Refused) -> None:
        attempt = self._attempts.get(frame.run_id)
        if attempt is None or frame.fence != attempt.runtime.info.fence:
            return
        # Any refusal leaves a gap in the parts, after which nothing can be appended.
        attempt.lose(Fenced(frame.message))
        if frame.code != Fenced.code:
            # The run is still this worker's, as far as the server knows: it has to be told.
            log.error("append.refused: run %s: %s", frame.run_id, frame.message)
            attempt.runtime.abandon("an append was refused")

    # --- runs ----------------------------------------------------------------------------------

    def _claimed(self, info: RunInfo) -> None:
        held = self._attempts.get(info.run_id)
        if held is not None:
            if held.runtime.info.fence >= info.fence:
                return
            # Taken from this worker and given back to it: the old attempt writes nothing more.
            held.lose(Fenced("a newer claim of the run"))
        definition = self.app.registry.get(info.task_id)
        info = _shared(info)
        runtime = LinkRuntime(info, self.link, self, clock=self.clock, ids=self.ids)
        assert self._runs is not None
        if definition is None:
            self._runs.start_soon(self._refuse, runtime)
            return
        attempt = Attempt(runtime, definition, client=self._client, sync_runner=self._pool)
        self._attempts[info.run_id] = attempt
        self._active += 1
        # Said here and not in the attempt's task, where it would leave the frames of the logger's
        # look around in memory for as long as the run is parked.
        log.info("run.started: %s of %s", info.run_id, info.task_id, extra={"run_id": info.run_id})
        self.link.send(frames.Started(info.run_id, info.fence))
        self._runs.start_soon(self._work, attempt)

    async def _work(self, attempt: Attempt) -> None:
        """One run from Started to its end. Counts its slot."""
        info = attempt.runtime.info
        try:
            await attempt.run()
        finally:
            if self._attempts.get(info.run_id) is attempt:
                del self._attempts[info.run_id]
            self._active -= 1
            self._freed()
            self.parking.ended()
            log.info("run.ended: %s", info.run_id, extra={"run_id": info.run_id})

    async def _refuse(self, runtime: LinkRuntime) -> None:
        """A run of a task this code does not have: say so instead of letting it wait."""
        error = internal_error("COULD_NOT_FIND_TASK", f"no task {runtime.info.task_id!r} here")
        try:
            await runtime.finish(
                as_builtins(RunOutcome(kind="failed", error=error, retryable=False))
            )
        except EverturnError as failure:
            log.warning("run.unreported: %s: %s", runtime.run_id, failure)

    def _freed(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        self.link.credit_changed()

    def parked(self, run: LinkRuntime) -> None:
        self._active -= 1
        self.parking.add(run)
        self._freed()

    def woken(self, run: LinkRuntime) -> None:
        self._active += 1
        self.parking.discard(run)

    def tail_opened(self, tail: LinkTail, sub: int) -> None:
        self._tails[sub] = tail

    def tail_closed(self, sub: int) -> None:
        self._tails.pop(sub, None)

    def _running_now(self) -> str:
        """For the stall probe: runs that hold a slot, a few of them."""
        names = [
            f"{run_id} ({attempt.runtime.info.task_id})"
            for run_id, attempt in list(self._attempts.items())
            if not attempt.runtime.is_parked
        ]
        return ", ".join(names[:10])


def _shared(info: RunInfo) -> RunInfo:
    """The same run, with one copy in memory of the words that all runs have in common."""
    return msgspec.structs.replace(
        info,
        task_id=sys.intern(info.task_id),
        environment_id=sys.intern(info.environment_id),
        environment_slug=sys.intern(info.environment_slug),
        version=sys.intern(info.version),
        queue=sys.intern(info.queue),
    )


def _only(group: BaseExceptionGroup[EverturnError]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
