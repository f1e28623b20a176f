"""A server's services over the memory engines, and a scripted worker at the end of a link."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from everturn.ids import RandomIds
from everturn.protocol.link import (
    Acked,
    Append,
    Call,
    Claim,
    Credit,
    HeldRun,
    Hello,
    Packer,
    Result,
    ServerFrame,
    Started,
    Unpacker,
    Welcome,
)
from everturn.protocol.records import (
    TURN_COMPLETE,
    ChannelName,
    InputCursor,
    NewRecord,
    Record,
    control_record,
    data_body,
    input_body,
    open_envelope,
)
from everturn.protocol.runs import RunInfo, RunOutcome, TaskDeclaration
from everturn.rules import limits
from everturn.rules.run_states import RunState
from everturn.server.services import Services
from everturn.server.settings import Settings
from everturn.storage.memory.objects import MemoryObjects
from everturn.storage.memory.state import MemoryState
from everturn.storage.memory.streams import MemoryStreams
from everturn.storage.memory.wakeups import MemoryWakeups
from everturn.storage.ports.rows import Environment, NewSession, Run, Session

FrameT = TypeVar("FrameT")
PATIENCE_S = 5.0


class HandClock:
    """Time that a test moves; sleeping only lets others run."""

    def __init__(self) -> None:
        self.at_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic(self) -> float:
        return self.at_ms / 1000

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    def advance(self, ms: int) -> None:
        self.at_ms += ms


class Kit:
    """Services over memory engines, one environment, and the verbs tests speak in."""

    def __init__(self, *, tasks: Sequence[TaskDeclaration] = ()) -> None:
        self.clock = HandClock()
        self.tasks = list(tasks) or [
            TaskDeclaration(task_id="chatty", kind="agent"),
            TaskDeclaration(task_id="plain", kind="task"),
        ]
        self.state = MemoryState()
        self.streams = MemoryStreams(self.clock)
        self.wakeups = MemoryWakeups()
        self.objects = MemoryObjects()
        self.services = self.new_server()
        self.environment: Environment

    def new_server(self) -> Services:
        """Another server process over the same stores: what a restart leaves."""
        return Services(
            settings=Settings(),
            clock=self.clock,
            ids=RandomIds(),
            state=self.state,
            streams=self.streams,
            objects=self.objects,
            wakeups=self.wakeups,
            master_key=bytes(32),
        )

    async def open(self) -> Kit:
        self.environment = await self.state.ensure_environment("dev", now_ms=self.clock.now_ms())
        return self

    async def session(
        self, key: str = "chat-1", *, task_id: str = "chatty", **base: Any
    ) -> Session:
        """Open a session; `base` is its basePayload."""
        opened = await self.state.open_session(
            self.environment.id,
            NewSession(
                id=self.services.ids.new("session"),
                external_id=key,
                type="chat.agent",
                task_id=task_id,
                trigger_config={"basePayload": {"trigger": "preload", "chatId": key, **base}},
            ),
            self.services.dispatch.session_run,
            now_ms=self.clock.now_ms(),
        )
        if opened.run_created:
            await self.services.dispatch.created(opened.run, opened.session)
        return opened.session

    async def say(self, session: Session, text: str, *, check: bool = True) -> int:
        """Append a message to `in`; without `check` the server dies before the run check."""
        chunk = {
            "kind": "message",
            "payload": {
                "trigger": "submit-message",
                "message": {"id": text, "role": "user", "parts": []},
            },
        }
        part = f"say-{text}"
        body = input_body(msgspec.json.encode(chunk).decode(), part)
        appended = await self.streams.append(
            self.channel(session, "in"), [NewRecord(body, (), part)]
        )
        if check:
            await self.services.dispatch.ensure_run(session)
        return appended.seq_nums[0]

    def channel(self, session: Session, io: str) -> ChannelName:
        return ChannelName(self.environment.id, session.key, "in" if io == "in" else "out")

    async def out(self, session: Session) -> list[Record]:
        return list(await self.streams.read(self.channel(session, "out"), after=None))

    async def row(self, session: Session) -> Session:
        row = await self.state.session(self.environment.id, session.id)
        assert row is not None
        return row

    async def current(self, session: Session) -> Run:
        row = await self.row(session)
        assert row.current_run_id is not None
        return await self.run(row.current_run_id)

    async def run(self, run_id: str) -> Run:
        run = await self.state.run(self.environment.id, run_id)
        assert run is not None
        return run

    @asynccontextmanager
    async def worker(
        self,
        worker_id: str = "worker_1",
        *,
        version: str = "v1",
        credit: int = 10,
        held: Sequence[HeldRun] = (),
        services: Services | None = None,
        tasks: Sequence[TaskDeclaration] | None = None,
    ) -> AsyncIterator[FakeWorker]:
        """A connected worker; leaving the block breaks its connection."""
        worker = FakeWorker(worker_id)
        async with anyio.create_task_group() as group:
            serving = (services or self.services).links
            group.start_soon(serving.serve, self.environment, worker)
            worker.send(Hello(worker_id, version, list(tasks or self.tasks), {}, list(held)))
            try:
                worker.welcome = await worker.expect(Welcome)
                worker.send(Credit(credit))
                yield worker
            finally:
                worker.hang_up()


class FakeWorker:
    """The other end of a link, by hand. It is the transport and the script at once."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.welcome: Welcome
        self.frames: list[ServerFrame] = []
        self._came = anyio.Event()
        self._packer = Packer(64 * 1024)
        self._unpacker: Unpacker[ServerFrame] = Unpacker(ServerFrame, limits.LINK_FRAME_BYTES_MAX)
        self._to_server: deque[bytes | None] = deque()
        self._sent = anyio.Event()
        self._calls = 0

    # --- as a transport ----------------------------------------------------------------------

    async def receive(self) -> bytes | None:
        while not self._to_server:
            self._sent = anyio.Event()
            await self._sent.wait()
        return self._to_server.popleft()

    async def send_message(self, message: bytes) -> None:
        self.frames.extend(self._unpacker.decode(message))
        self._came.set()

    # `Transport.send` takes bytes; a script sends frames.
    def send(self, what: Any) -> Any:
        if isinstance(what, bytes):
            return self.send_message(what)
        self._to_server.append(Packer.message(self._packer.encode(what)))
        self._sent.set()
        return None

    def hang_up(self) -> None:
        self._to_server.append(None)
        self._sent.set()

    # --- as a script -------------------------------------------------------------------------

    async def expect(
        self, kind: type[FrameT], where: Callable[[FrameT], bool] = lambda _: True
    ) -> FrameT:
        """The next frame of this kind; the others stay."""
        with anyio.fail_after(PATIENCE_S):
            while True:
                for at, frame in enumerate(self.frames):
                    if isinstance(frame, kind) and where(frame):
                        del self.frames[at]
                        return frame
                self._came = anyio.Event()
                await self._came.wait()

    async def claim(self, *, start: bool = True) -> RunInfo:
        info = (await self.expect(Claim)).run
        if start:
            self.send(Started(info.run_id, info.fence))
        return info

    async def call(self, info: RunInfo, method: str, **params: Any) -> Any:
        """Make a call and answer its value. Raises AssertionError with its error."""
        result = await self.call_raw(info, method, **params)
        assert result.error is None, result.error
        return result.value

    async def call_raw(
        self, info: RunInfo, method: str, *, id: str | None = None, **params: Any
    ) -> Result:
        self._calls += 1
        call_id = id or f"{self.worker_id}-{self._calls}"
        self.send(Call(call_id, info.run_id, info.fence, method, params))
        return await self.expect(Result, lambda result: result.id == call_id)

    async def write(self, info: RunInfo, first_part: int, *records: NewRecord) -> Acked:
        self.send(Append(info.run_id, info.fence, first_part, list(records)))
        return await self.expect(
            Acked, lambda a: a.run_id == info.run_id and a.first_part == first_part
        )

    async def finish(self, info: RunInfo, kind: Any = "completed", **members: Any) -> None:
        outcome = RunOutcome(kind=kind, **members)
        await self.call(info, "finish", outcome=msgspec.to_builtins(outcome))

    async def suspend(self, info: RunInfo, after: int | None, **members: Any) -> None:
        await self.call(info, "suspend", wait={"kind": "channel", "after": after, **members})


def chunk(text: str = "hello") -> NewRecord:
    return NewRecord(data_body(msgspec.json.encode({"type": "text-delta", "delta": text}), "x"))


def turn_complete(cursor: int | None) -> NewRecord:
    return control_record(TURN_COMPLETE, InputCursor(cursor).headers())


def errors_in(records: Sequence[Record]) -> list[str]:
    """The texts of error chunks."""
    found = []
    for record in records:
        opened = open_envelope(record.body) if record.is_data else None
        if opened is not None and opened[0].get("type") == "error":
            found.append(opened[0]["errorText"])
    return found


def cursors_in(records: Sequence[Record]) -> list[int | None]:
    """The cursors of the turn-completes."""
    return [InputCursor.of(r).seq_num for r in records if r.control == TURN_COMPLETE]


async def until(condition: Callable[[], Any]) -> None:
    """Poll a condition that other tasks make true."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            answer = condition()
            if hasattr(answer, "__await__"):
                answer = await answer
            if answer:
                return
            await anyio.sleep(0.001)


async def in_state(kit: Kit, run_id: str, state: RunState) -> None:
    async def there() -> bool:
        return (await kit.run(run_id)).state is state

    await until(there)
