"""The transition table of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everturn.errors import IllegalTransition
from everturn.rules.run_states import (
    FINAL,
    PUBLIC_STATUS,
    RESIDENT,
    SLOTTED,
    TRANSITIONS,
    RunEvent,
    RunState,
    next_state,
    public_status,
    sources,
)

#: What the 4.5.0 client accepts; anything else fails its schema (wire-protocol §9.4).
ACCEPTED = {
    "PENDING_VERSION", "QUEUED", "DEQUEUED", "EXECUTING", "WAITING", "COMPLETED", "CANCELED",
    "FAILED", "CRASHED", "SYSTEM_FAILURE", "DELAYED", "EXPIRED", "TIMED_OUT",
}  # fmt: skip


def test_a_final_run_takes_no_event() -> None:
    for state in FINAL:
        for event in RunEvent:
            with pytest.raises(IllegalTransition):
                next_state(state, event)


def test_every_state_that_is_not_final_can_be_cancelled() -> None:
    for state in set(RunState) - FINAL:
        assert next_state(state, RunEvent.CANCEL) is RunState.CANCELED


def test_a_suspended_run_holds_no_slot_and_stays_in_the_hands_of_its_worker() -> None:
    """P-10."""
    assert RunState.SUSPENDED not in SLOTTED
    assert RunState.SUSPENDED in RESIDENT
    assert SLOTTED <= RESIDENT


def test_whatever_a_worker_holds_can_be_interrupted() -> None:
    assert sources(RunEvent.INTERRUPT) == RESIDENT


@given(st.lists(st.sampled_from(list(RunEvent)), max_size=40))
def test_any_sequence_of_legal_events_keeps_to_known_states_and_ends_in_a_final_one(
    events: list[RunEvent],
) -> None:
    state = RunState.QUEUED
    for event in events:
        if (state, event) in TRANSITIONS:
            state = next_state(state, event)
        assert state in RunState
        assert PUBLIC_STATUS[state] in ACCEPTED


def test_clients_see_only_statuses_they_accept() -> None:
    shown = {public_status(state) for state in RunState}
    shown |= {
        public_status(RunState.QUEUED, delayed=True),
        public_status(RunState.QUEUED, version_known=False),
    }
    assert shown <= ACCEPTED
