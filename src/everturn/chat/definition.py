"""`chat.agent`: an agent as its author defines it (chat-agent §3.1).

A definition is immutable in what matters to runs: options are read once, hooks are added before
the first run. It offers itself to the worker through the task registry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, Literal

import msgspec

from everturn.chat.compaction import Compaction
from everturn.chat.hooks import NAMES, ClientT, H, Hooks
from everturn.chat.lifecycle import RUN_HOOKS, RunHooks, surrounded
from everturn.chat.policy import OnBusy, checked
from everturn.chat.state import ChatRun, NoObserver, Observer, _run
from everturn.chat.steering import PendingMessages
from everturn.chat.stream_options import UIStreamOptions
from everturn.client import binding
from everturn.errors import ConfigurationError, InvalidRequest
from everturn.protocol.runs import TaskDeclaration
from everturn.rules import limits
from everturn.tasks import codec, registry
from everturn.tasks.durations import Duration, parse
from everturn.tasks.hooks import HookSet
from everturn.tasks.own_session import OwnSession
from everturn.tasks.runtime import RunRuntime

log = logging.getLogger("everturn.chat")
#: Shown when an exception says nothing itself.
NO_WORDS = "An error occurred."


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of an agent; times in seconds. None means: the next rule in order decides."""

    client_data: Any = None
    action: Any = None
    tools: Any = None
    max_turns: int = limits.MAX_TURNS
    turn_timeout_s: float = limits.TURN_TIMEOUT_S
    idle_timeout_s: float | None = None
    preload_idle_timeout_s: float | None = None
    preload_timeout_s: float | None = None
    exit_after_preload_idle: bool = False
    token_ttl_s: float = limits.SESSION_TOKEN_S
    stream_options: UIStreamOptions = UIStreamOptions()
    compaction: Compaction | None = None
    pending_messages: PendingMessages | None = None
    on_busy: OnBusy = "queue"


