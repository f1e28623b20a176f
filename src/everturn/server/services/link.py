"""One worker's connection: what its frames do, and what is sent to it.

The life of a link is in `protocol/link.py`. Here: the first frame registers the worker, and both
sides compare what they believe it holds. Runs it names and no longer owns are named back to it.
Runs that are its own by their rows and that it does not name are recovered at once: a claim that
never reached it, or runs it stopped when it could not trust its lease. From then on frames are handled as they come. Nothing that
waits for a store holds up the receiving loop: appends go to their lanes, calls and tails run as
tasks of the link's group, and all of them end with the link.

A Wake may be lost with a connection although the state already says RUNNING, and it may never
have been written, when the answer of the store that set that state was lost. After a connection,
and after such a call (`doubt`), runs that were told nothing since and still carry the wait on
their row are told again, once the worker has had a second to resend what it had under way. A worker takes a Wake for a run
that is not suspended for what it is, an echo, and drops it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol, assert_never

import anyio
import msgspec
from anyio.abc import TaskGroup

from everturn.errors import EverturnError, Fenced, ProtocolError
from everturn.protocol.link import (
    Append,
    Beat,
    Call,
    Credit,
    Hello,
    Lost,
    RecordFrame,
    Records,
    Refused,
    ServerFrame,
    Slice,
    Started,
    Tail,
    Untail,
    Wake,
    Welcome,
    WorkerFrame,
)
from everturn.protocol.records import ChannelName, Io
from everturn.rules import limits
from everturn.rules.leases import renewed_until
from everturn.rules.run_states import RESIDENT, RunState
from everturn.server.services.claims import Claimer
from everturn.server.services.link_agreement import Agreement
from everturn.server.services.link_calls import carry_out
from everturn.server.services.link_lanes import Lanes
from everturn.server.services.link_sender import Sender
from everturn.server.services.link_starts import Starts
from everturn.storage.ports.rows import Environment, Run, Session, TaskVersion, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everturn.protocol.runs import TaskDeclaration
    from everturn.server.services import Services

log = logging.getLogger("everturn.link")

#: Calls of one link carried out at the same time; past it the link reads no more.
_CALLS_MAX: Final = 256
_TAILS_MAX: Final = 100_000
_ECHO_S: Final = 1.0


class Transport(Protocol):
    """Messages in and out. `receive` answers None when the connection is over."""

    async def receive(self) -> bytes | None: ...

    async def send(self, message: bytes) -> None: ...


class Held(msgspec.Struct, frozen=True):
    """A run that this link's worker has in its hands."""

    fence: int
    session_id: str | None
    session_key: str | None


