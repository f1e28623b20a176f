"""The workers connected to this server, and the runs that are live on them.

*Presence* (`is_live`) is what makes an append to a running agent cheap: the session's current run
was seen running here, so there is nothing to check. It is only a shadow of the state, so it errs
in one direction only. It is set by a run check, which reads the state while it holds an intent;
it is cleared before the state of the session's run changes in any way that ends its reading, and
clearing drops the intents of checks that are under way. So a mark never outlives what it says.
That holds while one server owns the state. With several, an ending made on another server cannot
clear a mark here, so presence is not used then: every append looks at the state.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from everturn.errors import EverturnError, InvalidRequest, ProtocolError
from everturn.protocol.link import Cancel, Drain, Hello, Unpacker, Wake, WorkerFrame
from everturn.rules import limits
from everturn.server.services.link import Link, Transport
from everturn.server.services.link_calls import CallMemory
from everturn.storage.ports.texts import check_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everturn.protocol.runs import TaskDeclaration
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Environment, Run

log = logging.getLogger("everturn.link")

#: Time for the first frame of a connection.
_HELLO_S: Final = 10.0


class Timer:
    """The next moment something is due; moving it forward wakes whoever sleeps until then."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def moved(self, at_ms: int | None) -> None:
        """Something is due at this time; None: nothing."""
        if at_ms is not None:
            self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, or as soon as something new was registered."""
        with anyio.move_on_after(timeout_s):
            await self._event.wait()
        self._event = anyio.Event()


class Links:
    """The registry of connected workers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._links: dict[str, Link] = {}
        self._memories: dict[str, CallMemory] = {}
        #: Workers whose link is lost -> stopwatch time at which their grace is over.
        self._gone: dict[str, float] = {}
        #: Those of them that this process has never seen.
        self._expected: set[str] = set()
        self._live: dict[str, str] = {}
        self._intents: dict[str, set[object]] = {}
        #: Moved when a wait or a delayed run may be due earlier than what the timer sleeps for.
        self.timer = Timer()
        #: Moved when a link was lost: its grace begins.
        self.graces = Timer()

    # --- presence ----------------------------------------------------------------------------

    def is_live(self, session_id: str) -> bool:
        """Whether the session's current run is running on a link here and will read its `in`."""
        return session_id in self._live

    def intend(self, session_id: str) -> object:
        """Begin a check that may set presence; give the answer to `mark` or `forgo`."""
        intent = object()
        self._intents.setdefault(session_id, set()).add(intent)
        return intent

    def mark(self, session_id: str, run: Run, intent: object) -> None:
        """The check saw this run running. Does nothing if an ending began meanwhile."""
        held = intent in self._intents.get(session_id, ())
        alone = self._services.settings.servers == 1
        if alone and held and run.worker_id in self._links:
            self._live[session_id] = run.worker_id
        self.forgo(session_id, intent)

    def forgo(self, session_id: str, intent: object) -> None:
        """The check is over and sets nothing."""
        intents = self._intents.get(session_id)
        if intents is not None:
            intents.discard(intent)
            if not intents:
                del self._intents[session_id]

    def not_live(self, session_id: str) -> None:
        """Its run suspends, ends or is swapped. Called before the state says so."""
        self._live.pop(session_id, None)
        self._intents.pop(session_id, None)

    # --- telling workers ---------------------------------------------------------------------

    def connected(self, worker_id: str | None) -> bool:
        return worker_id in self._links

    def tasks_of(self, worker_id: str) -> Sequence[TaskDeclaration]:
        """What a worker that is connected here declared in its Hello; else nothing."""
        link = self._links.get(worker_id)
        return link.tasks if link is not None else ()

    def woken(self, run: Run, frame: Wake) -> None:
        """A parked run goes on at once, if its worker is connected here; else it is told when
        it connects again, or by the server it is connected to."""
        link = self._links.get(run.worker_id or "")
        if link is not None:
            link.woken(run, frame)
        elif run.worker_id is not None:
            self._services.wakeups.notify(f"worker/{run.worker_id}")

    def doubt(self, run: Run) -> None:
        """Nobody knows whether a parked run was woken: its link looks, and tells it if so."""
        link = self._links.get(run.worker_id or "")
        if link is not None:
            link.doubt(run.id)

    def lost(self, run: Run) -> None:
        """The run belongs to somebody else now, or to nobody."""
        link = self._links.get(run.worker_id or "")
        if link is not None:
            link.lose(run.id, run.fence)

    def cancelled(self, run: Run, reason: str) -> None:
        """The run was cancelled; its worker stops it."""
        link = self._links.get(run.worker_id or "")
        if link is not None:
            link.release(run.id, run.fence)
            link.send(Cancel(run.id, reason))

    def lease_holds(self, worker_id: str) -> bool:
        """Whether a worker connected here was promised a lease that, by our stopwatch, still
        runs; whatever the wall clock says."""
        link = self._links.get(worker_id)
        return link is not None and link.lease_holds

    def close(self, worker_id: str) -> None:
        """End a worker's connection, if it is connected here."""
        link = self._links.get(worker_id)
        if link is not None:
            link.close()

    def kick(self) -> None:
        """Something may have become claimable by the clock."""
        for link in self._links.values():
            link.kick()

    def drain(self, reason: str) -> None:
        """This server goes away soon."""
        for link in self._links.values():
            link.send(Drain(reason))

    def memory(self, worker_id: str) -> CallMemory:
        """What the calls of a worker answered, over its connections."""
        return self._memories.setdefault(worker_id, CallMemory())

    # --- connections -------------------------------------------------------------------------

    async def serve(self, environment: Environment, transport: Transport) -> None:
        """Be the server end of one connection until it ends.

        Raises ProtocolError for a worker that breaks the protocol; its connection is to be
        closed then, and its runs keep their lease for the grace of a lost link.
        """
        unpacker: Unpacker[WorkerFrame] = Unpacker(WorkerFrame, limits.LINK_FRAME_BYTES_MAX)
        frames = await self._first_frames(transport, unpacker)
        if not frames:
            return
        hello = frames.pop(0)
        if not isinstance(hello, Hello):
            raise ProtocolError("the first frame of a link is hello")
        _check_names(hello)
        known = await self._services.state.worker(hello.worker_id)
        if known is not None and known.environment_id != environment.id:
            # Its name would end the other's connection and open what its calls answered (P-12).
            raise ProtocolError("this worker id is not of this environment")
        await self._end_previous(hello.worker_id)
        link = Link(self._services, environment, hello, transport)
        self._links[link.worker_id] = link
        self._gone.pop(link.worker_id, None)
        self._expected.discard(link.worker_id)
        try:
            await link.greet()
            await link.run(frames, unpacker.decode)
        finally:
            self._detach(link)

    async def _first_frames(
        self, transport: Transport, unpacker: Unpacker[WorkerFrame]
    ) -> list[WorkerFrame]:
        with anyio.move_on_after(_HELLO_S):
            while True:
                message = await transport.receive()
                if message is None:
                    return []
                if frames := unpacker.decode(message):
                    return frames
        raise ProtocolError(f"no hello within {_HELLO_S:g} s")

    async def _end_previous(self, worker_id: str) -> None:
        """A worker connects again while its old connection only looks alive."""
        while (previous := self._links.get(worker_id)) is not None:
            previous.close()
            await previous.ended.wait()

    def _detach(self, link: Link) -> None:
        del self._links[link.worker_id]
        for session_id in [s for s, worker in self._live.items() if worker == link.worker_id]:
            self.not_live(session_id)
        self._gone[link.worker_id] = self._services.clock.monotonic() + limits.LINK_GRACE_MS / 1000
        self.graces.moved(0)
        log.info("worker.disconnected", extra={"worker_id": link.worker_id})
        link.ended.set()

    @property
    def serving(self) -> bool:
        """Whether a worker serves: it is registered here, or its link was lost a moment ago.

        Workers of the process before this one do not count until they have come back: their rows
        look alive for as long as a lease, whether they are or not.
        """
        here = any(link.is_registered for link in self._links.values())
        return here or bool(self._gone.keys() - self._expected)

    def expect(self, worker_id: str) -> None:
        """A worker that an earlier process of this server knew has its grace to come back."""
        if worker_id not in self._links and worker_id not in self._gone:
            self._expected.add(worker_id)
            grace_s = limits.RESTART_GRACE_MS / 1000
            self._gone[worker_id] = self._services.clock.monotonic() + grace_s
            self.graces.moved(0)

    async def give_up_lost(self) -> int:
        """Recover the runs of workers whose link has been lost for longer than its grace.

        Raises what the store raises; a worker that could not be given up has another grace. Its
        lease is no substitute: by a clock that was set back it may run for hours.
        """
        now = self._services.clock.monotonic()
        over = [(worker_id, at) for worker_id, at in self._gone.items() if at <= now]
        for worker_id, at in over:
            if self._gone.get(worker_id) != at:
                continue  # It came back while those before it were given up.
            del self._gone[worker_id]
            self._expected.discard(worker_id)
            self._memories.pop(worker_id, None)
            try:
                await self._services.recovery.worker_gone(worker_id)
            except EverturnError:
                if worker_id not in self._links:
                    self._gone[worker_id] = now + limits.LINK_GRACE_MS / 1000
                raise
        return len(over)

    async def agree(self) -> int:
        """Compare what each worker connected here holds with the state; how many runs differed."""
        return sum([await link.agreement.compare() for link in tuple(self._links.values())])

    def next_grace_s(self) -> float | None:
        """Seconds until the next grace is over, None when no link is missing."""
        if not self._gone:
            return None
        return max(0.0, min(self._gone.values()) - self._services.clock.monotonic())


def _check_names(hello: Hello) -> None:
    """Raise ProtocolError for a name that no store takes: to connect again would not help."""
    try:
        check_texts(worker_id=hello.worker_id, version=hello.version, queues=hello.queues)
        for task in hello.tasks:
            check_texts(task_id=task.task_id, queue=task.queue)
    except InvalidRequest as error:
        raise ProtocolError(f"hello: {error.message}") from error
