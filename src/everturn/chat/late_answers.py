"""Answers to tool calls: which calls a message moves on, and where the turn about them goes on.

A call may be answered, or decided, long after it was asked: later steps of its message stand
behind it, or whole messages, because the user said something else first or answers on a device
that shows an older state. The answer is put onto the message that holds the call, wherever that
stands (R-138), and the turn about it goes on in that message (R-194): that is where its readers
look for the result. A model, on the other hand, speaks to what comes last, and a decided approval
is carried out only at the very end of a request. So for the model, and for this turn only, the
calls that are to be spoken to stand at the end; the stored history keeps its order.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Final

from everturn.chat.parts import (
    CLIENT_STATES,
    Message,
    Part,
    is_tool_part,
    parts_of,
    tool_parts,
)
from everturn.chat.ui_messages import (
    UIMessage,
    awaits_model,
    find,
    find_by_tool_call,
    id_of,
    index_of,
    newly_answered,
    repair,
    tool_call_ids,
)
from everturn.errors import InvalidRequest

if TYPE_CHECKING:
    from everturn.chat.state import ChatRun, TurnState

#: Of a call whose approval was decided, and that was not carried out yet.
_DECIDED: Final = "approval-responded"


def refuse_unknown(run: ChatRun, state: TurnState) -> None:
    """An approval of a call that the history does not hold is nobody's answer to anything.

    Taken for a message like any other, it would be a call that a client made up, input and all,
    and allowed by itself. An author who keeps the history (`hydrate_messages`) vouches for it.

    Raises InvalidRequest; what was sent does not join the history.
    """
    if run.agent.hydrates:
        return
    decided = {
        part["toolCallId"]
        for part in tool_parts(state.incoming[0])
        if part.get("state") == _DECIDED
    }
    known = {call for message in run.lane.messages for call in tool_call_ids(message)}
    if not known.issuperset(decided):
        state.incoming, state.validated, state.history_changed = [], True, True
        raise InvalidRequest("this chat holds no such tool call to approve")


def compare(run: ChatRun, state: TurnState, before: Sequence[Message]) -> None:
    """What the turn's incoming message has changed of the calls in the history, given as it was.

    An answer that is given twice, or comes too late, must not make the model speak again.
    """
    found = repair(state.incoming)  # in an author's loop nobody has done it yet
    if len(found) != 1 or found[0].get("role") != "assistant":
        return
    (answer,) = found
    calls = tool_call_ids(answer)
    holder = find_by_tool_call(run.lane.messages, calls) or run.lane.last
    if holder is None:
        return
    state.answered = newly_answered(before, run.lane.messages, answer)
    state.continued_id = id_of(holder)
    known = find_by_tool_call(before, calls) is not None
    state.nothing_new = known and not state.answered and not awaits_model(holder)


def continued(run: ChatRun, state: TurnState) -> UIMessage | None:
    """The message that this turn's answer goes on with; None when it begins one of its own."""
    last = run.lane.last
    found = find(run.lane.messages, state.continued_id) or last
    if found is None or found.get("role") != "assistant" or not id_of(found):
        return None
    return UIMessage(found)


def for_model(run: ChatRun, state: TurnState | None) -> list[Message]:
    """The UI lane in the order in which a model is asked: what it is to speak to comes last."""
    if state is None:
        return answers_last(run.lane.messages)
    return answers_last(run.lane.messages, state.answered, state.continued_id)


def answers_last(
    ui_messages: Sequence[Message], answered: Set[str] = frozenset(), message_id: str = ""
) -> list[Message]:
    """The history with the calls that are to be spoken to next at its very end.

    Args:
        answered: tool calls whose answer has just come.
        message_id: of the message that holds them; of the last one by default.
    """
    found = list(ui_messages)
    place = index_of(found, message_id)
    if place is None:
        place = len(found) - 1
    if not found or found[place].get("role") != "assistant":
        return found
    is_last = place == len(found) - 1
    late = _late(parts_of(found[place]), answered, is_last=is_last)
    if not late:
        return found
    kept = [part for part in parts_of(found[place]) if not any(part is moved for moved in late)]
    found[place] = {**found[place], "parts": kept}
    if found[-1].get("role") == "assistant":
        found[-1] = {**found[-1], "parts": [*parts_of(found[-1]), *late]}
    else:
        found.append({"id": "", "role": "assistant", "parts": late})
    return found


def _late(parts: Sequence[Part], answered: Set[str], *, is_last: bool) -> list[Part]:
    """The calls of a message that have to move to the end of the history.

    Of the last message its last step is the end already. Of an earlier one that step moves too
    where the model did not speak to it yet: an answer may be repeated because its turn failed.
    """
    steps = [place for place, part in enumerate(parts) if part.get("type") == "step-start"]
    last_step = steps[-1] if steps else 0
    return [
        part
        for place, part in enumerate(parts)
        if is_tool_part(part)
        and (
            (not is_last and place >= last_step and part.get("state") in CLIENT_STATES)
            or (
                not (is_last and place >= last_step)
                and (_is_decided(part) or part.get("toolCallId") in answered)
            )
        )
    ]


def _is_decided(part: Part) -> bool:
    return part.get("state") == _DECIDED and isinstance(part.get("approval"), dict)
