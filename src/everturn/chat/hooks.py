"""Hooks: their names, their events, and how they are called (chat-agent §3.3, §3.4).

A hook may be sync or async and receives what it declares: nothing, the event, or the event and
`ctx`. Several registrations of one hook run in registration order; hooks that return a value
(`VALUE_HOOKS`) take one registration.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal

from typing_extensions import TypeVar

from everturn.chat.failures import ends_attempt
from everturn.chat.ui_messages import UIMessage, repair
from everturn.errors import ConfigurationError
from everturn.tasks.context import TaskContext

if TYPE_CHECKING:
    from everturn.chat.output import Writer

Hook = Callable[..., Any]
H = TypeVar("H", bound=Hook)
#: The model of an agent's client data. Written without it, a type means whatever it is.
ClientT = TypeVar("ClientT", default=Any)
Message = dict[str, Any]
Phase = Literal["preload", "continuation", "turn"]

VALUE_HOOKS: Final = frozenset(
    {
        "on_recovery_boot",
        "on_validate_messages",
        "hydrate_messages",
        "prepare_messages",
        "on_action",
    }
)
NAMES: Final = VALUE_HOOKS | {
    "on_boot",
    "on_preload",
    "on_chat_start",
    "on_turn_start",
    "on_compacted",
    "on_before_turn_complete",
    "on_turn_complete",
    "on_chat_suspend",
    "on_chat_resume",
}


#: Hooks whose failure is logged by whoever calls them, and changes nothing (D-13).
LOGGED_HOOKS: Final = frozenset(
    {"on_compacted", "on_turn_complete", "on_chat_suspend", "on_chat_resume"}
)
log = logging.getLogger("everturn.chat")


@dataclass(frozen=True, kw_only=True)
class RecoveryBootEvent:
    """A boot that found an unfinished answer."""

    ctx: TaskContext
    run_id: str
    chat_id: str
    previous_run_id: str
    settled_messages: list[UIMessage]
    in_flight_users: list[UIMessage]
    partial_assistant: UIMessage
    #: `{tool_call_id, tool_name, input, part_index}` of calls that wait for a result.
    pending_tool_calls: list[dict[str, Any]]
    writer: Writer
    cause: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class RecoveryOverrides:
    """What `on_recovery_boot` may return; a field left None keeps the default."""

    chain: list[Message] | None = None
    recovered_turns: list[Message] | None = None
    before_boot: Callable[[], Awaitable[None] | None] | None = None


@dataclass(frozen=True, kw_only=True)
class _RunEvent(Generic[ClientT]):
    ctx: TaskContext
    run_id: str
    chat_id: str
    client_data: ClientT


@dataclass(frozen=True, kw_only=True)
class _WithModelLane:
    """Events that show the history in the model library's form too."""

    #: Makes `messages`; not called unless somebody looks, so that chats whose hooks never do pay
    #: for no conversion.
    model_lane: Callable[[], list[Any]] = field(default=list, repr=False, compare=False)

    @cached_property
    def messages(self) -> list[Any]:
        """The history as messages of the model library; made when it is first asked for."""
        return self.model_lane()


@dataclass(frozen=True, kw_only=True)
class BootEvent(_RunEvent[ClientT]):
    """A process begins to work for this run: a first one, a continuation or a next attempt."""

    chat_access_token: str
    continuation: bool
    previous_run_id: str | None
    preloaded: bool


@dataclass(frozen=True, kw_only=True)
class PreloadEvent(_RunEvent[ClientT]):
    """The run was started before anybody wrote."""

    chat_access_token: str
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class ValidateMessagesEvent:
    """What came in for this turn, before it joins the history."""

    chat_id: str
    messages: list[UIMessage]
    turn: int
    trigger: str


