"""`chat.custom_agent`: a chat agent whose loop its author writes (chat-agent §4.10).

    @chat.custom_agent("echo")
    async def echo(payload, ctx):
        while payload is not None:
            if "message" in payload:
                await chat.pipe(f"you said {chat.text_of(payload['message'])}")
                await chat.write_turn_complete()
            payload = (await chat.messages.wait_with_idle_timeout(30, timeout="1h")).output

What the runtime does for such a loop, and what it does not:

* **Before the author's code** both `.in` cursors are seeded from what the session has committed
  (turn-complete, session row), whatever kind of boot this is: an answered message never comes
  again. Messages that a dead process took and did not commit come again, first, in order.
* **The first message** of a session travels in the log (rulings §1.4). A run that was started
  with one finds it in its `payload`, as a loop written for the original expects it, and it is the
  turn in progress.
* **A turn** is what lies between taking a message and `chat.write_turn_complete()`. Inside one
  `chat.pipe`, `chat.response`, `chat.is_stopped` and `chat.defer` work as in a managed turn.
* **No** hooks, preload, history, snapshot, error chunks. An exception fails the run, and the
  server closes the open turn visibly (rulings §1.9). A loop that returns in the middle of a turn
  has ended it: its turn-complete is written then, so that nobody waits for it.
* **A loop that never asks for its messages** would be started again for them for ever: returning
  with messages it never looked at is an error, which fails the oldest of them visibly.
* **After a crash** the next turn begins with the end of what was left open and a
  `data-restarted` chunk, as for every agent (rulings §1.6).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from everturn.chat import boot, commit, handover, tracing
from everturn.chat.definition import TASK_OPTIONS, ChatAgent, Options
from everturn.chat.handover import Handover
from everturn.chat.hooks import Hooks
from everturn.chat.intake import NOWHERE
from everturn.chat.lifecycle import RUN_HOOKS
from everturn.chat.message_input import begin_turn, take
from everturn.chat.state import ChatRun, current_run
from everturn.chat.turn import end
from everturn.chat.turn_end import checkpoint, drain_deferred
from everturn.client import binding
from everturn.errors import AgentError, ChatContextError, ConfigurationError
from everturn.protocol.records import Input, InputCursor, parse_input
from everturn.protocol.runs import TaskDeclaration
from everturn.rules.boot import FirstStep
from everturn.tasks import codec, registry
from everturn.tasks.durations import Duration
from everturn.tasks.durations import parse as seconds

#: Records looked at for messages that a returning loop ignored.
_LOOKED_AT: Final = 100


class _NoHooks(Hooks):
    def add(self, name: str, hook: Any) -> Any:
        raise ConfigurationError(f"a custom agent has no {name}: the turn loop would call it")


class CustomAgent(ChatAgent[Any]):
    """An agent whose function is the whole run. Made by `chat.custom_agent`."""

    kind = "custom-agent"

    def __init__(
        self,
        task_id: str,
        function: Callable[..., Any],
        options: Options,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(task_id, function, options, config, _NoHooks())

    @property
    def hydrates(self) -> bool:
        """Its history is its author's: no snapshot, and the trim chain is his word."""
        return True

    def declaration(self) -> TaskDeclaration:
        declared = super().declaration()
        return TaskDeclaration(
            task_id=declared.task_id,
            kind="custom-agent",
            queue=declared.queue,
            queue_limit=declared.queue_limit,
            config=declared.config,
        )

    def copy(self, task_id: str | None = None) -> CustomAgent:
        """A second agent with the same function and options."""
        made = CustomAgent(task_id or self.task_id, self.function, self.options, self._config)
        made.run_hooks.include(self.run_hooks)
        return made

    def raw_cursor(self, run: ChatRun) -> int | None:
        """A loop that reads the channel by itself gets all that is not committed."""
        return run.intake.cursor().seq_num

    async def drive(self, run: ChatRun) -> bytes | None:
        """Seed the cursors, run the author's code, account for what it took.

        Raises what the author's code raises, and AgentError when it ignored its messages.
        """
        run.observer.phase("boot")
        with tracing.span(run, "chat.boot"):
            step = await boot.boot(run)
        run.lane.replace_all([])
        result = None
        if step is not FirstStep.END:
            payload = await _payload(run)
            run.observer.hook("run", payload)
            try:
                result = await _call(self.function, payload, run)
                await _close(run)
            finally:
                if run.turn is not None:
                    tracing.end_turn(run, run.turn)
        run.observer.phase("end")
        return None if result is None else codec.encode(result)


def custom_agent(
    id: str, *, client_data: Any = None, **options: Any
) -> Callable[[Callable[..., Any]], CustomAgent]:
    """Define an agent whose function is the whole run, and offer it to the worker.

    The decorated function takes `(payload)` or `(payload, ctx)`: the boot payload in wire form
    (`chatId`, `trigger`, `message`, `metadata`, `continuation`, …) and the task context.

    Args:
        id: the task id, unique in the project.
        client_data: a model, type or validator for the `metadata` of messages, used by the turns
            of `chat.create_session`.
        **options: queue, machine, max_duration, max_attempts and description, and hooks around a
            run by their names (`on_complete`, …).

    Raises:
        ConfigurationError: an unknown option, or an id that is taken.
    """
    unknown = sorted(set(options) - set(TASK_OPTIONS) - RUN_HOOKS)
    if unknown:
        raise ConfigurationError(f"chat.custom_agent has no option {unknown[0]!r}")
    config = {TASK_OPTIONS[n]: value for n, value in options.items() if n in TASK_OPTIONS}

    def define(function: Callable[..., Any]) -> CustomAgent:
        made = CustomAgent(id, function, Options(client_data=client_data), config)
        for name in sorted(RUN_HOOKS & set(options)):
            made.run_hooks.add(name, options[name])
        registry.register(made)
        return made

    return define


