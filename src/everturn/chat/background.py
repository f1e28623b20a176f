"""Work beside the turns, and what it tells the model: `chat.defer`, `chat.inject` (§4.4).

Deferred work starts at once, as a task of the run. What was deferred during a turn belongs to its
set, which is waited for before the turn completes, for 5 s at most; what was deferred before the
first turn joins the first one's. Once a turn has its turn-complete, and between turns, work joins
no set: nobody waits for it, and a run that suspends or ends may leave it unfinished.

Injected messages are for the model only. They wait in a queue of the run and go to the end of the
model lane when a turn starts or, inside a turn, before the next request to the model. Since the
model lane is derived from the UI lane, a place in it is kept as the id of the UI message before
it. That way later turns of the run still hear of them, at the same place; with that message they
are gone, as they are in the next run.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyio.abc import TaskGroup

from everturn.chat.failures import logged
from everturn.chat.parts import is_tool_part, parts_of
from everturn.clock import Clock
from everturn.errors import TooLarge
from everturn.rules import limits
from everturn.tasks.racing import within
from everturn.tasks.signals import Notice

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

log = logging.getLogger("everturn.chat")
Message = dict[str, Any]
#: Work to do beside a turn: something to await, or a function, sync or async.
Work = Awaitable[Any] | Callable[[], Any]


class Deferred:
    """Work that one turn waits for."""

    def __init__(self) -> None:
        self._open = 0
        self._settled = Notice()

    def begin(self) -> None:
        self._open += 1

    def end(self) -> None:
        self._open -= 1
        if self._open == 0:
            settled, self._settled = self._settled, Notice()
            settled.set()

    async def settle(self, clock: Clock) -> None:
        """Return when all of it has ended, or after 5 s."""
        if self._open > 0:
            await within(clock, limits.DEFERRED_S_MAX, self._settled.wait)


class Background:
    """The background of one run."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._running = 0
        #: What was deferred before the first turn, which takes it over.
        self.early = Deferred()
        self._queue: list[Any] = []
        self._placed: list[_Placed] = []

    # --- chat.defer ------------------------------------------------------------------------------

    def defer(self, work: Work, joins: Deferred | None) -> None:
        """Start `work`; `joins` is the set of the turn that waits for it, if one does.

        Raises TooLarge when limits.DEFERRED_MAX pieces are running already.
        """
        if self._running >= limits.DEFERRED_MAX:
            if inspect.iscoroutine(work):
                work.close()
            raise TooLarge(
                f"{self._running} pieces of deferred work are running, which is the most"
            )
        self._running += 1
        if joins is not None:
            joins.begin()
        self._tasks.start_soon(self._do, work, joins)

    async def _do(self, work: Work, joins: Deferred | None) -> None:
        async def call() -> None:
            value = work() if callable(work) else work
            if inspect.isawaitable(value):
                await value

        try:
            await logged(call, "defer")
        finally:
            self._running -= 1
            if joins is not None:
                joins.end()

    # --- chat.inject -----------------------------------------------------------------------------

    def inject(self, messages: Sequence[Any]) -> None:
        """Queue messages for the model, in order.

        Args:
            messages: text (said by the user), `{"role", "content"}` of role system, user or
                assistant, UI messages, or messages of the model library. The last one is for the
                model to answer, so it is not an assistant's.

        Raises:
            TypeError, ValueError: what is none of these. Nothing is queued then.
            TooLarge: more than limits.INJECTED_MAX would wait.
        """
        for message in messages:
            _check(message)
        if messages and _role(messages[-1]) == "assistant":
            raise ValueError("the last injected message cannot be the assistant's: nobody answers")
        if len(self._queue) + len(messages) > limits.INJECTED_MAX:
            raise TooLarge(f"at most {limits.INJECTED_MAX} injected messages wait for a request")
        self._queue.extend(messages)

    def place(self, ui_messages: Sequence[Message]) -> None:
        """Drain 1: a turn starts; put what waits at the end of its model lane (T17).

        Not behind the results of tool calls: a provider wants those right after the calls, and
        the turn is about to answer them. They wait for the first step boundary then.
        """
        if self._placed:
            # Without an id there is no place to find again: good for the one turn.
            known = {message["id"] for message in ui_messages if message.get("id")}
            self._placed = [placed for placed in self._placed if placed.after in known]
        if not ends_in_calls(ui_messages):
            self._put(ui_messages, self._taken())

    def take(self, ui_messages: Sequence[Message]) -> list[ModelMessage]:
        """Drain 2, at a step boundary: what waits, for the next request of this turn.

        Whoever calls puts them into the history of the model run. For later turns they stand
        before the answer of this one, after the newest of `ui_messages`.
        """
        taken = self._taken()
        self._put(ui_messages, [copy.copy(message) for message in taken])
        return taken

    def lane(
        self,
        ui_messages: Sequence[Message],
        convert: Callable[[Sequence[Message], bool], list[ModelMessage]],
    ) -> list[ModelMessage]:
        """The model lane: `ui_messages` converted, injected messages at their places.

        `convert` takes a slice of the messages and whether it is the last one.
        """
        if not self._placed:
            return convert(ui_messages, True)
        ends = {None: 0, **{m.get("id"): end for end, m in enumerate(ui_messages, 1)}}
        lane: list[ModelMessage] = []
        start = 0
        for placed in sorted(self._placed, key=lambda placed: ends.get(placed.after, 0)):
            end = ends.get(placed.after)
            if end is None:
                continue  # its message is gone, and it with it
            if end > start:
                lane += convert(ui_messages[start:end], end == len(ui_messages))
                start = end
            lane += placed.copies()
        if start < len(ui_messages):
            lane += convert(ui_messages[start:], True)
        return lane

    def _taken(self) -> list[ModelMessage]:
        # Emptied first: what cannot be converted must not fail every turn from here on.
        waiting, self._queue = self._queue, []
        return [made for item in waiting for made in _as_model_messages(item)]

    def _put(self, ui_messages: Sequence[Message], taken: list[ModelMessage]) -> None:
        if not taken:
            return
        after = ui_messages[-1].get("id") if ui_messages else None
        self._placed.append(_Placed(after, taken))
        while sum(len(placed.messages) for placed in self._placed) > limits.INJECTED_MAX:
            # The oldest have been heard by now; a run that injects for ever must stay small.
            del self._placed[0]


