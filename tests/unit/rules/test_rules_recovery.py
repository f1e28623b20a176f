"""Decisions about runs whose process is gone, and sessions whose run has ended."""

from __future__ import annotations

from typing import Any

import pytest

from everturn.rules import limits
from everturn.rules.recovery import (
    EndedRun,
    Ending,
    FailVisibly,
    Finalise,
    LostRun,
    Requeue,
    decide_ended,
    decide_lost,
)
from everturn.rules.run_states import FINAL, RunState

S = RunState


def lost(state: RunState = S.RUNNING, **facts: Any) -> Any:
    return decide_lost(LostRun(**{"state": state, "is_agent": True, "on_session": True, **facts}))


def ended(state: RunState, **facts: Any) -> Ending:
    plain = {
        "is_agent": True,
        "was_working": True,
        "began_a_turn": True,
        "open_data": False,
        "open_first": False,
        "open_more": False,
    }
    return decide_ended(EndedRun(**{"state": state, **plain, **facts}))


def test_nothing_open_is_finalised() -> None:
    """rulings §1.8"""
    assert lost() == Finalise()


@pytest.mark.parametrize("what", ["open_input", "open_data"])
def test_something_open_is_queued_again(what: str) -> None:
    assert lost(**{what: True}) == Requeue(1)


def test_deaths_in_a_row_are_bounded() -> None:
    last = limits.INTERRUPTIONS_MAX - 1
    assert lost(open_input=True, interruptions=last - 1) == Requeue(last)
    assert lost(open_input=True, interruptions=last) == FailVisibly(limits.INTERRUPTIONS_MAX)


def test_progress_starts_the_count_anew() -> None:
    assert lost(open_input=True, interruptions=2, progress=True) == Requeue(1)


def test_a_drain_never_ends_a_run() -> None:
    assert lost(open_input=True, interruptions=99, died=False) == Requeue(99)


def test_a_superseded_run_ends() -> None:
    """rulings §1.11"""
    assert lost(open_input=True, is_current=False) == Finalise()


@pytest.mark.parametrize("state", [S.SUSPENDED, S.RESUMING])
def test_a_parked_agent_is_finalised_even_when_a_message_waits(state: RunState) -> None:
    """rulings §1.18: its successor answers it."""
    assert lost(state, open_input=True) == Finalise()


@pytest.mark.parametrize("state", [S.SUSPENDED, S.RESUMING])
def test_a_parked_task_goes_on_with_its_journal_and_no_death_counts(state: RunState) -> None:
    assert lost(state, is_agent=False, interruptions=2) == Requeue(2)


def test_a_claim_that_never_began_is_queued_again_although_nothing_is_open() -> None:
    assert lost(S.CLAIMED, died=False) == Requeue(0)


def test_a_task_that_dies_too_often_crashes() -> None:
    assert lost(is_agent=False, on_session=False, interruptions=2) == FailVisibly(3)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_quiet_end_needs_nothing(state: RunState) -> None:
    assert ended(state) == Ending(fail_first=False, start_successor=False)


def test_open_input_starts_the_successor_of_a_completed_run() -> None:
    """rulings §1.10"""
    assert ended(S.COMPLETED, open_first=True) == Ending(False, True)


def test_a_completed_run_never_fails_a_message() -> None:
    assert not ended(S.COMPLETED, open_first=True, open_data=True).fail_first


@pytest.mark.parametrize("state", [S.FAILED, S.CRASHED, S.TIMED_OUT])
def test_a_broken_run_fails_the_first_message_and_leaves_the_rest(state: RunState) -> None:
    """rulings §1.9"""
    assert ended(state, open_first=True) == Ending(True, False)
    assert ended(state, open_first=True, open_more=True) == Ending(True, True)


def test_a_run_that_failed_before_its_first_turn_starts_nothing() -> None:
    """rulings §1.10"""
    ending = ended(S.FAILED, began_a_turn=False, open_first=True, open_more=True)
    assert ending == Ending(True, False)


def test_a_cancelled_run_fails_only_what_it_was_working_on() -> None:
    assert ended(S.CANCELED, open_first=True).fail_first
    assert ended(S.CANCELED, open_first=True, was_working=False) == Ending(False, True)
    assert ended(S.CANCELED, open_data=True, was_working=False).fail_first


@pytest.mark.parametrize("state", sorted(FINAL))
def test_no_second_message_is_failed_when_the_decision_is_repeated(state: RunState) -> None:
    assert not ended(state, open_first=True, failed_already=True).fail_first


@pytest.mark.parametrize("state", sorted(FINAL))
def test_raw_tasks_get_no_successor(state: RunState) -> None:
    """rulings §1.16"""
    assert ended(state, is_agent=False, open_first=True, open_data=True) == Ending(False, False)