async def _call(function: Callable[..., Any], payload: Mapping[str, Any], run: ChatRun) -> Any:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = sum(parameter.kind in kinds for parameter in parameters)
    result = function(*(payload, run.ctx)[:takes])
    return await result if inspect.isawaitable(result) else result


# --- before and after the author's code -----------------------------------------------------------


async def _payload(run: ChatRun) -> Mapping[str, Any]:
    """The boot payload, with the first message in it where the session was started with one."""
    payload = run.payload
    trigger = payload.get("trigger")
    if "message" in payload or trigger == "regenerate-message" or "action" in payload:
        begin_turn(run, Input(NOWHERE, "message", payload))
        return payload
    if trigger is not None or run.continuation:
        return payload
    run.intake.listen()
    for record in await run.runtime.read("in", after=run.intake.source.tail_cursor, limit=1):
        run.intake.source.take(record)
    head = run.intake.head()
    if head is None or not head.needs_answer:
        return payload
    return {**payload, "trigger": head.trigger, **take(run).payload}


async def _close(run: ChatRun) -> None:
    """The author's code has returned: end what it left open, and say what it has handled."""
    if run.turn is not None:
        await complete_turn(run)
    cursor = run.intake.cursor()
    if not run.input_used:
        cursor = await _handled_elsewhere(run, cursor)
    run.runtime.report(cursor=cursor, turns=run.turns_started)


async def _handled_elsewhere(run: ChatRun, cursor: InputCursor) -> InputCursor:
    """What a loop that reads its session's `.in` by itself has consumed of it.

    Raises AgentError when messages are left that nobody ever asked for.
    """
    handle = binding.handle_in_run(run.runtime.info.session_key or "")
    consumed = handle.in_.last_dispatched_seq_num() if handle is not None else None
    if consumed is not None:
        cursor = cursor.newest(InputCursor(consumed))
    records = await run.runtime.read("in", after=cursor.seq_num, limit=_LOOKED_AT)
    ignored = [
        item.seq_num
        for item in map(parse_input, records)
        if item.needs_answer and not cursor.covers(item.seq_num)
    ]
    if ignored:
        raise AgentError(
            f"custom agent {run.agent.task_id!r} returned without ever asking for its messages; "
            f"the oldest unanswered one is record {ignored[0]}. Take messages with "
            "`chat.messages` or `chat.create_session`."
        )
    return cursor


# --- what a loop calls ----------------------------------------------------------------------------


async def write_turn_complete(*, public_access_token: str | None = None) -> int:
    """End the turn in progress: what it took is answered, and readers are told.

    Writes the turn-complete after everything written before it, with the committed `.in` cursor
    and a token for clients, and trims `.out` to the turn-complete before it (§2.15). Outside of a
    turn it writes one for nobody in particular.

    Args:
        public_access_token: put into the record in place of a fresh one.

    Returns its seq_num. Raises ChatContextError in a managed agent, whose loop writes it itself.
    """
    run = current_run()
    if not isinstance(run.agent, CustomAgent):
        raise ChatContextError("the turn loop of a managed agent writes its turn-completes itself")
    return await complete_turn(run, token=public_access_token)


async def complete_turn(run: ChatRun, *, token: str | None = None) -> int:
    """The turn-complete of a loop an author wrote. Returns its seq_num, durable."""
    state = run.turn
    run.intake.unstoppable()
    if state is not None:
        await drain_deferred(run, state)
        checkpoint(run, state)
    run.intake.decide_turn()
    made = token if token is not None else await run.tokens.current()
    seq_num = await commit.turn_complete(run, run.intake.cursor(), token=made)
    run.started = True
    if state is not None:
        state.completed = True
        run.turn_index += 1
    end(run)
    return seq_num


async def wait_for_handover(
    payload: Mapping[str, Any],
    *,
    idle_timeout: Duration | None = None,
    timeout: Duration | None = None,
) -> Handover | None:
    """The first step of the answer, on a boot that a head start made; else None, at once.

    Call it before any wait for messages. The run stays hot meanwhile (D-18); on return the
    handover is the turn in progress.

    Args:
        idle_timeout: how long to wait: the payload's hint, else 60 s.
        timeout: an upper bound for that.

    Returns None also after a skip, and when nothing came.
    """
    run = current_run()
    if not handover.expected(payload) or run.turn is not None or run.started:
        return None
    limit_s = handover.window_s(payload, None if idle_timeout is None else seconds(idle_timeout))
    if timeout is not None:
        limit_s = min(limit_s, seconds(timeout))
    run.intake.listen()
    run.observer.phase("handover")
    given = await handover.receive(run, limit_s)
    if given is not None:
        take(run, handover.input_of(run, given), given)
    return given
