"""What the judges of whole systems look at beyond the log itself (`checker.py`).

The stored history against the log, what clients were shown against it, and what the agents of
`tests/apps/simulated.py` must have answered. Soaks and simulations judge by these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from everturn.chat.definition import NO_WORDS
from everturn.chat.injected import marked_ids
from everturn.chat.transcript import Snapshot
from everturn.protocol.records import Input, Record, parse_input, trim_target
from everturn.testing.checker import PromiseBroken, Turn, stops_meant_for

#: Words of the agent `slow`.
SLOW_WORDS: Final = 60


class Shown(NamedTuple):
    """An answer that a client read to its end: the message it sent, and what it was shown."""

    seq_num: int
    text: str
    error: str | None


def check_shown(shown: Sequence[Shown], turns: Sequence[Turn]) -> None:
    """What a client was told to be the answer is what the log says (P-3, P-7).

    Only for messages that begin their turn: one that joined a turn in progress is shown the rest.
    """
    beginning = {turn.answers[0]: turn for turn in turns}
    for one in shown:
        turn = beginning.get(one.seq_num)
        if turn is not None and (turn.text, turn.error) != (one.text, one.error):
            raise PromiseBroken(
                f"P-7: the answer to in record {one.seq_num} was shown as {one.text!r} "
                f"({one.error}), and stored as {turn.text!r} ({turn.error})"
            )


def check_stored_history(
    inputs: Sequence[Record], outputs: Sequence[Record], history: Snapshot | None
) -> None:
    """Nothing was trimmed that is not stored, and what is stored is whole (P-8, P-9).

    Where there was an action, that it is whole cannot be told: actions may take messages out.
    """
    covered = -1 if history is None or history.last_out is None else history.last_out
    for record in outputs:
        target = trim_target(record.headers, record.body)
        if target is not None and target > covered + 1:
            raise PromiseBroken(
                f"P-9: out record {record.seq_num} trims to {target}, "
                f"and the stored history covers {covered}"
            )
    if history is None:
        return
    ids = Counter(message.get("id") for message in history.messages)
    for message in history.messages:  # steered messages stand in the answer they joined (D-08)
        ids.update(marked_ids(message))
    twice = [id for id, times in ids.items() if times > 1]
    if twice:
        raise PromiseBroken(f"P-8: messages {twice} are in the history more than once")
    received_all = [parse_input(record) for record in inputs]
    if any(received.trigger == "action" for received in received_all):
        return
    for received in received_all:
        said = received.payload.get("message")
        if not isinstance(said, dict) or said.get("id") in ids:
            continue
        if history.cursor.covers(received.seq_num):
            raise PromiseBroken(
                f"P-9: the history covers in record {received.seq_num} "
                f"and does not hold its message {said.get('id')!r}"
            )


def check_answers(agent: str, inputs: Sequence[Record], turns: Sequence[Turn]) -> None:
    """Every answer is whole, failed visibly, or was stopped by a stop of its own (P-3, P-6).

    Agents that say how many messages they know of also tell that nothing was forgotten or put
    twice into history (P-8, P-9); until the first turn that ends early or drops history, that
    number is known.
    """
    messages = {one.seq_num: one for one in map(parse_input, inputs)}
    known = True
    for number, turn in enumerate(turns):
        asked = messages[turn.answers[0]]
        whole = _whole(agent, text_of(asked), number if known else None)
        if agent == "strict" and turn.error == NO_WORDS:
            # Its code raises for one reason only, as models of providers do.
            raise PromiseBroken(f"P-8: turn {number} of {agent} was given a poisoned history")
        known = known and turn.error is None and not turn.stopped and asked.trigger != "action"
        if turn.error is not None or whole is None or turn.text in whole:
            continue
        cut = any(text.startswith(turn.text) for text in whole)
        if not cut or not stops_meant_for(turn, inputs):
            raise PromiseBroken(
                f"P-3: turn {number} of {agent} answered {text_of(asked)!r} with {turn.text!r}"
            )


def text_of(message: Input) -> str:
    """What a person said in a message; empty for actions and the like."""
    body: Any = message.payload.get("message")
    parts = body.get("parts", ()) if isinstance(body, dict) else ()
    return "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")


def _whole(agent: str, text: str, number: int | None) -> list[str] | None:
    """What may be answered; None where anything may."""
    if agent == "echo":
        return [f"you said {text}"]
    if agent == "slow":
        return ["".join(f"w{n} " for n in range(SLOW_WORDS))]
    if agent == "asking":
        return [f"it says: you said {text}"]
    if agent in ("eager", "moving", "forgetful") and number is not None and text:
        word = "knows" if agent == "forgetful" else "answer"
        return [f"{word} {2 * number + 1}"]
    return None