class _Placed:
    """Injected messages and the id of the UI message they come after."""

    __slots__ = ("after", "messages")

    def __init__(self, after: Any, messages: list[ModelMessage]) -> None:
        self.after = after
        self.messages = messages

    def copies(self) -> list[ModelMessage]:
        """For one model run, which writes its own marks into the messages it is given."""
        return [copy.copy(message) for message in self.messages]


def ends_in_calls(ui_messages: Sequence[Message]) -> bool:
    """Whether the model lane of these messages ends in tool results or decided approvals."""
    if not ui_messages or ui_messages[-1].get("role") != "assistant":
        return False
    for part in reversed(parts_of(ui_messages[-1])):
        if part.get("type") == "step-start":
            return False
        if is_tool_part(part):
            return True
    return False


# --- forms of messages ----------------------------------------------------------------------------


def _check(message: Any) -> None:
    role = _role(message)
    if role is None:
        raise TypeError(f"a {type(message).__name__} is no message for the model")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"an injected message is of role system, user or assistant, not {role!r}")
    if not isinstance(message, Mapping) or isinstance(message.get("parts"), list):
        return
    if not isinstance(message.get("content"), str):
        raise TypeError("an injected message has `content` (text) or `parts`")


def _role(message: Any) -> Any:
    """The role of a message in any of its forms; None for what is no message."""
    if isinstance(message, str):
        return "user"
    if isinstance(message, Mapping):
        return message.get("role")
    kind = getattr(message, "kind", None)
    return {"request": "user", "response": "assistant"}.get(kind) if isinstance(kind, str) else None


def _as_model_messages(message: Any) -> list[ModelMessage]:
    if not isinstance(message, str | Mapping):
        return [message]
    from everturn.chat import conversion

    if isinstance(message, str):
        message = {"role": "user", "content": message}
    if not isinstance(message.get("parts"), list):
        parts = [{"type": "text", "text": message["content"]}]
        message = {"id": "", "role": message["role"], "parts": parts}
    return conversion.to_model_messages([dict(message)])