@dataclass(frozen=True, kw_only=True)
class HydrateMessagesEvent(Generic[ClientT]):
    """Asked for the whole history, which the author keeps."""

    chat_id: str
    turn: int
    #: submit-message | regenerate-message | action
    trigger: str
    incoming_messages: list[UIMessage]
    previous_messages: list[UIMessage]
    client_data: ClientT
    continuation: bool
    previous_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ResolveToolsEvent(Generic[ClientT]):
    """Asked for the tools of a turn; given to the function form of `tools`."""

    chat_id: str
    turn: int
    continuation: bool
    client_data: ClientT


@dataclass(frozen=True, kw_only=True)
class PrepareMessagesEvent(Generic[ClientT]):
    """Asked what the model is sent."""

    chat_id: str
    turn: int
    messages: list[Any]
    #: run | compaction-rebuild | compaction-result
    reason: str
    client_data: ClientT


@dataclass(frozen=True, kw_only=True)
class ActionEvent(_WithModelLane, Generic[ClientT]):
    """A client asked for something that is no message."""

    chat_id: str
    action: Any
    turn: int
    client_data: ClientT
    ui_messages: list[UIMessage]


@dataclass(frozen=True, kw_only=True)
class _TurnEvent(_RunEvent[ClientT], _WithModelLane):
    chat_access_token: str
    turn: int
    ui_messages: list[UIMessage]
    continuation: bool
    previous_run_id: str | None
    preloaded: bool


@dataclass(frozen=True, kw_only=True)
class ChatStartEvent(_TurnEvent[ClientT]):
    """The first turn of a chat is about to begin."""

    writer: Writer


@dataclass(frozen=True, kw_only=True)
class TurnStartEvent(_TurnEvent[ClientT]):
    """A turn is about to be answered; its message is in the history."""

    previous_turn_usage: Any
    total_usage: Any
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class _TurnEndEvent(_TurnEvent[ClientT]):
    new_ui_messages: list[UIMessage]
    #: Makes `new_messages`, as `model_lane` makes `messages`.
    new_model_lane: Callable[[], list[Any]] = field(default=list, repr=False, compare=False)
    response_message: UIMessage | None
    raw_response_message: UIMessage | None
    stopped: bool
    usage: Any
    total_usage: Any
    finish_reason: str | None

    @cached_property
    def new_messages(self) -> list[Any]:
        """What the turn added, as messages of the model library; empty after an error."""
        return self.new_model_lane()


@dataclass(frozen=True, kw_only=True)
class BeforeTurnCompleteEvent(_TurnEndEvent[ClientT]):
    """The answer is there, and the turn still open: what is written now belongs to it."""

    writer: Writer


@dataclass(frozen=True, kw_only=True)
class TurnCompleteEvent(_TurnEndEvent[ClientT]):
    """The turn is durable; `error` says what a failed one failed with."""

    #: seq_num of this turn's turn-complete record, as a string; what a client resumes after.
    last_event_id: str
    error: BaseException | None = None


@dataclass(frozen=True, kw_only=True)
class CompactedEvent:
    """A summary was made; clients are told that compacting is complete after this."""

    ctx: TaskContext
    chat_id: str
    turn: int
    summary: str
    #: The model messages it stands for, and their number.
    messages: list[Any]
    message_count: int
    usage: Any
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    #: Of the step before it; -1 between turns.
    step_number: int
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class ChatSuspendEvent(_RunEvent[ClientT], _WithModelLane):
    """The run gives up its slot, or has it again; `messages` is for phase `turn` only."""

    phase: Phase
    #: Of phase `turn` only.
    turn: int | None = None
    ui_messages: list[UIMessage] | None = None


class ChatResumeEvent(ChatSuspendEvent[ClientT]):
    """The same fields, after a wake."""