class ChatAgent(RunHooks, Generic[ClientT]):
    """A chat agent: its function, its options, its hooks. Made by `chat.agent`."""

    kind: Literal["agent", "custom-agent"] = "agent"

    def __init__(
        self,
        task_id: str,
        function: Callable[..., Any],
        options: Options,
        config: Mapping[str, Any],
        hooks: Hooks | None = None,
    ) -> None:
        """`config` is what the task declaration carries: queue, machine, description, …"""
        super().__init__()
        self.task_id = task_id
        self.function = function
        self.options = options
        self.hooks = hooks if hooks is not None else Hooks()
        self._config = dict(config)
        self.__name__ = getattr(function, "__name__", task_id)
        self.__doc__ = function.__doc__
        self._client_data = codec.validator(options.client_data)
        self._action = codec.validator(options.action)

    @property
    def hydrates(self) -> bool:
        """Whether the author keeps history: no snapshot, no replay, no recovery of it."""
        return self.hooks.has("hydrate_messages")

    # --- hooks, as decorators ------------------------------------------------------------------

    def on_boot(self, hook: H) -> H:
        """Every start of the process for a run, continuations and retries included."""
        return self.hooks.add("on_boot", hook)

    def on_recovery_boot(self, hook: H) -> H:
        """A boot that found an unfinished answer; may return RecoveryOverrides."""
        return self.hooks.add("on_recovery_boot", hook)

    def on_preload(self, hook: H) -> H:
        """A run started before the first message."""
        return self.hooks.add("on_preload", hook)

    def on_validate_messages(self, hook: H) -> H:
        """The incoming messages of a turn; returns the list to use."""
        return self.hooks.add("on_validate_messages", hook)

    def hydrate_messages(self, hook: H) -> H:
        """Returns the whole history; the author keeps it from then on."""
        return self.hooks.add("hydrate_messages", hook)

    def on_chat_start(self, hook: H) -> H:
        """The first turn of a chat, until one has committed."""
        return self.hooks.add("on_chat_start", hook)

    def on_turn_start(self, hook: H) -> H:
        """Every turn, before the agent function."""
        return self.hooks.add("on_turn_start", hook)

    def prepare_messages(self, hook: H) -> H:
        """Transforms the model's messages just before the agent function."""
        return self.hooks.add("prepare_messages", hook)

    def on_action(self, hook: H) -> H:
        """An action; may return a streamable."""
        return self.hooks.add("on_action", hook)

    def on_compacted(self, hook: H) -> H:
        """A summary was made, between two steps or two turns."""
        return self.hooks.add("on_compacted", hook)

    def on_before_turn_complete(self, hook: H) -> H:
        """The answer is captured, the turn not yet complete; its writer still works."""
        return self.hooks.add("on_before_turn_complete", hook)

    def on_turn_complete(self, hook: H) -> H:
        """The turn is durable; also after failed turns."""
        return self.hooks.add("on_turn_complete", hook)

    def on_chat_suspend(self, hook: H) -> H:
        """The run is about to give up its slot."""
        return self.hooks.add("on_chat_suspend", hook)

    def on_chat_resume(self, hook: H) -> H:
        """The run goes on, in the same memory."""
        return self.hooks.add("on_chat_resume", hook)

    # --- what the turn loop asks ---------------------------------------------------------------

    def client_data(self, metadata: Any) -> Any:
        """The parsed client data of a payload. Raises InvalidRequest, one line per field."""
        if self.options.client_data is None:
            return metadata
        return _validated(self._client_data, {} if metadata is None else metadata)

    def action(self, payload: Any) -> Any:
        """The parsed action; as it came when no schema is declared."""
        if self.options.action is None:
            return payload
        return _validated(self._action, payload)

    def error_text(
        self, error: BaseException, told: Callable[[BaseException], str] | None = None
    ) -> str:
        """What a client is shown of an exception; `told` decides before the agent's `on_error`."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        told = told or self.options.stream_options.on_error
        if told is not None:
            try:
                return str(told(error))
            except Exception:  # author code, which is asked because something failed already
                log.exception("hook.failed: on_error")
                return NO_WORDS
        return str(error) or NO_WORDS

    # --- the worker's side ---------------------------------------------------------------------

    def declaration(self) -> TaskDeclaration:
        """What the server has to know about it."""
        queue = self._config.get("queue")
        config = {key: value for key, value in self._config.items() if key != "queue"}
        schema = codec.json_schema(self.options.client_data)
        if schema is not None:
            config["payloadSchema"] = schema
        config.setdefault("retry", {"maxAttempts": 1})
        return TaskDeclaration(
            task_id=self.task_id,
            kind="agent",
            queue=queue if isinstance(queue, str) else "",
            config=config,
        )

    def run(
        self, runtime: RunRuntime, observer: Observer | None = None
    ) -> Coroutine[Any, Any, bytes | None]:
        """Work one attempt of a run: boot, turns, waits, until it ends by its own decision.

        Raises what ends the attempt: a failing boot hook, a lost lease, running out of memory.
        """
        work = self._work(runtime, observer)
        # Handed on and not awaited here: a frame more is memory that every parked chat would hold.
        return surrounded(self.task_id, self.run_hooks, runtime, work)

    async def _work(self, runtime: RunRuntime, observer: Observer | None) -> bytes | None:
        from everturn.chat import turn_loop

        output: bytes | None = None
        payload = codec.decode_packet(runtime.info.payload, runtime.info.payload_type)
        if not isinstance(payload, dict):
            payload = {}

        async def work(tasks: Any) -> None:
            nonlocal output
            run = ChatRun(self, runtime, tasks, payload, observer or NoObserver())
            own = OwnSession(runtime, tasks, after=lambda: self.raw_cursor(run))
            # Not put back: an attempt is a task of its own, and there are many that wait here.
            _run.set(run)
            binding.enter(own.find)
            output = await self.drive(run)

        await turn_loop.with_tasks(work)
        return output

    async def drive(self, run: ChatRun) -> bytes | None:
        """What a run does: the managed loop. Returns the run's output as JSON text, or None."""
        from everturn.chat import turn_loop

        await turn_loop.drive(run)
        return None

    def raw_cursor(self, run: ChatRun) -> int | None:
        """Where a handle of the session that the author opens inside the run begins to read."""
        return run.intake.source.tail_cursor

    def copy(self, task_id: str | None = None) -> ChatAgent[ClientT]:
        """A second agent with the same function, options and hooks, for helpers that extend."""
        made: ChatAgent[ClientT] = ChatAgent(
            task_id or self.task_id, self.function, self.options, self._config, self.hooks.copy()
        )
        made.run_hooks.include(self.run_hooks)
        return made

    def __repr__(self) -> str:
        return f"<chat agent {self.task_id!r}>"


def _validated(validate: Callable[[Any], Any], value: Any) -> Any:
    """Validate; errors become one line per field and never repeat the input."""
    try:
        return validate(value)
    except ValueError as error:  # pydantic's ValidationError is one
        errors = getattr(error, "errors", None)
        if not callable(errors):
            raise
        lines = (f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in errors())
        raise InvalidRequest("\n".join(lines)) from error


