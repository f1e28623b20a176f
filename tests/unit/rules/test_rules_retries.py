"""Is there another attempt, and after how long (tasks-and-runs §7)."""

from __future__ import annotations

from typing import Any

import pytest

from everturn.protocol.runs import RunOutcome
from everturn.rules import limits
from everturn.rules.retries import DELAY_MS_MAX, Retry, RetryPolicy, decide, delay_ms

NOW = 1_000_000
FIXED = RetryPolicy(randomize=False)


def low(a: float, b: float) -> float:
    return a


def after(failures: int, policy: RetryPolicy = FIXED, **members: Any) -> Retry | None:
    call = {"attempt": failures, "max_attempts": None, "machine": None}
    outcome = {"kind": "failed", "error": {"type": "BUILT_IN_ERROR", "message": "no"}}
    for name in list(members):
        (call if name in call else outcome)[name] = members[name]
    return decide(RunOutcome(**outcome), policy, failures=failures, now_ms=NOW, uniform=low, **call)


def test_delays_double_up_to_their_maximum() -> None:
    delays = [delay_ms(FIXED, n, low) for n in range(1, 9)]
    assert delays == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]


def test_a_random_delay_lies_between_once_and_twice_its_base() -> None:
    policy = RetryPolicy()
    assert delay_ms(policy, 1, lambda a, b: a) == 1_000
    assert delay_ms(policy, 1, lambda a, b: b) == 2_000


def test_a_large_attempt_number_does_not_overflow() -> None:
    assert delay_ms(RetryPolicy(factor=1e6, randomize=False), 250, low) == 60_000


def test_the_policy_counts_the_first_attempt() -> None:
    assert after(2) == Retry(2_000)
    assert after(3) is None


def test_the_bound_of_the_run_wins_over_the_policys() -> None:
    assert after(1, max_attempts=1) is None
    assert after(5, max_attempts=6) is not None


def test_what_is_not_retryable_fails_now() -> None:
    assert after(1, retryable=False) is None


def test_no_run_has_more_attempts_than_the_global_bound() -> None:
    assert after(1, attempt=limits.ATTEMPTS_MAX, max_attempts=1_000) is None


def test_a_time_the_author_chose_replaces_the_delay() -> None:
    assert after(1, retry_at_ms=NOW + 5) == Retry(5)
    assert after(1, retry_at_ms=NOW - 5) == Retry(0)


@pytest.mark.parametrize(("code", "again"), [("COULD_NOT_FIND_TASK", False), ("POD_EVICTED", True)])
def test_codes_of_the_platform_say_whether_trying_again_helps(code: str, again: bool) -> None:
    error = {"type": "INTERNAL_ERROR", "code": code}
    assert (after(1, error=error) is not None) is again


def test_running_out_of_memory_is_cured_by_another_machine_only() -> None:
    error = {"type": "INTERNAL_ERROR", "code": "TASK_PROCESS_OOM_KILLED"}
    assert after(1, error=error) is None
    assert decide(
        RunOutcome(kind="crashed", error=error, machine="large-1x"),
        FIXED,
        failures=1,
        attempt=1,
        max_attempts=3,
        machine="small-1x",
        now_ms=NOW,
        uniform=low,
    ) == Retry(0, "large-1x")


def test_the_policy_names_the_machine_for_a_run_that_ran_out_of_memory() -> None:
    error = {"type": "INTERNAL_ERROR", "code": "TASK_PROCESS_OOM_KILLED"}
    declared = {"retry": {"maxAttempts": 2, "outOfMemory": {"machine": "large-1x"}}}

    def on(machine: str, failures: int = 1) -> Retry | None:
        return decide(
            RunOutcome(kind="crashed", error=error, machine=machine),
            RetryPolicy.of(declared, default_attempts=1),
            failures=failures,
            attempt=failures,
            max_attempts=None,
            machine=machine,
            now_ms=NOW,
            uniform=low,
        )

    assert on("small-1x") == Retry(0, "large-1x")
    assert on("large-1x") is None, "the same machine would end the same way"
    assert on("small-1x", failures=2) is None


@pytest.mark.parametrize("retry", [None, "often", {"maxAttempts": "many"}])
def test_a_malformed_policy_counts_as_absent(retry: Any) -> None:
    assert RetryPolicy.of({"retry": retry}, default_attempts=3).max_attempts == 3


def test_a_policy_is_read_in_its_wire_form() -> None:
    policy = RetryPolicy.of(
        {"retry": {"minTimeoutInMs": 5, "randomize": False}}, default_attempts=2
    )
    assert (policy.max_attempts, policy.min_timeout_in_ms, policy.randomize) == (2, 5, False)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(float("inf"), DELAY_MS_MAX), (1e300, DELAY_MS_MAX), (float("nan"), 0), (-1.0, 0)],
)
def test_a_policy_without_a_longest_delay_gives_one_that_can_be_stored(
    longest: float, expected: int
) -> None:
    """`inf` for "no bound" is what an author may well write."""
    policy = RetryPolicy(factor=1e6, max_timeout_in_ms=longest, randomize=False)
    assert delay_ms(policy, 250, low) == expected
    assert delay_ms(RetryPolicy(min_timeout_in_ms=float("inf"), randomize=False), 1, low) == 60_000


def test_a_time_that_a_hook_names_can_be_stored_too() -> None:
    assert after(1, retry_at_ms=2**62) == Retry(DELAY_MS_MAX)
    assert after(1, retry_at_ms=-(2**62)) == Retry(0)