class Hooks:
    """Registered hooks of one agent."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[Hook]] = {}

    def add(self, name: str, hook: H) -> H:
        """Register; returns the function. Raises ConfigurationError for a second value hook."""
        if name not in NAMES:
            raise ConfigurationError(f"there is no hook {name!r}")
        hooks = self._hooks.setdefault(name, [])
        if hooks and name in VALUE_HOOKS:
            raise ConfigurationError(f"{name} returns a value, so it can be registered once")
        hooks.append(hook)
        return hook

    def has(self, name: str) -> bool:
        return bool(self._hooks.get(name))

    async def call(self, name: str, event: Any, ctx: Any = None) -> Any:
        """Run the hook's registrations in order; the value of the last one.

        Raises what one of them raises. Where that changes nothing (`LOGGED_HOOKS`) the others are
        called all the same: who stores an answer must not depend on who counts it.
        """
        value: Any = None
        failed: Exception | None = None
        for hook in self._hooks.get(name, ()):
            try:
                value = await call_declared(hook, event, ctx)
            except Exception as error:  # author code
                if name not in LOGGED_HOOKS or ends_attempt(error):
                    raise
                if failed is not None:
                    log.exception("hook.failed: %s", name)
                failed = failed or error
        if failed is not None:
            raise failed
        return value

    def copy(self) -> Hooks:
        other = Hooks()
        other._hooks = {name: list(hooks) for name, hooks in self._hooks.items()}
        return other


#: Functions whose declaration is remembered.
_DECLARED_MAX: Final = 4096
_declared: Final[dict[CodeType, tuple[bool, bool]]] = {}


def arguments(
    function: Callable[..., Any], event: Any, ctx: Any
) -> tuple[list[Any], dict[str, Any]]:
    """What of `event` and `ctx` the function declares to receive (rulings §5.5)."""
    takes_event, takes_ctx = declared(function)
    return [event] if takes_event else [], {"ctx": ctx} if takes_ctx else {}


def declared(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a function receives the event, and whether it receives `ctx` by name.

    Looking at a signature takes longer than most hooks run, so the answer is kept: by source and
    not by function, so that nothing an author's function holds is held on to.
    """
    if type(function) is not FunctionType or function.__dict__:
        return _look_at(function)
    known = _declared.get(function.__code__)
    if known is None:
        known = _look_at(function)
        if len(_declared) < _DECLARED_MAX:
            _declared[function.__code__] = known
    return known


def _look_at(function: Callable[..., Any]) -> tuple[bool, bool]:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        return True, False
    takes_event = takes_ctx = False
    kinds = inspect.Parameter
    for parameter in parameters.values():
        if parameter.name == "ctx" and parameter.kind is not kinds.POSITIONAL_ONLY:
            takes_ctx = True
        elif parameter.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD):
            takes_event = True
    return takes_event, takes_ctx


async def call_declared(function: Callable[..., Any], event: Any, ctx: Any = None) -> Any:
    """Call an author's function with what it declares; await it when it is async."""
    positional, named = arguments(function, event, ctx)
    value = function(*positional, **named)
    return await value if inspect.isawaitable(value) else value


def message_list(value: Any, hook: str) -> list[Message]:
    """A hook's list of messages as plain dicts. Raises TypeError for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{hook} must return a list of messages, not {type(value).__name__}")
    return [plain_message(item, hook) for item in value]


#: What a store of JSON can hold in the place of a message.
_JSON: Final = (dict, list, str, int, float, type(None))


def history(value: Any, hook: str) -> list[Message]:
    """A history that an author's own store holds, repaired (P-8).

    JSON that is no message is left out: a store that holds one such item would fail every turn.
    Raises TypeError for what is no list, and for objects that no store of JSON could hold.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{hook}: a history is a list of messages, not {type(value).__name__}")
    return repair(
        [item if isinstance(item, _JSON) else plain_message(item, hook) for item in value]
    )


def plain_message(value: Any, hook: str) -> Message:
    """One UI message as a dict; models are dumped by alias. Raises TypeError."""
    if isinstance(value, dict):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        dumped = dump(mode="json", by_alias=True, exclude_none=True)
        if isinstance(dumped, dict):
            return dumped
    raise TypeError(f"{hook}: a message is a dict, not {type(value).__name__}")