TASK_OPTIONS = {
    "queue": "queue",
    "machine": "machine",
    "max_duration": "maxDuration",
    "max_attempts": "maxAttempts",
    "description": "description",
}


def agent(
    id: str,
    *,
    client_data: Any = None,
    action: Any = None,
    tools: Any = None,
    max_turns: int = limits.MAX_TURNS,
    turn_timeout: Duration = limits.TURN_TIMEOUT_S,
    idle_timeout: Duration | None = None,
    preload_idle_timeout: Duration | None = None,
    preload_timeout: Duration | None = None,
    exit_after_preload_idle: bool = False,
    access_token_ttl: Duration = limits.SESSION_TOKEN_S,
    on_error: Callable[[BaseException], str] | None = None,
    stream_options: UIStreamOptions | None = None,
    compaction: Compaction | None = None,
    pending_messages: PendingMessages | None = None,
    on_busy: OnBusy = "queue",
    oom_machine: str | None = None,
    **more: Any,
) -> Callable[[Callable[..., Any]], ChatAgent[Any]]:
    """Define a chat agent and offer it to the worker.

    The decorated function answers one turn. It receives a `chat.Turn` and returns a streamable,
    or is itself a generator of text and chunks::

        @chat.agent("echo")
        async def echo(turn):
            yield "you said: "
            yield turn.text

    Args:
        id: the task id, unique in the project.
        client_data: a model, type or validator for the `metadata` of messages.
        action: the same for the payload of actions.
        max_turns: turns of one run, failed ones included; the session goes on in another run.
        turn_timeout: how long a suspended run waits for the next message.
        idle_timeout: how long a run stays warm after a turn; 0 suspends at once.
        on_error: the text a client is shown for an exception; short for the stream option.
        stream_options: what of an answer's stream is shown; `chat.set_stream_options` changes
            them for one turn.
        compaction: when and how a long conversation goes on from a summary.
        pending_messages: what becomes of messages that arrive during a turn (steering).
        on_busy: the same as a word: `queue`, `steer`, `latest`, `reject` or `interrupt`
            (`chat.policy` says what each means).
        oom_machine: machine preset for one more attempt of a run that ran out of memory: its turn
            is answered again there, and completed turns are not. Without it such a run fails.
        **more: hooks by their names, those around a run (`on_start`, `on_complete`, …) included,
            and the options queue, machine, max_duration, max_attempts and description.

    Raises:
        ConfigurationError: an unknown option, or an id that is taken.
    """
    if max_turns < 1:
        raise ConfigurationError("max_turns is at least 1")
    options = Options(
        client_data=client_data,
        action=action,
        tools=tools,
        max_turns=max_turns,
        turn_timeout_s=parse(turn_timeout),
        idle_timeout_s=_optional(idle_timeout),
        preload_idle_timeout_s=_optional(preload_idle_timeout),
        preload_timeout_s=_optional(preload_timeout),
        exit_after_preload_idle=exit_after_preload_idle,
        token_ttl_s=parse(access_token_ttl),
        stream_options=_stream_options(stream_options, on_error),
        compaction=compaction,
        pending_messages=checked(on_busy, pending_messages),
        on_busy=on_busy,
    )
    hooks, around = Hooks(), HookSet()
    config: dict[str, Any] = _attempts(oom_machine)
    for name, value in more.items():
        if name in NAMES:
            hooks.add(name, value)
        elif name in RUN_HOOKS:
            around.add(name, value)
        elif name in TASK_OPTIONS:
            config[TASK_OPTIONS[name]] = value
        else:
            raise ConfigurationError(f"chat.agent has no option {name!r}")

    def define(function: Callable[..., Any]) -> ChatAgent[Any]:
        made: ChatAgent[Any] = ChatAgent(id, function, options, config, hooks)
        made.run_hooks.include(around)
        registry.register(made)
        return made

    return define


def _attempts(oom_machine: str | None) -> dict[str, Any]:
    """How often a run is tried: failures of turns never end it, so usually once (§3.1)."""
    if oom_machine is None:
        return {}
    return {"retry": {"maxAttempts": 2, "outOfMemory": {"machine": oom_machine}}}


def _stream_options(
    options: UIStreamOptions | None, on_error: Callable[[BaseException], str] | None
) -> UIStreamOptions:
    options = options if options is not None else UIStreamOptions()
    return options if on_error is None else options.over({"on_error": on_error})


def _optional(duration: Duration | None) -> float | None:
    return None if duration is None else parse(duration)
