"""The judge of stops, and of what a reader saw over HTTP: what it accepts, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from everturn.protocol.records import (
    CONTROL_HEADER,
    IN_CURSOR_HEADER,
    TURN_COMPLETE,
    Record,
    trim_record,
)
from everturn.testing.checker import (
    PromiseBroken,
    check_history,
    check_reader,
    check_stops,
    stops_meant_for,
)


def sent(seq: int, chunk: Mapping[str, Any]) -> Record:
    body = json.dumps({"data": json.dumps(chunk), "id": f"part-{seq}"}).encode()
    return Record(seq, 0, (), body)


def message(seq: int) -> Record:
    payload = {"trigger": "submit-message", "message": {"id": f"m{seq}", "parts": []}}
    return sent(seq, {"kind": "message", "payload": payload})


def stop(seq: int, target: int | None = None) -> Record:
    return sent(seq, {"kind": "stop"} | ({} if target is None else {"targetSeq": target}))


def chunk(seq: int, kind: str) -> Record:
    return Record(seq, 0, (), json.dumps({"data": {"type": kind}, "id": f"1-{seq}"}).encode())


def complete(seq: int, cursor: int) -> Record:
    return Record(seq, 0, ((CONTROL_HEADER, TURN_COMPLETE), (IN_CURSOR_HEADER, str(cursor))))


STOPPED = [chunk(0, "start"), chunk(1, "abort"), complete(2, 0)]


class TestStops:
    def test_a_turn_may_be_cut_off_by_a_stop_that_names_its_message(self) -> None:
        inputs = [message(0), stop(1, target=0)]
        turns = check_history(inputs, STOPPED)
        check_stops(inputs, turns)
        assert stops_meant_for(turns[0], inputs) == [1]

    def test_a_turn_may_be_cut_off_by_a_stop_behind_its_message_that_names_none(self) -> None:
        inputs = [message(0), stop(1)]
        check_stops(inputs, check_history(inputs, STOPPED))

    @pytest.mark.parametrize("others", [[], [stop(1, target=7)]], ids=["none", "of another turn"])
    def test_a_turn_that_was_cut_off_without_a_stop_of_its_own_is_found(
        self, others: list[Record]
    ) -> None:
        inputs = [message(0), *others]
        with pytest.raises(PromiseBroken, match=r"P-6.*messages \[0\]"):
            check_stops(inputs, check_history(inputs, STOPPED))

    def test_one_stop_that_ends_two_turns_is_found(self) -> None:
        inputs = [message(0), message(1), stop(2)]
        outputs = [*STOPPED, chunk(3, "start"), chunk(4, "abort"), complete(5, 1)]
        with pytest.raises(PromiseBroken, match=r"P-6.*messages \[1\]"):
            check_stops(inputs, check_history(inputs, outputs))


class TestReaders:
    """A reader that was away may go on where a trim command let the log begin."""

    @pytest.mark.parametrize("start", [3, 200], ids=["a number that is text", "one that is not"])
    def test_a_trim_is_known_by_its_bytes_and_by_what_http_makes_of_them(self, start: int) -> None:
        command = trim_record(start)
        lossy = command.body.decode("utf-8", "replace").encode()
        for body in (command.body, lossy):
            seen = [Record(start, 0, (), b"x"), Record(start + 1, 0, command.headers, body)]
            check_reader(seen, [Record(n, 0, (), b"x") for n in range(start)] + seen)

    def test_a_gap_that_no_trim_explains_is_found(self) -> None:
        command = trim_record(4)
        log = [Record(n, 0, (), b"x") for n in range(6)]
        log.append(Record(6, 0, command.headers, command.body))
        with pytest.raises(PromiseBroken, match="P-2: a reader got 5 after 2"):
            check_reader([*log[:3], *log[5:]], log)