class Link:
    """The server end of one worker's connection."""

    def __init__(
        self, services: Services, environment: Environment, hello: Hello, transport: Transport
    ) -> None:
        self._services = services
        self.environment = environment
        self.worker_id = hello.worker_id
        self.ended = anyio.Event()
        #: Runs whose Wake may not have reached the worker.
        self.untold: set[str] = set()
        self._doubted = anyio.Event()
        self._hello = hello
        self._transport = transport
        self._sender = Sender(transport.send)
        self._claimer = Claimer(services, self)
        self.agreement = Agreement(services, self)
        self._starts = Starts(services, self)
        self._held: dict[str, Held] = {}
        self._tails: dict[int, anyio.CancelScope] = {}
        self._calls = anyio.Semaphore(_CALLS_MAX)
        self._scope = anyio.CancelScope()
        #: Frames for a worker that has not been welcomed yet: Welcome is always the first.
        self._early: list[tuple[ServerFrame, str]] | None = []
        #: Stopwatch times: the newest promise of a lease, and since when nothing was received.
        self._promised_at = services.clock.monotonic()
        self._silent_since: float | None = None

    # --- what others ask of a link -----------------------------------------------------------

    @property
    def is_registered(self) -> bool:
        """Whether the state knows the worker and its tasks by now."""
        return self._early is None

    def send(self, frame: ServerFrame, lane: str = "") -> None:
        """Queue a frame; frames of one lane arrive in order. Never waits."""
        if self._early is None:
            self._sender.send(frame, lane)
        else:
            self._early.append((frame, lane))

    def hold(self, run: Run, session: Session | None) -> None:
        """The worker has this run in its hands from now on."""
        key = session.key if session is not None else None
        self._held[run.id] = Held(run.fence, run.session_id, key)
        if key is not None:
            self._services.outbox.bind(run.id, ChannelName(run.environment_id, key, "out"))

    def release(self, run_id: str, fence: int) -> bool:
        """What this worker held under a fence is over, or somebody else's.

        False, changing nothing, when the run has been given to the same worker again: whatever
        ended was the claim before, and the worker drops that when it gets the newer one.
        """
        held = self._held.get(run_id)
        if held is not None and held.fence > fence:
            return False
        self._held.pop(run_id, None)
        self.untold.discard(run_id)
        return True

    def lose(self, run_id: str, fence: int) -> None:
        """Release the run and tell the worker, unless it has it again."""
        if self.release(run_id, fence):
            self.send(Lost(run_id))

    def held(self, run_id: str, fence: int) -> Held:
        """The run, if this worker holds it under this fence. Raises Fenced."""
        held = self._held.get(run_id)
        if held is None or held.fence != fence:
            raise Fenced(f"run {run_id} is not held under fence {fence}", run_id=run_id)
        return held

    def holdings(self) -> frozenset[tuple[str, int]]:
        """Every run the worker has in its hands, with its fence."""
        return frozenset((run_id, held.fence) for run_id, held in self._held.items())

    def woken(self, run: Run, frame: Wake) -> None:
        """A suspended run goes on."""
        self.untold.add(run.id)
        self.send(frame)

    def doubt(self, run_id: str | None = None) -> None:
        """A run, or any of those held here, may be awake without its worker knowing."""
        self.untold.update(self._held if run_id is None else (run_id,))
        self._doubted.set()

    def kick(self) -> None:
        self._claimer.kick()

    @property
    def lease_holds(self) -> bool:
        """Whether the newest lease that was promised to the worker still runs, by our stopwatch."""
        return self._services.clock.monotonic() < self._promised_at + limits.LEASE_MS / 1000

    def close(self) -> None:
        """End the connection; `ended` is set when all its tasks have ended."""
        self._scope.cancel()

    @property
    def tasks(self) -> Sequence[TaskDeclaration]:
        """What the worker's version of the app declares."""
        return self._hello.tasks

    # --- the life of a link ------------------------------------------------------------------

    async def greet(self) -> None:
        """Register the worker and answer its Hello, naming the runs it must let go of."""
        hello, state = self._hello, self._services.state
        now_ms = self._services.clock.now_ms()
        tasks = [
            TaskVersion(
                task_id=task.task_id,
                kind=task.kind,
                queue=task.queue,
                queue_limit=task.queue_limit,
                config=task.config,
            )
            for task in hello.tasks
        ]
        await state.register_worker(
            Worker(
                id=hello.worker_id,
                environment_id=self.environment.id,
                version=hello.version,
                server_id=self._services.server_id,
                lease_until_ms=renewed_until(now_ms),
                registered_at_ms=now_ms,
            ),
            tasks,
            hello.queues,
            now_ms=now_ms,
        )
        for task in tasks:
            self._services.dispatch.knows_queue(self.environment.id, task.task_id, task.queue)
        lost = [held.run_id for held in hello.held if not await self._keep(held.run_id, held.fence)]
        await self._recover_unnamed()
        early, self._early = self._early or [], None
        self._sender.send(
            Welcome(
                environment_id=self.environment.id,
                environment_slug=self.environment.slug,
                lease_ms=limits.LEASE_MS,
                heartbeat_ms=limits.HEARTBEAT_MS,
                lost=lost,
            )
        )
        for frame, lane in early:
            self._sender.send(frame, lane)
        log.info(
            "worker.connected",
            extra={
                "worker_id": self.worker_id,
                "version": hello.version,
                "held": len(hello.held),
                "lost": len(lost),
            },
        )

    async def run(self, frames: list[WorkerFrame], decode: Decode) -> None:
        """Handle frames until the connection ends. `frames` came with the Hello."""
        broken: ProtocolError | OSError | None = None
        with self._scope:
            async with anyio.create_task_group() as tasks:
                lanes = Lanes(self._services, self._sender, tasks, self._fenced)
                tasks.start_soon(self._send_all)
                tasks.start_soon(self._claimer.run)
                tasks.start_soon(self._tell_again)
                tasks.start_soon(self._end_silent)
                try:
                    await self._receive_all(frames, decode, tasks, lanes)
                except (ProtocolError, OSError) as error:
                    broken = error  # Raised below: a task group would wrap it.
                tasks.cancel_scope.cancel()
        if broken is not None:
            raise broken

    async def _receive_all(
        self, frames: list[WorkerFrame], decode: Decode, tasks: TaskGroup, lanes: Lanes
    ) -> None:
        while True:
            for frame in frames:
                await self._handle(frame, tasks, lanes)
            self._silent_since = self._services.clock.monotonic()
            message = await self._transport.receive()
            self._silent_since = None
            if message is None:
                return
            frames = decode(message)

    async def _end_silent(self) -> None:
        """End a connection on which nothing comes any more: a worker beats three times a lease.

        Its lease would end it as well, but that is kept by the wall clock, which may have been
        set back. Time in which this process stood still is not counted: what came meanwhile has
        not been read yet.
        """
        clock, pause_s = self._services.clock, limits.HEARTBEAT_MS / 1000
        while True:
            began = clock.monotonic()
            # By the loop's time, which a hand-moved clock does not pass in an instant.
            await anyio.sleep(pause_s)
            now, since = clock.monotonic(), self._silent_since
            stood_still = now - began > 2 * pause_s
            if not stood_still and since is not None and now - since >= limits.LEASE_MS / 1000:
                log.warning("link.silent", extra={"worker_id": self.worker_id})
                self.close()

    async def _send_all(self) -> None:
        try:
            await self._sender.run()
        except OSError:
            self.close()  # The connection broke while we were writing to it.

    async def _handle(self, frame: WorkerFrame, tasks: TaskGroup, lanes: Lanes) -> None:
        match frame:
            case Append():
                await self._append(frame, lanes)
            case Beat():
                tasks.start_soon(self._beat, frame)
            case Call():
                await self._calls.acquire()
                tasks.start_soon(self._call, frame)
            case Credit():
                self._claimer.grant(frame.runs)
            case Started():
                self._starts.take(frame, tasks)
            case Tail():
                self._open_tail(frame, tasks)
            case Untail():
                scope = self._tails.pop(frame.sub, None)
                if scope is not None:
                    scope.cancel()
            case Hello():
                raise ProtocolError("a second hello")
            case Slice():
                raise ProtocolError("a slice that was not joined")
            case _:
                assert_never(frame)

    # --- frames ------------------------------------------------------------------------------

    async def _append(self, frame: Append, lanes: Lanes) -> None:
        self.untold.discard(frame.run_id)
        try:
            held = self.held(frame.run_id, frame.fence)
            if held.session_key is None:
                raise ProtocolError("a run without a session has no channel to append to")
            if not 1 <= len(frame.records) <= limits.BATCH_RECORDS_MAX:
                raise ProtocolError(f"{len(frame.records)} records in one append")
        except (Fenced, ProtocolError) as error:
            self.send(
                Refused(frame.run_id, frame.fence, frame.first_part, error.code, error.message),
                f"run:{frame.run_id}",
            )
            return
        await lanes.put(frame)

    async def _beat(self, frame: Beat) -> None:
        until_ms = renewed_until(self._services.clock.now_ms())
        try:
            renewed = await self._services.state.renew_worker(
                self.worker_id, lease_until_ms=until_ms
            )
        except EverturnError as error:
            # Not answered: the worker trusts its lease no longer than the last answered beat.
            log.warning("lease.not_renewed", extra={"error": error.code})
            return
        if renewed:
            self._promised_at = self._services.clock.monotonic()
            self.send(Beat(frame.n))
        else:
            # Its runs were given away. When it connects again, Welcome says which.
            log.warning("lease.lost", extra={"worker_id": self.worker_id})
            self.close()

    async def _call(self, call: Call) -> None:
        try:
            memory = self._services.links.memory(self.worker_id)
            result = memory.get(call.id)
            if result is None:
                # A new call: the run has gone on from what it waited for. A repeated one says
                # nothing, and a repeated `suspend` is just the run that was not told.
                self.untold.discard(call.run_id)
                await self._starts.settled(call.run_id, call.fence)
                result = await carry_out(self._services, self, call)
                memory.keep(call, result)
            self.send(result, f"call:{call.id}")
        finally:
            self._calls.release()

    def _open_tail(self, frame: Tail, tasks: TaskGroup) -> None:
        held = self._held.get(frame.run_id)
        io: Io | None = "in" if frame.io == "in" else "out" if frame.io == "out" else None
        if held is None or held.session_key is None or io is None:
            return  # The run is lost, and the worker has been told or is about to be.
        if frame.sub in self._tails:
            return
        if len(self._tails) >= _TAILS_MAX:
            raise ProtocolError(f"more than {_TAILS_MAX} tails on one link")
        scope = self._tails[frame.sub] = anyio.CancelScope()
        channel = ChannelName(self.environment.id, held.session_key, io)
        tasks.start_soon(self._pump, scope, frame.sub, channel, frame.after)

    async def _pump(
        self, scope: anyio.CancelScope, sub: int, channel: ChannelName, after: int | None
    ) -> None:
        """Send what a channel holds after a cursor, and everything that comes."""
        subscription = self._services.streams.subscribe(channel, after)
        try:
            with scope:
                while True:
                    records = await subscription.next()
                    await self._sender.room()
                    self.send(
                        Records(sub, [RecordFrame.of(record) for record in records]), f"sub:{sub}"
                    )
        except EverturnError as error:
            # The store is closing or unavailable. Ending the link makes the worker come back
            # and name its cursor, which is the one way to lose nothing.
            log.warning("tail.failed", extra={"sub": sub, "error": error.code})
            self.close()
        finally:
            subscription.close()
            if self._tails.get(sub) is scope:
                del self._tails[sub]

    # --- runs kept over connections ----------------------------------------------------------

    async def _recover_unnamed(self) -> None:
        """Runs that only the rows still give to this worker, which is alive and knows better."""
        named = {held.run_id for held in self._hello.held}
        for run in await self._services.state.held_runs(self.worker_id):
            if run.id not in named:
                died = run.state is not RunState.CLAIMED
                await self._services.recovery.recover_all([run], reason="not_held", died=died)

    async def _keep(self, run_id: str, fence: int) -> bool:
        """Whether the worker still owns a run it names; if so it is held again."""
        run = await self._services.state.run(self.environment.id, run_id)
        if (
            run is None
            or run.fence != fence
            or run.worker_id != self.worker_id
            or run.state not in RESIDENT
        ):
            return False
        session = None
        if run.session_id is not None:
            session = await self._services.state.session(run.environment_id, run.session_id)
        self.hold(run, session)
        if run.state is RunState.RUNNING and run.wait is not None:
            self.untold.add(run_id)
        return True

    async def _tell_again(self) -> None:
        """Repeat Wakes that were swallowed, whenever there is a doubt. The first is at once."""
        while True:
            known = sorted(self.untold)
            if known:
                await self._services.clock.sleep(_ECHO_S)
                await self._tell(known)
            await self._doubted.wait()
            self._doubted = anyio.Event()

    async def _tell(self, known: list[str]) -> None:
        try:
            for run_id in known:
                if run_id not in self.untold:
                    continue
                run = await self._services.state.run(self.environment.id, run_id)
                if run is None or run.state is not RunState.RUNNING or run.wait is None:
                    continue
                frame = await self._services.waits.wake_frame(run)
                # Asked again, because the run may have gone on, even to its next wait, while
                # the frame was put together.
                if run_id in self.untold:
                    self.send(frame)
        except EverturnError as error:
            # The worker comes back with a new Hello, and this begins again.
            log.warning("wake.not_repeated", extra={"error": error.code})
            self.close()

    def _fenced(self, run_id: str, fence: int) -> None:
        held = self._held.get(run_id)
        if held is not None and held.fence == fence:
            self.lose(run_id, fence)


class Decode(Protocol):
    def __call__(self, message: bytes) -> list[WorkerFrame]: ...
