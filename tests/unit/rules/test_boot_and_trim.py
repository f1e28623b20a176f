"""Decisions of a boot, and how far a turn may trim (chat-agent §2.3, §2.15)."""

from __future__ import annotations

from typing import Any

from everturn.protocol.records import Input, InputCursor
from everturn.rules.boot import FirstStep, first_step, open_inputs, recover
from everturn.rules.trimming import TrimChain


def message(seq_num: int, trigger: str = "submit-message") -> Input:
    return Input(seq_num, "message", {"trigger": trigger, "message": {"id": f"m{seq_num}"}})


def stop(seq_num: int, target: int | None = None) -> Input:
    return Input(seq_num, "stop", {} if target is None else {"targetSeq": target})


def recovered(*items: Input, **facts: Any) -> Any:
    return recover(**{"prior": True, "attempt": 1, "has_partial": False, **facts}, undecided=items)


def test_a_trim_goes_to_the_turn_before_once_a_snapshot_covers_it() -> None:
    chain = TrimChain()
    assert chain.advance(4) is None
    chain.stored(4)
    assert chain.advance(9) == 4


def test_a_trim_waits_for_a_snapshot_and_never_goes_back() -> None:
    chain = TrimChain(4)
    assert chain.advance(9) == 4
    assert chain.advance(14) is None
    chain.stored(14)
    assert chain.advance(19) == 14


def test_an_author_who_keeps_history_needs_no_snapshot() -> None:
    chain = TrimChain(bounded=False)
    assert [chain.advance(4), chain.advance(9)] == [None, 4]


def test_decided_numbers_above_the_cursor_are_not_open() -> None:
    items = [message(3), message(4), message(6)]
    cursor = InputCursor(3, frozenset({6}))
    assert open_inputs(items, cursor) == [items[1]]


def test_a_continuation_without_a_partial_recovers_everything_in_order() -> None:
    items = (message(1), message(2, "action"), message(3))
    assert recovered(*items).turns == items


def test_a_continuation_with_a_partial_counts_its_message_as_answered() -> None:
    found = recovered(message(1), message(2), has_partial=True)
    assert (found.spliced, found.turns) == (message(1), (message(2),))
    assert found.keeps_partial
    assert found.asks_hook


def test_a_further_attempt_answers_the_message_of_the_partial_again() -> None:
    found = recovered(message(1), message(2), has_partial=True, attempt=2)
    assert found.turns == (message(1), message(2))
    assert not found.keeps_partial


def test_only_a_stop_newer_than_the_first_open_message_stops_it() -> None:
    assert recovered(stop(0), message(1)).stopped is None
    assert recovered(message(1), stop(2)).stopped == message(1)
    assert recovered(message(1), stop(2, target=9)).stopped is None


def test_a_stop_that_names_a_later_message_waits_for_the_turn_of_that_one() -> None:
    found = recovered(message(1), message(2), stop(3, target=2))
    assert (found.stopped, found.stops) == (None, (stop(3, target=2),))
    assert found.turns == (message(1), message(2))
    both = recovered(message(1), message(2), stop(3), stop(4, target=2))
    assert (both.stopped, both.turns, both.stops) == (
        message(1),
        (message(2),),
        (stop(4, target=2),),
    )


def test_a_close_ends_the_run_only_when_it_is_newest_and_alone() -> None:
    assert recovered(message(1, "close")).ends == message(1, "close")
    assert recovered(message(1), message(2, "close")).ends is None


def test_the_first_step_of_a_run() -> None:
    def step(payload: dict[str, Any], **facts: Any) -> FirstStep:
        base = {
            "attempt": 1,
            "started": False,
            "payload_open": False,
            "queued": False,
            "ends": False,
        }
        return first_step(payload, **{**base, **facts})

    preload = {"trigger": "preload"}
    assert step(preload) is FirstStep.PRELOAD
    assert step(preload, queued=True) is FirstStep.QUEUE
    assert step(preload, started=True) is FirstStep.WAIT_PRELOAD
    assert step({"continuation": True}) is FirstStep.WAIT
    assert step({"continuation": True}, ends=True) is FirstStep.END
    assert step({"trigger": "submit-message"}) is FirstStep.WAIT
    assert step({"trigger": "submit-message"}, payload_open=True) is FirstStep.PAYLOAD
    assert step({"trigger": "regenerate-message"}) is FirstStep.PAYLOAD
    assert step({"trigger": "close"}) is FirstStep.END


def test_a_head_start_keeps_its_handover_and_the_stops_that_mean_it() -> None:
    message = Input(0, "message", {"message": {"id": "u"}})
    stale = Input(1, "stop", {"kind": "stop"})
    handed = Input(2, "handover", {"kind": "handover"})
    again = Input(3, "handover-skip", {"kind": "handover-skip"})
    stop = Input(4, "stop", {"kind": "stop"})

    found = recover(
        prior=True,
        attempt=2,
        has_partial=True,
        undecided=[message, stale, handed, again, stop],
        expects_handover=True,
    )

    assert found.handover == (handed, stop)
    assert found.turns == (message,)
    assert found.stopped is None, "the stops did not mean the message"
    assert not found.asks_hook, "what lies on .out is the warm side's"


def test_a_head_start_waits_for_its_handover_until_a_turn_has_committed() -> None:
    facts = {"attempt": 2, "payload_open": False, "queued": True, "ends": False}
    payload = {"trigger": "handover-prepare"}

    assert first_step(payload, started=False, **facts) is FirstStep.HANDOVER
    assert first_step(payload, started=True, **facts) is FirstStep.QUEUE


def test_a_stop_that_names_a_message_which_came_after_it_stops_nothing() -> None:
    """P-6: nobody could know that number. A run that sees such a stop ignores it; a boot too."""
    early = recovered(stop(0, target=1), message(1), message(2))
    assert early.stopped is None
    assert [item.seq_num for item in early.turns] == [1, 2]
    assert early.dropped == (0,)
    queued = recovered(message(1), stop(2, target=3), message(3))
    assert queued.stops == ()
    assert queued.dropped == (2,)
    meant = recovered(message(1), stop(2, target=1), message(3))
    assert meant.stopped == message(1)
