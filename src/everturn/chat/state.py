"""The state of one chat run and of one turn, and the context variable that finds them.

`ChatRun` lives as long as the run: over its turns and suspensions, never over an attempt.
`TurnState` lives for one turn or action. Both are plain holders: the rules are in `boot`, `turn`
and `turn_loop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from anyio.abc import TaskGroup

from everturn.chat import tracing
from everturn.chat.background import Background, Deferred
from everturn.chat.failures import say_where
from everturn.chat.history import Lane
from everturn.chat.intake import Intake
from everturn.chat.output import Chunk, DataParts, Outlet, Writer
from everturn.chat.policy import Policy
from everturn.chat.steering import Steering
from everturn.chat.stream_options import UIStreamOptions
from everturn.chat.tokens import Tokens
from everturn.chat.transcript import Transcript
from everturn.errors import ChatContextError
from everturn.protocol.records import Input, InputCursor
from everturn.rules.trimming import TrimChain
from everturn.tasks import scope
from everturn.tasks.context import TaskContext
from everturn.tasks.runtime import RunRuntime
from everturn.tasks.signals import Signal

log = logging.getLogger("everturn.chat")

if TYPE_CHECKING:
    from everturn.chat.compaction import Inner, LaneStart
    from everturn.chat.definition import ChatAgent
    from everturn.chat.handover import Handover
    from everturn.chat.prompts import StoredPrompt
    from everturn.chat.skills import ResolvedSkill

Message = dict[str, Any]


class Observer(Protocol):
    """Told what a run does, as it does it: hook calls and phases. For logs, spans and tests."""

    def hook(self, name: str, event: Any) -> None:
        """A registered hook, or `run`, is about to be called."""
        ...

    def phase(self, name: str) -> None:
        """boot, preload, wait, turn, action, suspended, end."""
        ...


class NoObserver:
    def hook(self, name: str, event: Any) -> None:
        pass

    def phase(self, name: str) -> None:
        pass


@dataclass(frozen=True)
class Restart:
    """An answer that a dead attempt left without its turn-complete (rulings §1.6)."""

    #: The `.in` number of the message it answered; None when that cannot be told.
    seq_num: int | None
    #: The id it was streamed under; None when it had no `start` yet.
    message_id: str | None
    #: End chunks for the text and reasoning parts that were left open.
    ends: tuple[Chunk, ...] = ()
    #: What it had said, whole parts only; for a message that will not be answered any more.
    partial: Message | None = None


@dataclass
class TurnState:
    """One turn or action, from T1 to its turn-complete."""

    item: Input
    stop: Signal
    signal: Signal
    turn: int
    #: Lets go of the run's own signal.
    release: Callable[[], object] = lambda: None
    client_data: Any = None
    tools: Any = None
    token: str = ""
    #: The id that a dead attempt streamed this answer under.
    restarted_id: str | None = None
    #: Whether a dead attempt's answer was discarded for readers by this turn.
    restarted: bool = False
    #: The first step of the answer, made by a head start.
    handover: Handover | None = None
    piped: int = 0
    kept: DataParts = field(default_factory=DataParts)
    #: Whether an author changed history in this turn: it is stored before the turn-complete.
    history_changed: bool = False
    incoming: list[Message] = field(default_factory=list)
    #: Whether the incoming messages are those that `on_validate_messages` returned.
    validated: bool = False
    #: Tool calls that the incoming message has answered, approved or denied.
    answered: frozenset[str] = frozenset()
    #: The message that holds those calls, which need not be the newest; empty when there is none.
    continued_id: str = ""
    #: The incoming message repeats an answer that was given before: nobody is asked again.
    nothing_new: bool = False
    new_ui_messages: list[Message] = field(default_factory=list)
    response: Message | None = None
    raw_response: Message | None = None
    finish_reason: str | None = None
    usage: Any = None
    stopped: bool = False
    #: Once the turn-complete is written nothing more of this turn may be.
    completed: bool = False
    #: Whether it was said that something was written all the same.
    wrote_late: bool = False
    #: Messages that steering took into this turn.
    joined: list[Message] = field(default_factory=list)
    #: The summary that requests of this turn start from.
    compacted: Inner | None = None
    deferred: Deferred = field(default_factory=Deferred)
    #: What `chat.set_stream_options` changed for the next stream of this turn.
    stream_options: dict[str, Any] = field(default_factory=dict)
    #: The options of the turn's newest stream.
    shown_with: UIStreamOptions | None = None
    #: The OpenTelemetry span of a turn of an author's loop (`tracing`).
    span: Any = None

    @property
    def trigger(self) -> str:
        return self.item.trigger

    @property
    def wire_message(self) -> Message | None:
        message = self.item.payload.get("message")
        return message if isinstance(message, dict) else None


class ChatRun:
    """Everything a run of a chat agent holds in memory."""

    #: In slots, because a dictionary of so many costs a parked run a kilobyte. It is there for
    #: what is not named here.
    __slots__ = (
        "__dict__",
        "agent",
        "background",
        "chat_id",
        "client_data",
        "compaction",
        "continuation",
        "ctx",
        "early_stream_options",
        "end_requested",
        "idle_timeout_s",
        "input_used",
        "intake",
        "lane",
        "lane_start",
        "observer",
        "out",
        "payload",
        "policy",
        "preloaded",
        "previous_run_id",
        "previous_turn_usage",
        "prior",
        "prompt",
        "restart",
        "runtime",
        "session_id",
        "skills",
        "started",
        "steering",
        "stop_listeners",
        "tasks",
        "tokens",
        "total_usage",
        "transcript",
        "trim",
        "turn",
        "turn_index",
        "turn_timeout_s",
        "turns_started",
        "upgrade_requested",
    )

    def __init__(
        self,
        agent: ChatAgent[Any],
        runtime: RunRuntime,
        tasks: TaskGroup,
        payload: Mapping[str, Any],
        observer: Observer,
    ) -> None:
        info = runtime.info
        self.agent = agent
        self.runtime = runtime
        self.tasks = tasks
        self.payload = payload
        self.observer = observer
        self.ctx: TaskContext = scope.of(runtime).context
        chat_id = payload.get("chatId")
        self.chat_id: str = chat_id if isinstance(chat_id, str) else info.session_key or ""
        session_id = payload.get("sessionId")
        self.session_id: str = session_id if isinstance(session_id, str) else info.session_id or ""
        self.continuation = payload.get("continuation") is True
        previous = payload.get("previousRunId")
        self.previous_run_id: str | None = previous if isinstance(previous, str) else None
        self.preloaded = False
        #: A continuation, or a further attempt: there is something to read at boot.
        self.prior = self.continuation or info.attempt > 1
        #: Whether a turn of this session has committed (rulings §1.15).
        self.started = False

        self.lane = Lane()
        self.out = Outlet(runtime)
        self.transcript = Transcript(runtime)
        self.background = Background(tasks)
        #: A loop an author wrote may have its own of these two.
        self.compaction = agent.options.compaction
        self.steering = Steering(agent.options.pending_messages)
        self.policy = Policy(agent.options.on_busy)
        #: What the model lane starts from since a compaction.
        self.lane_start: LaneStart | None = None
        #: `chat.prompt` and `chat.skills`, once they were set.
        self.prompt: StoredPrompt | None = None
        self.skills: tuple[ResolvedSkill, ...] | None = None
        #: Stream options set before the first turn.
        self.early_stream_options: dict[str, Any] = {}
        self.tokens = Tokens(
            runtime, session=info.session_key or self.chat_id, ttl_s=agent.options.token_ttl_s
        )
        # Boot replaces both with what the session already decided and stored.
        self.trim = TrimChain(bounded=not agent.hydrates)
        self.intake = Intake(runtime, tasks, InputCursor(info.cursor, frozenset(info.decided)))

        #: The client data parsed last, for events between turns.
        self.client_data: Any = None
        self.turn_index = 0
        self.turns_started = 0
        self.turn: TurnState | None = None
        self.total_usage: Any = None
        self.previous_turn_usage: Any = None
        #: The answer that the next turn gives again, under its message id.
        self.restart: Restart | None = None
        #: Loops an author wrote: told of a stop of the turn in progress.
        self.stop_listeners: list[Callable[[str], object]] = []
        #: Whether a loop an author wrote has asked for messages.
        self.input_used = False
        self.upgrade_requested = False
        self.end_requested = False
        self.turn_timeout_s: float | None = None
        self.idle_timeout_s: float | None = None

    def take_stream_options(self, turn: TurnState) -> UIStreamOptions:
        """The options of the turn's next stream; what was set for it alone is used up."""
        changes, turn.stream_options = turn.stream_options, {}
        turn.shown_with = self.agent.options.stream_options.over(changes)
        return turn.shown_with

    def error_text(self, error: BaseException) -> str:
        """What a client is shown of an exception: by the turn's options, then by the agent's."""
        options = self.turn.shown_with if self.turn is not None else None
        told = options.on_error if options is not None else None
        if self.turn is not None:
            told = self.turn.stream_options.get("on_error", told)
        return self.agent.error_text(error, told)

    def writer(self) -> Writer:
        """A writer for a hook: what it keeps joins the turn in progress, if there is one."""
        return Writer(self.out, self.turn.kept if self.turn is not None else None)

    async def hook(self, name: str, event: Any) -> Any:
        """Call a registered hook, flush its writer, apply nothing."""
        if not self.agent.hooks.has(name):
            return None
        self.observer.hook(name, event)
        with tracing.span(self, name):
            try:
                value = await self.agent.hooks.call(name, event, self.ctx)
            except Exception as error:
                say_where(error, f"in {name} of agent {self.agent.task_id!r}")
                raise
            writer = getattr(event, "writer", None)
            if isinstance(writer, Writer):
                await writer.flush()
        return value


def warn_of_late_output(run: ChatRun, turn: TurnState | None) -> None:
    """Say, once for each turn, that its author writes when it is over (chat-agent §4.1).

    Its readers have left by then: what is written is seen by those of the next turn.
    """
    if turn is not None and turn.completed and not turn.wrote_late:
        turn.wrote_late = True
        log.warning(
            "output.late: agent %r wrote after turn %d of %s had ended",
            run.agent.task_id,
            turn.turn,
            run.runtime.info.run_id,
        )


_run: ContextVar[ChatRun | None] = ContextVar("everturn.chat", default=None)


def current_run() -> ChatRun:
    """The chat run this code belongs to. Raises ChatContextError outside of one."""
    run = _run.get()
    if run is None:
        raise ChatContextError("this can only be called inside a run of a chat agent")
    return run


def current_run_or_none() -> ChatRun | None:
    """The chat run this code belongs to; None outside of one."""
    return _run.get()


def current_turn() -> TurnState:
    """The turn in progress. Raises ChatContextError between turns."""
    turn = current_run().turn
    if turn is None:
        raise ChatContextError("this can only be called during a turn")
    return turn
