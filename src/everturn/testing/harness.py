"""`mock_chat_agent`: the real turn loop in one process, in virtual time (chat-agent §7).

The harness plays the parts around a run: the client that posts, the worker that runs an attempt,
and the server's one decision that matters here, starting a successor when a run has ended and
something is open or posted. Nothing in it sleeps: `advance` moves the clock, `settled` waits for
the loop to come to rest.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anyio
import httpx2
import msgspec
from anyio.abc import TaskGroup

from everturn.chat.definition import ChatAgent
from everturn.chat.local import ChatLocal
from everturn.client import config
from everturn.clock import Clock
from everturn.errors import EverturnError
from everturn.protocol.records import TURN_COMPLETE, InputCursor, Record, parse_input
from everturn.protocol.runs import RunInfo
from everturn.tasks import registry
from everturn.tasks import scope as scopes
from everturn.tasks.definition import Task
from everturn.tasks.failures import AttemptFailed
from everturn.tasks.runtime import running
from everturn.testing.clock import VirtualClock
from everturn.testing.harness_driver import CLOSE_S_MAX, Driver
from everturn.testing.harness_session import SessionSide
from everturn.testing.harness_turn import HarnessTurn as HarnessTurn
from everturn.testing.nearby import KEY, URL, Nearby
from everturn.testing.quiet import at_rest
from everturn.testing.runtime import MemoryRuntime, World
from everturn.testing.task_context import context_with

Mode = Literal["preload", "submit-message", "continuation", "handover-prepare"]
Message = dict[str, Any]
#: `set(local, value)`: gives a `chat.local` its value before the agent starts.
SetLocal = Callable[[ChatLocal[Any], Any], None]
SetupLocals = Callable[[SetLocal], Awaitable[None] | None]
RESTING: Final = frozenset({"wait", "suspended", "end"})
_LOOK_AGAIN_S: Final = 0.05


class ChatHarness(Driver):
    """Drives one chat. Made by `mock_chat_agent`.

    Attributes:
        state: what the run does: boot, preload, handover, wait, turn, action, suspended, end.
        hook_calls: names of hooks, and `tools` and `run`, in the order they were called.
        events: the same with their events.
        timeline: the hook calls, and between them what was stored: `TC` (a turn-complete),
            `SN` (a snapshot), `upgrade-required`.
        outcomes: `(run id, how it ended)`: completed, failed, crashed.
        error: what the newest run failed with.
    """

    def __init__(
        self,
        agent: ChatAgent[Any],
        tasks: TaskGroup,
        *,
        chat_id: str,
        client_data: Any,
        clock: Clock | None,
        payload: Mapping[str, Any],
        task_context: Mapping[str, Any] | None = None,
        setup_locals: SetupLocals | None = None,
        started_tasks: Sequence[Task[Any]] = (),
    ) -> None:
        super().__init__(World(chat_id, clock=clock))
        self.world.stored = self._stored
        self.world.spawn = tasks.start_soon
        self.world.nearby = Nearby(self.world, started_tasks)
        self.agent = agent
        self.chat_id = chat_id
        self.client_data = client_data
        self._tasks = tasks
        self._payload = dict(payload)
        self._task_context = dict(task_context or {})
        self._setup_locals = setup_locals
        self._scope: anyio.CancelScope | None = None
        self._changed = anyio.Event()
        self._runs = 0
        self._run_id = ""
        self.runtime: MemoryRuntime | None = None
        self.state = "none"
        self.hook_calls: list[str] = []
        self.events: list[tuple[str, Any]] = []
        self.timeline: list[str] = []
        self.outcomes: list[tuple[str, str]] = []
        self.error: BaseException | None = None
        self._left = False
        #: Whether it is being found out if the run that ended has a successor.
        self._deciding = False
        #: Held while a run is started, so that two reasons for it start one.
        self._starting = anyio.Lock()

    # --- observing (chat.state.Observer) ---------------------------------------------------------

    def hook(self, name: str, event: Any) -> None:
        """A hook, the tools of a turn, or `run`, is about to be called."""
        if self._left:
            return
        self.hook_calls.append(name)
        self.timeline.append(name)
        self.events.append((name, event))

    def phase(self, name: str) -> None:
        """The run goes on to something else."""
        self.state = name
        self._notify()

    def _stored(self, what: str) -> None:
        self.timeline.append({TURN_COMPLETE: "TC"}.get(what, what))

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def suspended(self) -> bool:
        """Whether the newest run has given up its slot."""
        return self.runtime is not None and self.runtime.suspended

    @property
    def session(self) -> SessionSide:
        """What outlives the runs: records, trims, waitpoints, swaps, the snapshot, wait tokens."""
        return self

    @property
    def alive(self) -> bool:
        """Whether a run is in progress, waiting ones included."""
        return self._scope is not None or self._deciding

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
            await at_rest()
            if not self.alive or self.state in RESTING:
                return
            await self._changed.wait()

    async def reached(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` holds at a moment when nothing else can run."""
        while not condition():
            await at_rest()
            if condition():
                return
            # Work in threads and processes tells nobody when it is done: look again.
            with anyio.move_on_after(_LOOK_AGAIN_S):
                await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        assert isinstance(self.world.clock, VirtualClock), "only virtual time can be moved"
        await self.world.clock.advance(seconds)

    # --- the parts of worker and server ----------------------------------------------------------

    async def start(self, *, attempt: int = 1, payload: Mapping[str, Any] | None = None) -> None:
        """Claim a run: a new one, or with `attempt` > 1 the same one again."""
        await self._plant()
        if attempt == 1 or not self._run_id:
            self._runs += 1
            self._run_id = self.world.ids.new("run")
        body = dict(self._payload if payload is None else payload)
        body = {"chatId": self.chat_id, "sessionId": "session_test", **body}
        if self.client_data is not None:
            body.setdefault("metadata", self.kept.portable(self.client_data))
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
            max_attempts=_attempts_max(self.agent),
            created_at_ms=now,
            started_at_ms=now,
        )
        self._scope = anyio.CancelScope()
        self.state = "boot"
        self._tasks.start_soon(self._work, info, self._scope)
        await at_rest()

    async def _work(self, info: RunInfo, scope: anyio.CancelScope) -> None:
        outcome = "crashed"
        with scope:
            async with anyio.create_task_group() as tasks:
                runtime = self.runtime = MemoryRuntime(self.world, info, tasks)
                scope_of_run = scopes.of(runtime)
                scope_of_run.context = context_with(scope_of_run.context, self._overrides(info))
                try:
                    with running(runtime):
                        self._surround()
                        await self._set_locals()
                        await self.kept.agent(self.agent).run(runtime, self)
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
            await self._succeed(outcome)
            self._notify()

    async def _succeed(self, outcome: str) -> None:
        """Go on in another run if something is open; not beside one that a message has started."""
        self._deciding = True
        try:
            async with self._starting:
                if self._scope is None and outcome == "completed" and await self._has_open():
                    await self._continue()
        finally:
            self._deciding = False

    def _surround(self) -> None:
        """Calls of the author's code go to this world, unless the test says where they go."""
        if not config.is_set():
            transport = httpx2.MockTransport(self.world.nearby.answer)
            config.enter(config.ClientConfig(url=URL, secret_key=KEY, transport=transport))

    def _overrides(self, info: RunInfo) -> dict[str, Any]:
        """What the test says of `ctx`; the attempt's number is the one that really runs."""
        return {**self._task_context, "attempt.number": info.attempt}

    async def _set_locals(self) -> None:
        if self._setup_locals is not None:
            made = self._setup_locals(lambda local, value: local.init(value))
            if inspect.isawaitable(made):
                await made

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
        await at_rest()

    async def drain(self) -> None:
        """Tell the run that its process is about to go; it ends when no turn is in progress."""
        assert self.runtime is not None
        self.runtime.draining.abort("the worker is stopping")
        await at_rest()

    async def restart(self, attempt: int | None = None) -> None:
        """Boot again: the next attempt of the same run, or a continuation when None."""
        if self.runtime is not None and attempt is None:
            self.runtime.cursor = InputCursor()
        if attempt is None:
            await self._continue()
        else:
            await self.start(attempt=attempt)

    async def leave(self) -> None:
        """`close`, at the end of the `async with` block: what it calls is not logged any more."""
        self._left = True
        await self.close()

    async def close(self) -> None:
        """Send a close, end the run if it does not end by that, and wait a second at most.

        A run in the middle of a turn is not waited for; its process goes away, as in `crash`.
        """
        with anyio.move_on_after(CLOSE_S_MAX):
            if self.alive and self.state in RESTING:
                await self.world.post(msgspec.json.encode(self.wire("close")).decode())
                await self.reached(lambda: not self.alive or self.state not in RESTING)
            await self.crash()

    async def _ensure_run(self) -> None:
        async with self._starting:
            if self._scope is None:
                await (self.start() if self._runs == 0 else self._continue())

    # --- reading turns ---------------------------------------------------------------------------

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
                    before = [r for r in await self.records() if r.seq_num < fresh[0].seq_num]
                    return await self.turn_of(fresh, earlier=before)
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
    head_start_messages: Sequence[Message] | None = None,
    task_context: Mapping[str, Any] | None = None,
    setup_locals: SetupLocals | None = None,
    attempt: int = 1,
    clock: Clock | None = None,
    start: bool = True,
    idle_timeout_s: float | None = None,
    tasks: Sequence[Task[Any]] | None = None,
) -> AsyncIterator[ChatHarness]:
    """A running chat agent, and the client, worker and clock around it.

    Args:
        agent: the agent, or the id of a registered one.
        chat_id: names the chat and its session.
        client_data: sent as `metadata` with everything. May hold things that JSON has no form
            for, such as a fake model: the agent gets them as they are.
        mode: the boot payload; derived from `preload` and `continuation` when left out. In mode
            `submit-message` the run starts with the first message that is posted (D-23).
        previous_run_id: of a continuation.
        snapshot: what the boot finds stored.
        head_start_messages: the history in the boot payload of mode `handover-prepare`.
        task_context: members of `ctx` to replace, nested or dotted: `{"attempt.number": 2}`.
        setup_locals: called with `set(local, value)` before each run starts, before `on_boot`:
            the place to hand in fakes.
        attempt: which attempt the first run is.
        clock: virtual when left out.
        idle_timeout_s: the payload's hint.
        tasks: tasks that the agent may start, as tools or otherwise: each is run once, in this
            process. All that are registered when left out.
        start: False leaves starting to the first `send_…`, so that a test can seed first.

    Raises LookupError for an id nobody registered.
    """
    definitions = registry.current().definitions
    if tasks is None:
        tasks = [defined for defined in definitions.values() if isinstance(defined, Task)]
    found = definitions.get(agent) if isinstance(agent, str) else agent
    if not isinstance(found, ChatAgent):
        raise LookupError(f"no chat agent {agent!r} is registered")
    mode = mode or ("continuation" if continuation else "preload" if preload else "submit-message")
    payload: dict[str, Any] = (
        {"continuation": True} if mode == "continuation" else {"trigger": mode}
    )
    if mode == "handover-prepare" and head_start_messages is not None:
        payload["headStartMessages"] = list(head_start_messages)
    attempt = _attempt(task_context) or attempt
    if previous_run_id is not None:
        payload["previousRunId"] = previous_run_id
    if idle_timeout_s is not None:
        payload["idleTimeoutInSeconds"] = idle_timeout_s
    async with anyio.create_task_group() as group:
        harness = ChatHarness(
            found,
            group,
            chat_id=chat_id,
            client_data=client_data,
            clock=clock,
            payload=payload,
            task_context=task_context,
            setup_locals=setup_locals,
            started_tasks=tasks,
        )
        if snapshot is not None:
            await harness.seed_snapshot(snapshot)
        try:
            if start and mode != "submit-message":
                await harness.start(attempt=attempt)
            yield harness
            await harness.leave()
        finally:
            group.cancel_scope.cancel()


def _attempts_max(agent: ChatAgent[Any]) -> int:
    """How often a server would try a run of this agent."""
    config = agent.declaration().config
    declared = config.get("maxAttempts", config["retry"]["maxAttempts"])
    return int(declared)


def _attempt(task_context: Mapping[str, Any] | None) -> int | None:
    """The attempt that `task_context` asks for, nested or dotted."""
    given = task_context or {}
    nested = given.get("attempt")
    number = given.get("attempt.number", nested.get("number") if nested else None)
    return number if isinstance(number, int) else None
