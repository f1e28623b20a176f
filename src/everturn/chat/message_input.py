"""`chat.messages`: the messages of a chat, for a loop the author wrote (chat-agent §4.10).

Every way of taking a message takes the head of the run's one FIFO. The first message taken begins
a turn; further ones join it; `chat.write_turn_complete()` ends it and commits all of them, and no
message that still waits. A process that dies in between finds them again, in order.

Stops and handovers are no messages: they never appear here, and a wait goes on past them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from everturn.chat import tracing
from everturn.chat.failures import ends_attempt
from everturn.chat.handover import Handover
from everturn.chat.state import ChatRun, TurnState, current_run
from everturn.chat.turn import begin
from everturn.client.results import Err, Ok
from everturn.errors import InputStreamTimeoutError, WaitTimeoutError
from everturn.protocol.records import Input
from everturn.tasks.durations import Duration
from everturn.tasks.durations import parse as seconds

log = logging.getLogger("everturn.chat")

Payload = Mapping[str, Any]
Callback = Callable[[], object]


def take(run: ChatRun, item: Input | None = None, given: Handover | None = None) -> Input:
    """Take the FIFO's head (or `item` from elsewhere) as the turn in progress, or into it."""
    run.input_used = True
    if run.turn is not None and item is None:
        return run.intake.join()
    return begin_turn(run, item, given).item


def begin_turn(run: ChatRun, item: Input | None, given: Handover | None = None) -> TurnState:
    """Make the FIFO's head, or `item`, the turn in progress; stops reach their listeners."""
    state = begin(run, item, "turn")
    state.handover = given
    tracing.begin_turn(run, state)

    def stopped(reason: str) -> None:
        for listener in list(run.stop_listeners):
            listener(reason)

    state.stop.on_abort(stopped)
    return state


async def arrives(
    run: ChatRun,
    idle_s: float,
    timeout_s: float | None,
    *,
    suspends: bool = True,
    on_suspend: Callback | None = None,
    on_resume: Callback | None = None,
) -> bool:
    """Wait until the FIFO holds a message: warm for `idle_s`, then suspended for `timeout_s`.

    False when it does not. Other records wake the run without ending the wait.
    """
    run.input_used = True
    run.intake.listen()
    while not run.intake.has_work():
        run.observer.phase("wait")
        with tracing.waiting(run):
            if idle_s > 0 and await run.intake.arrives(idle_s):
                return True
            if not suspends:
                return False
            await _called(on_suspend)
            run.observer.phase("suspended")
            until_ms = None
            if timeout_s is not None:
                until_ms = run.runtime.clock.now_ms() + int(timeout_s * 1000)
            if not await run.intake.source.suspend(until_ms=until_ms, ready=run.intake.has_work):
                return False
            run.intake.source.open()
            await _called(on_resume)
    return True


async def _called(callback: Callback | None) -> None:
    result = callback() if callback is not None else None
    if inspect.isawaitable(result):
        await result


class MessageInput:
    """`chat.messages`. Everything raises ChatContextError outside of a run."""

    def peek(self) -> Payload | None:
        """The payload of the next message if it is here already; takes nothing."""
        head = current_run().intake.head()
        return head.payload if head is not None else None

    async def once(self, timeout: Duration | None = None) -> Ok[Payload] | Err:
        """The next message, without suspending. `Err(InputStreamTimeoutError)` when time is up."""
        run = current_run()
        run.input_used = True
        run.intake.listen()
        limit_s = None if timeout is None else seconds(timeout)
        run.observer.phase("wait")
        if not await run.intake.arrives(limit_s):
            return Err(InputStreamTimeoutError(f"no message within {limit_s} s"))
        return _taken(run)

    async def wait(self, timeout: Duration | None = None) -> Ok[Payload] | Err:
        """The next message, with the run suspended until it comes. `Err(WaitTimeoutError)`."""
        return await self.wait_with_idle_timeout(0, timeout=timeout)

    async def wait_with_idle_timeout(
        self,
        idle_timeout: Duration,
        *,
        timeout: Duration | None = None,
        skip_suspend: bool = False,
        on_suspend: Callback | None = None,
        on_resume: Callback | None = None,
    ) -> Ok[Payload] | Err:
        """The next message: warm for `idle_timeout`, then suspended for at most `timeout`.

        Args:
            skip_suspend: end with the idle window.
            on_suspend, on_resume: called before and after each suspension; may be async.

        Returns `Err(WaitTimeoutError)` when none came.
        """
        run = current_run()
        idle_s = seconds(idle_timeout)
        timeout_s = None if timeout is None else seconds(timeout)
        if await arrives(
            run,
            idle_s,
            timeout_s,
            suspends=not skip_suspend,
            on_suspend=on_suspend,
            on_resume=on_resume,
        ):
            return _taken(run)
        waited = idle_s if skip_suspend else timeout_s
        return Err(WaitTimeoutError(f"no message within {waited} s"))

    def on(self, handler: Callable[[Payload], object]) -> Callable[[], None]:
        """Hand every message to `handler`, those that wait first. Returns how to detach it.

        A message is consumed by being handed over: no wait returns it. What the handler raises
        is logged; an async one runs beside the loop.
        """
        run = current_run()
        run.input_used = True

        def arrived() -> None:
            while run.intake.has_work():
                _hand(run, handler, take(run).payload)

        undo = run.intake.watch(arrived)
        run.intake.listen()
        arrived()
        return undo


def _taken(run: ChatRun) -> Ok[Payload]:
    item = take(run)
    return Ok(item.payload, item.seq_num)


def _hand(run: ChatRun, handler: Callable[[Payload], object], payload: Payload) -> None:
    try:
        result = handler(payload)
    except Exception:  # author code: a failing handler must not end the tail
        log.exception("messages.handler_failed")
        return
    if inspect.isawaitable(result):
        run.tasks.start_soon(_logged, result)


async def _logged(work: Awaitable[object]) -> None:
    try:
        await work
    except Exception as error:  # author code: an async handler's failure is its own
        if ends_attempt(error):
            raise
        log.exception("messages.handler_failed")


messages = MessageInput()
