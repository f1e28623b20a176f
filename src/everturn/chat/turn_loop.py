"""A run of a chat agent: boot, then inputs one after another, until it ends (chat-agent §2).

The promises of this loop:

* One input at a time, in the order of `.in`. The next is taken when the turn-complete of the one
  before is durable, its completion hook has returned and its history is stored.
* A run ends by itself only between inputs: at `max_turns`, on `close`, on request, or when nobody
  wrote for the suspend timeout. It never closes the session: whatever is still open, or comes
  later, is answered by a successor, which the server starts when it finalises this run (rulings
  §1.10). So nothing has to be checked on the way out.
* A wait is warm first (the slot is held), then suspended (the coroutine is parked, the slot is
  free). A stop that arrives meanwhile wakes the run without being an input: it waits again.
* When the process is about to go, the run ends as soon as no turn is in progress, whatever is
  queued: its successor runs elsewhere, on the newest version of the code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from everturn.chat import boot, handover, hooks, tracing
from everturn.chat.actions import run_action
from everturn.chat.failures import logged
from everturn.chat.hooks import Phase
from everturn.chat.intake import NOWHERE
from everturn.chat.state import ChatRun
from everturn.chat.turn import run_turn
from everturn.chat.turn_view import model_messages
from everturn.protocol.records import Input
from everturn.rules import limits
from everturn.rules.boot import FirstStep
from everturn.tasks import scope


async def with_tasks(work: Callable[[TaskGroup], Awaitable[None]]) -> None:
    """Run `work` beside the tasks it starts; on return all of them have ended.

    The first exception comes out as it was raised, not wrapped in a group, because the callers
    above tell outcomes apart by type.
    """
    try:
        async with anyio.create_task_group() as tasks:
            await work(tasks)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def drive(run: ChatRun) -> None:
    """Boot, and take inputs until the run ends. Raises what ends the attempt."""
    run.observer.phase("boot")
    with tracing.span(run, "chat.boot"):
        step = await boot.boot(run)
    _watch(run)
    run.intake.listen()
    phase: Phase = "continuation"
    if step is FirstStep.HANDOVER:
        if not await _head_start(run):
            step = FirstStep.END
        phase = "turn"
    elif step is FirstStep.PRELOAD or step is FirstStep.WAIT_PRELOAD:
        phase = "preload"
        await _preload(run, fires=step is FirstStep.PRELOAD)
    elif step is FirstStep.PAYLOAD:
        if not await _handle(run, Input(NOWHERE, "message", run.payload)):
            step = FirstStep.END
        phase = "turn"
    while step is not FirstStep.END:
        if run.runtime.draining.aborted or (phase == "turn" and _is_over(run)):
            break
        if not run.intake.has_work():
            with tracing.waiting(run):
                if not await _wait(run, phase):
                    break
        head = run.intake.head()
        if head is not None and head.trigger == "close":
            run.intake.drop_head()
            break
        if not await _handle(run, None):
            break
        phase = "turn"
    # The committed cursor as it stands: idle stops and a close are decided without a record.
    run.runtime.report(cursor=run.intake.cursor(), turns=run.turns_started)
    run.observer.phase("end")


def _watch(run: ChatRun) -> None:
    """Tell the message policy and steering of what waits, and of what comes."""
    run.policy.booted(run)
    run.policy.watch(run)
    run.steering.watch(run)


async def _handle(run: ChatRun, item: Input | None) -> bool:
    """One turn or action, or a refusal in place of one. False when the run ends with it."""
    words = run.policy.refusal(run) if item is None else None
    if words is not None:
        await run.policy.refuse(run, words)
        return True
    head = item if item is not None else run.intake.head()
    if head is not None and head.trigger == "action":
        await run_action(run, item)
        return True
    return await run_turn(run, item)


def _is_over(run: ChatRun) -> bool:
    """What runs next, §2.9: `max_turns` ends at once; a request ends when nothing is queued."""
    if run.turn_index >= run.agent.options.max_turns:
        return True
    return not run.intake.has_work() and (run.upgrade_requested or run.end_requested)


async def _preload(run: ChatRun, *, fires: bool) -> None:
    """§2.5: the run exists before its first message. Failures here fail the run."""
    run.preloaded = True
    run.observer.phase("preload")
    run.client_data = run.agent.client_data(run.payload.get("metadata"))
    if fires and run.agent.hooks.has("on_preload"):
        event = hooks.PreloadEvent(
            ctx=run.ctx,
            run_id=run.ctx.run.id,
            chat_id=run.chat_id,
            client_data=run.client_data,
            chat_access_token=await run.tokens.current(),
            writer=run.writer(),
        )
        await run.hook("on_preload", event)
        run.lane.apply()


async def _head_start(run: ChatRun) -> bool:
    """§2.6: wait for the first step of the answer and finish it. False when the run ends.

    A message that was sent meanwhile keeps a run alive whose warm side failed: it is answered
    here, with the history of the head start, which no successor would have.
    """
    run.observer.phase("handover")
    given = await handover.receive(
        run, handover.window_s(run.payload, run.agent.options.idle_timeout_s)
    )
    if given is None:
        return run.intake.has_work()
    return await run_turn(run, handover.input_of(run, given), given)


# --- waiting ------------------------------------------------------------------------------------


async def _wait(run: ChatRun, phase: Phase) -> bool:
    """Wait for the next input, warm and then suspended. False when the run is to end."""
    while True:
        run.observer.phase("wait")
        idle_s = _idle_s(run, phase)
        if idle_s > 0 and await run.intake.arrives(idle_s):
            return True
        if phase == "preload" and run.agent.options.exit_after_preload_idle:
            return False
        await _suspend_hook(run, "on_chat_suspend", phase)
        if run.runtime.draining.aborted or not await _suspend(run, phase):
            return False
        await _suspend_hook(run, "on_chat_resume", phase)
        run.intake.source.open()
        if run.intake.has_work():
            return True


async def _suspend(run: ChatRun, phase: Phase) -> bool:
    """Give up the slot until a record comes. False when the suspend timeout came first."""
    run.observer.phase("suspended")
    until_ms = run.runtime.clock.now_ms() + int(_suspend_s(run, phase) * 1000)
    await _wait_hook(scope.of(run.runtime).on_wait, "on_wait")
    woken = await run.intake.source.suspend(until_ms=until_ms, ready=run.intake.has_work)
    if woken:
        await _wait_hook(scope.of(run.runtime).on_resume, "on_resume")
    return woken


async def _wait_hook(hook: scope.WaitHook | None, name: str) -> None:
    """A hook around the run; what it raises is logged, as with the hooks of the chat."""
    if hook is not None:
        await logged(lambda: hook({"type": "session"}), name)


def _idle_s(run: ChatRun, phase: Phase) -> float:
    """Runtime override (after turns) > agent option > payload > default (D-15)."""
    options = run.agent.options
    if phase == "turn" and run.idle_timeout_s is not None:
        return run.idle_timeout_s
    if phase == "preload" and options.preload_idle_timeout_s is not None:
        return options.preload_idle_timeout_s
    if options.idle_timeout_s is not None:
        return options.idle_timeout_s
    hint = run.payload.get("idleTimeoutInSeconds")
    if isinstance(hint, int | float) and not isinstance(hint, bool) and hint >= 0:
        return float(hint)
    return limits.IDLE_TIMEOUT_S


def _suspend_s(run: ChatRun, phase: Phase) -> float:
    """Runtime override > `preload_timeout` (preload wait only) > `turn_timeout`."""
    options = run.agent.options
    if run.turn_timeout_s is not None:
        return run.turn_timeout_s
    if phase == "preload" and options.preload_timeout_s is not None:
        return options.preload_timeout_s
    return options.turn_timeout_s


async def _suspend_hook(run: ChatRun, name: str, phase: Phase) -> None:
    """Suspend and resume hooks; what they raise is logged, and the wait goes on (D-13)."""
    if not run.agent.hooks.has(name):
        return
    made = hooks.ChatSuspendEvent if name == "on_chat_suspend" else hooks.ChatResumeEvent
    after_turn = phase == "turn" and run.turn_index > 0  # actions are no turns
    event = made(
        ctx=run.ctx,
        run_id=run.ctx.run.id,
        chat_id=run.chat_id,
        client_data=run.client_data,
        phase=phase,
        turn=run.turn_index - 1 if after_turn else None,
        ui_messages=run.lane.messages if after_turn else None,
        model_lane=(lambda: model_messages(run, None)) if after_turn else list,
    )
    await logged(lambda: run.hook(name, event), name)
