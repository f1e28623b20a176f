"""Hooks: their names, their events, and how they are called (chat-agent §3.3, §3.4).

A hook may be sync or async and receives what it declares: nothing, the event, or the event and
`ctx`. Several registrations of one hook run in registration order; hooks that return a value
(`VALUE_HOOKS`) take one registration.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from everturn.chat.ui_messages import UIMessage
from everturn.errors import ConfigurationError
from everturn.tasks.context import TaskContext

if TYPE_CHECKING:
    from everturn.chat.output import Writer

Hook = Callable[..., Any]
H = TypeVar("H", bound=Hook)
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
class _RunEvent:
    ctx: TaskContext
    run_id: str
    chat_id: str
    client_data: Any


@dataclass(frozen=True, kw_only=True)
class BootEvent(_RunEvent):
    chat_access_token: str
    continuation: bool
    previous_run_id: str | None
    preloaded: bool


@dataclass(frozen=True, kw_only=True)
class PreloadEvent(_RunEvent):
    chat_access_token: str
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class ValidateMessagesEvent:
    chat_id: str
    messages: list[UIMessage]
    turn: int
    trigger: str


@dataclass(frozen=True, kw_only=True)
class HydrateMessagesEvent:
    chat_id: str
    turn: int
    #: submit-message | regenerate-message | action
    trigger: str
    incoming_messages: list[UIMessage]
    previous_messages: list[UIMessage]
    client_data: Any
    continuation: bool
    previous_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ResolveToolsEvent:
    chat_id: str
    turn: int
    continuation: bool
    client_data: Any


@dataclass(frozen=True, kw_only=True)
class PrepareMessagesEvent:
    chat_id: str
    turn: int
    messages: list[Any]
    reason: str
    client_data: Any


@dataclass(frozen=True, kw_only=True)
class ActionEvent:
    chat_id: str
    action: Any
    turn: int
    client_data: Any
    ui_messages: list[UIMessage]


@dataclass(frozen=True, kw_only=True)
class _TurnEvent(_RunEvent):
    chat_access_token: str
    turn: int
    ui_messages: list[UIMessage]
    continuation: bool
    previous_run_id: str | None
    preloaded: bool


@dataclass(frozen=True, kw_only=True)
class ChatStartEvent(_TurnEvent):
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class TurnStartEvent(_TurnEvent):
    previous_turn_usage: Any
    total_usage: Any
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class _TurnEndEvent(_TurnEvent):
    new_ui_messages: list[UIMessage]
    response_message: UIMessage | None
    raw_response_message: UIMessage | None
    stopped: bool
    usage: Any
    total_usage: Any
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True)
class BeforeTurnCompleteEvent(_TurnEndEvent):
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class TurnCompleteEvent(_TurnEndEvent):
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
class ChatSuspendEvent(_RunEvent):
    phase: Phase
    #: Of phase `turn` only.
    turn: int | None = None
    ui_messages: list[UIMessage] | None = None


class ChatResumeEvent(ChatSuspendEvent):
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
        """Run the hook's registrations in order; the value of the last one."""
        value: Any = None
        for hook in self._hooks.get(name, ()):
            value = await call_declared(hook, event, ctx)
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
