"""`mock_chat_agent`: the real turn loop in one process, in virtual time (chat-agent §7).

The harness plays the parts around a run: the client that posts, the worker that runs an attempt,
and the server's one decision that matters here, starting a successor when a run has ended and
something is open or posted. Nothing in it sleeps: `advance` moves the clock, `settled` waits for
the loop to come to rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from everturn.chat.definition import ChatAgent
from everturn.chat.messages import new_message_id
from everturn.chat.reducer import MessageReducer
from everturn.clock import Clock
from everturn.errors import EverturnError
from everturn.protocol.records import (
    IN_CURSOR_HEADER,
    TOKEN_HEADER,
    TURN_COMPLETE,
    InputCursor,
    NewRecord,
    Record,
    control_record,
    data_body,
    open_envelope,
    parse_input,
    trim_target,
)
from everturn.protocol.runs import RunInfo
from everturn.tasks import registry
from everturn.tasks.failures import AttemptFailed
from everturn.tasks.runtime import running
from everturn.testing.clock import VirtualClock
from everturn.testing.runtime import SNAPSHOT, MemoryRuntime, World

Mode = Literal["preload", "submit-message", "continuation"]
Message = dict[str, Any]
RESTING: Final = frozenset({"wait", "suspended", "end"})


class HarnessTurn:
    """What one turn wrote: its chunks, and its records as a raw list with control markers."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = tuple(records)
        self.raw_chunks = raw_chunks(records)
        self.chunks = [c for c in self.raw_chunks if not str(c["type"]).startswith("trigger:")]

    @property
    def text(self) -> str:
        """All text deltas put together."""
        return "".join(c["delta"] for c in self.chunks if c["type"] == "text-delta")

    @property
    def errors(self) -> list[str]:
        return [c["errorText"] for c in self.chunks if c["type"] == "error"]

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        return [c for c in self.chunks if c["type"] == "tool-input-available"]

    @property
    def message(self) -> Message:
        """The message a client would show."""
        reducer = MessageReducer()
        for chunk in self.chunks:
            reducer.feed(chunk)
        return reducer.message

    @property
    def turn_complete(self) -> Record:
        return next(r for r in reversed(self.records) if r.control == TURN_COMPLETE)

    @property
    def cursor(self) -> InputCursor:
        return InputCursor.of(self.turn_complete)


