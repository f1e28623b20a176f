"""Leases, and the payloads that runs of sessions are born with."""

from __future__ import annotations

import msgspec
import pytest

from everturn.rules import leases, limits
from everturn.rules.boot_records import (
    continuation_payload,
    failure_part_id,
    first_payload,
    is_failure_part,
)


def test_a_holder_stops_before_its_lease_may_be_given_away() -> None:
    """rulings §2.6: trusted from when the beat was sent, less a margin."""
    sent_s, arrived_ms = 100.0, 100_500
    assert leases.trusted_until(sent_s) * 1000 < leases.renewed_until(arrived_ms)
    assert leases.renewed_until(arrived_ms) - leases.trusted_until(sent_s) * 1000 >= (
        limits.LEASE_MARGIN_MS
    )


def test_a_lease_is_live_until_its_end_and_not_at_it() -> None:
    until_ms = leases.renewed_until(0)
    assert leases.is_live(until_ms, until_ms - 1)
    assert not leases.is_live(until_ms, until_ms)


@pytest.mark.parametrize("trigger", ["submit-message", "action", "regenerate-message"])
def test_a_first_message_is_stripped_into_a_record(trigger: str) -> None:
    """rulings §1.4"""
    base = {"chatId": "c", "trigger": trigger, "message": {"id": "m"}, "metadata": {"u": 1}}
    payload, boot = first_payload(base, session_id="session_x", idle_timeout_s=60)

    assert boot is not None
    assert msgspec.json.decode(boot) == {"kind": "message", "payload": base}
    assert payload == {
        "chatId": "c",
        "metadata": {"u": 1},
        "sessionId": "session_x",
        "idleTimeoutInSeconds": 60,
    }


@pytest.mark.parametrize("trigger", ["preload", "handover-prepare", "close"])
def test_other_triggers_stay_in_the_payload(trigger: str) -> None:
    payload, boot = first_payload(
        {"trigger": trigger, "messages": []}, session_id="s", idle_timeout_s=None
    )
    assert boot is None
    assert payload == {"trigger": trigger, "messages": [], "sessionId": "s"}


def test_a_message_without_a_trigger_is_a_submitted_one() -> None:
    payload, boot = first_payload({"message": {"id": "m"}}, session_id="s", idle_timeout_s=None)
    assert boot is not None
    assert msgspec.json.decode(boot)["payload"]["trigger"] == "submit-message"
    assert "message" not in payload


def test_a_continuation_carries_no_work() -> None:
    """wire-protocol §4.8"""
    payload = continuation_payload(
        {"chatId": "c", "message": {}, "messages": [], "trigger": "submit-message"},
        session_id="s",
        idle_timeout_s=None,
        previous_run_id="run_1",
    )
    assert payload == {
        "chatId": "c",
        "sessionId": "s",
        "continuation": True,
        "previousRunId": "run_1",
        "answersAgain": True,
    }


def test_the_records_of_a_failed_message_name_run_and_message() -> None:
    part = failure_part_id("run_1", 7, "tc")
    assert part == "fail:run_1:7:tc"
    assert is_failure_part(part, "run_1")
    assert not is_failure_part(part, "run_10")
