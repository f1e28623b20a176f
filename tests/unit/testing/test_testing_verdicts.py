"""The judges of what was shown and of what is stored find what they are there to find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from everturn.chat.definition import NO_WORDS
from everturn.chat.transcript import Snapshot
from everturn.protocol.records import InputCursor, Record, trim_record
from everturn.testing.checker import PromiseBroken, Turn
from everturn.testing.verdicts import Shown, check_answers, check_shown, check_stored_history


def message(seq: int, text: str = "hi", **payload: Any) -> Record:
    said = {"id": f"m{seq}", "role": "user", "parts": [{"type": "text", "text": text}]}
    whole = {"kind": "message", "payload": {"message": said, **payload}}
    body = json.dumps({"data": json.dumps(whole), "id": f"part-{seq}"}).encode()
    return Record(seq, 0, (), body)


def action(seq: int) -> Record:
    whole = {"kind": "message", "payload": {"trigger": "action", "action": {}}}
    return Record(seq, 0, (), json.dumps({"data": json.dumps(whole), "id": f"p{seq}"}).encode())


def trim(seq: int, to: int) -> Record:
    new = trim_record(to)
    return Record(seq, 1, new.headers, new.body)


def turn(answers: int, text: str, *chunks: Mapping[str, Any]) -> Turn:
    spoken = {"type": "text-delta", "id": "1", "delta": text}
    return Turn(InputCursor(answers), 10 + answers, [spoken, *map(dict, chunks)], [answers])


def stored(ids: Sequence[str], *, last_out: int | None = 9, upto: int | None = 1) -> Snapshot:
    messages = [{"id": id, "role": "user", "parts": []} for id in ids]
    return Snapshot(messages, last_out, InputCursor(upto))


def injected(*ids: str) -> dict[str, Any]:
    marker = {"type": "data-pending-message-injected", "data": {"messageIds": list(ids)}}
    return {"id": "answer", "role": "assistant", "parts": [marker]}


INPUTS = [message(0), message(1), message(2)]


class TestTheStoredHistory:
    def test_one_that_holds_what_it_covers_and_reaches_to_the_trim_is_whole(self) -> None:
        check_stored_history(INPUTS, [trim(11, 10)], stored(["m0", "a", "m1"]))

    def test_none_is_whole_while_nothing_was_trimmed(self) -> None:
        check_stored_history(INPUTS, [], None)

    @pytest.mark.parametrize("history", [None, stored(["m0", "m1"], last_out=8)])
    def test_a_trim_past_what_is_stored_is_found(self, history: Snapshot | None) -> None:
        with pytest.raises(PromiseBroken, match="P-9: out record 11 trims to 10"):
            check_stored_history(INPUTS, [trim(11, 10)], history)

    def test_a_message_that_is_covered_and_not_there_is_found(self) -> None:
        with pytest.raises(PromiseBroken, match=r"P-9.*covers in record 1 .*'m1'"):
            check_stored_history(INPUTS, [], stored(["m0", "a"]))

    def test_a_steered_message_stands_in_the_answer_it_joined(self) -> None:
        history = stored(["m0"])
        history.messages.append(injected("m1"))
        check_stored_history(INPUTS, [], history)

    def test_a_message_that_is_there_twice_is_found(self) -> None:
        for twice in (stored(["m0", "m1", "m0"]), stored(["m0", "m1"])):
            twice.messages.append(injected("m1"))
            with pytest.raises(PromiseBroken, match=r"P-8.*more than once"):
                check_stored_history(INPUTS, [], twice)

    def test_an_action_may_have_taken_messages_out(self) -> None:
        check_stored_history([*INPUTS, action(3)], [], stored([], upto=3))


class TestWhatWasShown:
    def test_the_answer_as_it_is_stored_is_right(self) -> None:
        check_shown([Shown(0, "hello", None)], [turn(0, "hello")])

    @pytest.mark.parametrize("shown", [Shown(0, "hel", None), Shown(0, "hello", "it broke")])
    def test_any_other_answer_is_found(self, shown: Shown) -> None:
        with pytest.raises(PromiseBroken, match="P-7: the answer to in record 0"):
            check_shown([shown], [turn(0, "hello")])

    def test_a_message_that_joined_another_turn_was_shown_the_rest_of_it(self) -> None:
        joined = Turn(InputCursor(1), 9, [{"type": "text-delta", "delta": "all of it"}], [0, 1])
        check_shown([Shown(1, "it", None)], [joined])


class TestAnswers:
    def test_a_whole_answer_is_right(self) -> None:
        check_answers("echo", [message(0, "hi")], [turn(0, "you said hi")])

    def test_an_answer_that_was_cut_off_by_nobody_is_found(self) -> None:
        with pytest.raises(PromiseBroken, match="P-3: turn 0 of echo"):
            check_answers("echo", [message(0, "hi")], [turn(0, "you said")])

    def test_an_answer_that_failed_visibly_may_be_cut_off(self) -> None:
        failed = turn(0, "you", {"type": "error", "errorText": "it broke"})
        check_answers("echo", [message(0, "hi")], [failed])

    def test_a_poisoned_history_is_found_by_the_agent_that_refuses_it(self) -> None:
        refused = turn(0, "", {"type": "error", "errorText": NO_WORDS})
        check_answers("echo", [message(0)], [refused])
        with pytest.raises(PromiseBroken, match="P-8: turn 0 of strict"):
            check_answers("strict", [message(0)], [refused])

    def test_an_agent_that_has_forgotten_a_turn_is_found(self) -> None:
        inputs = [message(0), message(1)]
        check_answers("eager", inputs, [turn(0, "answer 1"), turn(1, "answer 3")])
        with pytest.raises(PromiseBroken, match="P-3: turn 1 of eager"):
            check_answers("eager", inputs, [turn(0, "answer 1"), turn(1, "answer 1")])