def raw_chunks(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Chunks of data records, and `trigger:<subtype>` markers for control records."""
    found: list[dict[str, Any]] = []
    for record in records:
        if record.control is not None:
            marker: dict[str, Any] = {"type": f"trigger:{record.control}"}
            token = record.header(TOKEN_HEADER)
            if token is not None:
                marker["publicAccessToken"] = token
            found.append(marker)
        elif record.is_data:
            opened = open_envelope(record.body)
            if opened is not None:
                found.append(opened[0])
    return found


class ChatHarness:
    """Drives one chat. Made by `mock_chat_agent`."""

    def __init__(
        self,
        agent: ChatAgent[Any],
        tasks: TaskGroup,
        *,
        chat_id: str,
        client_data: Any,
        clock: Clock | None,
        payload: Mapping[str, Any],
    ) -> None:
        self.agent = agent
        self.chat_id = chat_id
        self.client_data = client_data
        self.world = World(chat_id, clock=clock)
        self._tasks = tasks
        self._payload = dict(payload)
        self._scope: anyio.CancelScope | None = None
        self._changed = anyio.Event()
        self._runs = 0
        self._run_id = ""
        self.runtime: MemoryRuntime | None = None
        self.state = "none"
        #: Names of hooks, and `run`, in the order they were called.
        self.hook_calls: list[str] = []
        #: The same with their events.
        self.events: list[tuple[str, Any]] = []
        #: `(run id, how it ended)`: completed, failed, crashed.
        self.outcomes: list[tuple[str, str]] = []
        self.error: BaseException | None = None

    # --- observing (chat.state.Observer) ---------------------------------------------------------

    def hook(self, name: str, event: Any) -> None:
        self.hook_calls.append(name)
        self.events.append((name, event))

    def phase(self, name: str) -> None:
        self.state = name
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def suspended(self) -> bool:
        return self.runtime is not None and self.runtime.suspended

    @property
    def alive(self) -> bool:
        """Whether a run is in progress, waiting ones included."""
        return self._scope is not None

    @property
    def run_id(self) -> str:
        """Of the newest run."""
        return self._run_id

    def event(self, name: str) -> Any:
        """The newest event of a hook."""
        return next(event for called, event in reversed(self.events) if called == name)

    async def settled(self) -> None:
        """Return when the loop is idle, suspended or ended."""
        while True:
            await anyio.wait_all_tasks_blocked()
            if not self.alive or self.state in RESTING:
                return
            await self._changed.wait()

    async def reached(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` holds at a moment when nothing else can run."""
        while not condition():
            await anyio.wait_all_tasks_blocked()
            if condition():
                return
            await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        assert isinstance(self.world.clock, VirtualClock), "only virtual time can be moved"
        await self.world.clock.advance(seconds)

    # --- the parts of worker and server ----------------------------------------------------------

    async def start(self, *, attempt: int = 1, payload: Mapping[str, Any] | None = None) -> None:
        """Claim a run: a new one, or with `attempt` > 1 the same one again."""
        if attempt == 1:
            self._runs += 1
            self._run_id = self.world.ids.new("run")
        body = dict(self._payload if payload is None else payload)
        body = {"chatId": self.chat_id, "sessionId": "session_test", **body}
        if self.client_data is not None:
            body.setdefault("metadata", self.client_data)
        self._payload = body
        previous = self.runtime
        cursor = previous.cursor if previous is not None and attempt == 1 else InputCursor()
        now = self.world.clock.now_ms()
        info = RunInfo(
            run_id=self._run_id,
            task_id=self.agent.task_id,
            environment_id="env_test",
            environment_slug="dev",
            fence=await self.world.next_fence(),
            attempt=attempt,
            payload=msgspec.json.encode(body),
            session_id="session_test",
            session_key=self.world.session,
            cursor=cursor.seq_num,
            decided=tuple(sorted(cursor.decided)),
            version="v1",
            queue=f"task/{self.agent.task_id}",
            max_attempts=2,
            created_at_ms=now,
            started_at_ms=now,
        )
        self._scope = anyio.CancelScope()
        self.state = "boot"
        self._tasks.start_soon(self._work, info, self._scope)
        await anyio.wait_all_tasks_blocked()

    async def _work(self, info: RunInfo, scope: anyio.CancelScope) -> None:
        outcome = "crashed"
        with scope:
            async with anyio.create_task_group() as tasks:
                runtime = self.runtime = MemoryRuntime(self.world, info, tasks)
                try:
                    with running(runtime):
                        await self.agent.run(runtime, self)
                    await runtime.flush()
                    outcome = "completed"
                except AttemptFailed as decided:
                    self.error, outcome = decided, decided.outcome.kind
                except Exception as error:  # how an attempt ends is what tests look at
                    self.error, outcome = error, "failed"
                tasks.cancel_scope.cancel()
        if self._scope is scope:
            self._scope = None
            self.outcomes.append((info.run_id, outcome))
            if outcome == "completed" and await self._has_open():
                await self._continue()
            self._notify()

    async def _has_open(self) -> bool:
        """Whether a record that wants an answer is left (rulings §1.10)."""
        assert self.runtime is not None
        cursor = self.runtime.cursor
        records = await self.world.read_all("in", after=cursor.seq_num)
        items = [parse_input(record) for record in records]
        return any(i.needs_answer and not cursor.covers(i.seq_num) for i in items)

    async def _continue(self) -> None:
        kept = {k: v for k, v in self._payload.items() if k not in ("message", "trigger")}
        await self.start(payload={**kept, "continuation": True, "previousRunId": self._run_id})

    async def crash(self) -> None:
        """Kill the process: nothing more is written, nothing is finalised."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.cancel()
            self.outcomes.append((self._run_id, "crashed"))
        await anyio.wait_all_tasks_blocked()

    async def drain(self) -> None:
        """Tell the run that its process is about to go; it ends when no turn is in progress."""
        assert self.runtime is not None
        self.runtime.draining.abort("the worker is stopping")
        await anyio.wait_all_tasks_blocked()

    async def restart(self, attempt: int | None = None) -> None:
        """Boot again: the next attempt of the same run, or a continuation when None."""
        if self.runtime is not None and attempt is None:
            self.runtime.cursor = InputCursor()
        if attempt is None:
            await self._continue()
        else:
            await self.start(attempt=attempt)

    async def _ensure_run(self) -> None:
        if self._scope is None:
            if self._runs == 0:
                await self.start()
            else:
                await self._continue()

    # --- driving -------------------------------------------------------------------------------

    def user(self, message: Message | str) -> Message:
        if isinstance(message, dict):
            return message
        parts = [{"type": "text", "text": message}]
        return {"id": new_message_id(self.world.ids), "role": "user", "parts": parts}

    async def post(self, chunk: Any, *, part_id: str | None = None) -> int:
        """Append any input chunk (or text) and see that a run reads it. Does not wait."""
        text = chunk if isinstance(chunk, str) else msgspec.json.encode(chunk).decode()
        seq_num = await self.world.post(text, part_id=part_id)
        await self._ensure_run()
        return seq_num

    send_raw = post

    def wire(self, trigger: str, **fields: Any) -> dict[str, Any]:
        """The input chunk of a message record."""
        payload = {"chatId": self.chat_id, "trigger": trigger, **fields}
        if self.client_data is not None:
            payload.setdefault("metadata", self.client_data)
        return {"kind": "message", "payload": payload}

    async def post_message(self, message: Message | str, **fields: Any) -> int:
        """Append a user message and do not wait for its turn; its seq_num."""
        made = self.user(message)
        return await self.post(self.wire("submit-message", message=made, **fields))

    async def send_message(self, message: Message | str, **fields: Any) -> HarnessTurn:
        """One message; returns at the next turn-complete."""
        made = self.user(message)
        return await self.send(self.wire("submit-message", message=made, **fields))

    async def send_regenerate(self) -> HarnessTurn:
        return await self.send(self.wire("regenerate-message"))

    async def send_action(self, action: Any) -> HarnessTurn:
        return await self.send(self.wire("action", action=action))

    async def send_stop(self, message: str | None = None, *, target: int | None = None) -> int:
        """Stop the turn in progress, or the one of the message `target`. Does not wait."""
        chunk: dict[str, Any] = {"kind": "stop"}
        if message is not None:
            chunk["message"] = message
        if target is not None:
            chunk["targetSeq"] = target
        return await self.post(chunk)

    async def send_close(self) -> int:
        return await self.post(self.wire("close"))

    async def send(self, chunk: Any) -> HarnessTurn:
        """Append an input and return at the next turn-complete."""
        tail = (await self.world.streams.bounds(self.world.channel("out"))).tail
        await self.post(chunk)
        return await self.turn_after(tail - 1)

    async def turn_after(self, seq_num: int) -> HarnessTurn:
        """The records after `seq_num`, up to and with the next turn-complete.

        Raises EverturnError when the run ends without one and none follows it.
        """
        fresh: list[Record] = []
        seen = seq_num if seq_num >= 0 else None
        while True:
            for record in await self.world.read_all("out", after=seen):
                seen = record.seq_num
                fresh.append(record)
                if record.control == TURN_COMPLETE:
                    return HarnessTurn(fresh)
            if not self.alive:
                raise EverturnError(f"no run is left to answer: {self.outcomes}") from self.error
            await self._progress(seen)

    async def _progress(self, seen: int | None) -> None:
        """Return when something was written after `seen`, or the run changed its phase."""
        watch = self.world.streams.subscribe(self.world.channel("out"), seen)
        changed = self._changed
        async with anyio.create_task_group() as race:

            async def written() -> None:
                await watch.next()
                race.cancel_scope.cancel()

            race.start_soon(written)
            await changed.wait()
            race.cancel_scope.cancel()
        watch.close()

    # --- seeding and looking ---------------------------------------------------------------------

    async def seed_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """What the next boot reads."""
        await self.world.objects.put(SNAPSHOT, msgspec.json.encode(snapshot))

    async def get_snapshot(self) -> dict[str, Any] | None:
        """The stored snapshot."""
        data = await self.world.objects.get(SNAPSHOT)
        found: dict[str, Any] | None = None if data is None else msgspec.json.decode(data)
        return found

    async def seed_out(self, *items: Mapping[str, Any]) -> list[int]:
        """Chunks on `.out`, written by nobody in particular.

        A `trigger:turn-complete` marker becomes a control record, with `cursor` as its header.
        """
        made: list[NewRecord] = []
        for item in items:
            if item["type"] == "trigger:turn-complete":
                cursor = item.get("cursor")
                headers = [] if cursor is None else [(IN_CURSOR_HEADER, str(cursor))]
                made.append(control_record(TURN_COMPLETE, headers))
            else:
                part = self.world.ids.part()
                made.append(NewRecord(data_body(msgspec.json.encode(item), part), (), part))
        return list((await self.world.streams.append(self.world.channel("out"), made)).seq_nums)

    async def seed_in(self, *items: Message | str) -> list[int]:
        """User messages (or whole chunks, by their `kind`) on `.in`, before a run reads them."""
        seqs = []
        for item in items:
            whole = isinstance(item, dict) and "kind" in item
            chunk = item if whole else self.wire("submit-message", message=self.user(item))
            seqs.append(await self.world.post(msgspec.json.encode(chunk).decode()))
        return seqs

    async def records(self, io: Literal["in", "out"] = "out") -> list[Record]:
        """All records ever written, trimmed ones included."""
        return await self.world.read_all(io)

    async def turns(self) -> list[HarnessTurn]:
        """All complete turns so far."""
        found: list[HarnessTurn] = []
        open_: list[Record] = []
        for record in await self.records():
            open_.append(record)
            if record.control == TURN_COMPLETE:
                found.append(HarnessTurn(open_))
                open_ = []
        return found

    async def trims(self) -> list[int]:
        """What trim commands asked for, in order."""
        targets = [trim_target(r.headers, r.body) for r in await self.records()]
        return [target for target in targets if target is not None]

    async def all_chunks(self) -> list[dict[str, Any]]:
        raw = await self.all_raw_chunks()
        return [chunk for chunk in raw if not str(chunk["type"]).startswith("trigger:")]

    async def all_raw_chunks(self) -> list[dict[str, Any]]:
        return raw_chunks(await self.records())


@asynccontextmanager
async def mock_chat_agent(
    agent: ChatAgent[Any] | str,
    *,
    chat_id: str = "test-chat",
    client_data: Any = None,
    mode: Mode | None = None,
    preload: bool = True,
    continuation: bool = False,
    previous_run_id: str | None = None,
    snapshot: Mapping[str, Any] | None = None,
    attempt: int = 1,
    clock: Clock | None = None,
    start: bool = True,
    idle_timeout_s: float | None = None,
) -> AsyncIterator[ChatHarness]:
    """A running chat agent, and the client, worker and clock around it.

    Args:
        agent: the agent, or the id of a registered one.
        mode: the boot payload; derived from `preload` and `continuation` when left out. In mode
            `submit-message` the run starts with the first message that is posted (D-23).
        start: False leaves starting to the first `send_…`, so that a test can seed first.

    Raises LookupError for an id nobody registered.
    """
    found = registry.current().get(agent) if isinstance(agent, str) else agent
    if not isinstance(found, ChatAgent):
        raise LookupError(f"no chat agent {agent!r} is registered")
    mode = mode or ("continuation" if continuation else "preload" if preload else "submit-message")
    payload: dict[str, Any] = (
        {"continuation": True} if mode == "continuation" else {"trigger": mode}
    )
    if previous_run_id is not None:
        payload["previousRunId"] = previous_run_id
    if idle_timeout_s is not None:
        payload["idleTimeoutInSeconds"] = idle_timeout_s
    async with anyio.create_task_group() as tasks:
        harness = ChatHarness(
            found,
            tasks,
            chat_id=chat_id,
            client_data=client_data,
            clock=clock,
            payload=payload,
        )
        if snapshot is not None:
            await harness.seed_snapshot(snapshot)
        try:
            if start and mode != "submit-message":
                await harness.start(attempt=attempt)
            yield harness
        finally:
            tasks.cancel_scope.cancel()
