"""The unmodified npm package @trigger.dev/sdk, 4.5.0 and 4.8.3: lists, streams, tokens, refusals.

Wire-protocol §18.1 and §18.5 to §18.8, what `test_official_runs.py` leaves out. All scenarios of a
package are played once, by one process, and each test looks at its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driver import Driver, installed, played, saw

from everturn.testing.processes import System

# Packages are installed within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["node", "node-newest"])
def seen_all(request: pytest.FixtureRequest, tasks_system: System) -> dict[str, Any]:
    """What the calls of each scenario saw."""
    return played(request.param, "drive_rest.mjs", tasks_system)


def test_sessions_are_listed_by_every_filter_and_page_by_page(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "sessionList")

    assert seen["paged"] == seen["all"]
    assert seen["pages"] == [2, 2, 2]
    assert seen["closed"] == seen["all"][:1]
    assert (seen["active"], seen["odd"], seen["task"]) == (4, 2, 5)
    assert seen["one"] == [seen["all"][2]]
    assert (seen["recent"], seen["since"], seen["before"]) == (5, 5, 0)


def test_a_start_action_begins_a_chat_and_mints_tokens_for_it(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "startAction")
    assert seen == {"token": 1, "life": 600, "same": True, "kept": seen["kept"]}


def test_calls_within_a_token_are_made_with_it(seen_all: dict[str, Any]) -> None:
    assert saw(seen_all, "within") == {"seen": True, "made": "string", "many": 1}


def test_the_options_of_a_trigger_config_are_those_of_its_run(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "triggerConfig")

    assert seen["status"] == "COMPLETED"
    assert "configured" in seen["tags"]
    assert seen["id"] in seen["onMachine"]


def test_runs_are_listed_by_every_filter_and_page_by_page(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "runList")

    assert seen["paged"] == seen["all"]
    assert seen["pages"] == [2, 2, False]
    assert seen["env"] == "string"
    assert (seen["completed"], seen["delayed"], seen["task"], seen["tags"]) == (3, 1, 1, 2)
    assert (seen["version"], seen["otherVersion"]) == (3, 0)
    assert (seen["queue"], seen["custom"]) == (3, 0)
    assert (seen["isTest"], seen["isNoTest"]) == (0, 4)
    for never in ("machine", "region", "schedule", "batch", "bulkAction"):
        assert seen[never] == 0
    assert (seen["period"], seen["from"], seen["to"]) == (4, 4, 0)


def test_runs_are_listed_by_project(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "runList")
    assert (seen["project"], seen["elsewhere"]) == (seen["all"], [])


def test_streams_are_read_by_every_function_there_is(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "streams")

    lines, letters = [{"line": 0}, {"line": 1}], ["a", "b", "c"]
    assert seen["defined"] == lines
    assert seen["fetched"] == letters


def test_a_subscription_with_streams_finds_them_by_itself(seen_all: dict[str, Any]) -> None:
    followed = saw(seen_all, "streams")["followed"]

    assert followed["run"] >= 1
    assert followed["story"] == [{"line": 0}, {"line": 1}]
    assert followed["letters"] == ["a", "b", "c"]


def test_writing_a_stream_outside_of_a_run_asks_nothing(seen_all: dict[str, Any]) -> None:
    assert saw(seen_all, "streams")["outside"] == 0


def test_input_reaches_a_run_that_listens_and_is_refused_after_its_end(
    seen_all: dict[str, Any],
) -> None:
    seen = saw(seen_all, "input")

    assert seen["output"] == {"heard": ["hello", {"deep": [1, None]}, "bye"]}
    assert seen["sent"] == [1, 1, 1]
    assert seen["echo"][0] == "heard hello"
    assert saw(seen_all, "streams")["ended"] == 400


def test_tokens_of_every_kind_open_what_they_say(seen_all: dict[str, Any]) -> None:
    assert saw(seen_all, "tokens") == {
        "own": True,
        "foreign": 403,
        "first": True,
        "second": True,
        "measure": 403,
        "batch": 1,
    }


def test_options_of_a_trigger_reach_the_run(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "options")

    assert (seen["output"], seen["metadata"]) == ({"doubled": 8}, {"m": {"deep": 1}})
    assert (seen["ttl"], seen["queue"]) == ("1h", True)


def test_debounced_triggers_become_one_run(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "options")
    assert (seen["same"], seen["debounced"]) == (True, {"doubled": 2})


def test_a_run_past_its_time_to_live_ends_a_poll(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "options")

    message = "Run expired because the TTL (1s) was reached"
    assert seen["expired"] == ["EXPIRED", True, message]
    assert seen["bad"] == [422, 1]


def test_idempotency_keys_find_expire_and_are_reset(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "keys")
    assert seen == {"same": True, "fresh": True, "expired": True, "unknown": 404}


def test_a_batch_by_task_objects_becomes_runs_in_order(seen_all: dict[str, Any]) -> None:
    seen = saw(seen_all, "batches")

    assert seen["outputs"] == [{"doubled": 2}, {"length": 3}]
    assert seen["unknown"] == [404, 1]


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("body", 400),
        ("credential", 401),
        ("forbidden", 403),
        ("run", 404),
        ("session", 404),
        ("closed", 409),
        ("rule", 422),
        ("task", 404),
        ("delayed", 422),
        ("token", 404),
    ],
)
def test_a_refusal_that_repeating_cannot_cure_is_asked_once(
    seen_all: dict[str, Any], what: str, status: int
) -> None:
    # W-4
    found, of_class = saw(seen_all, "refusals")[what], _CLASSES[status]
    assert found[:2] == [of_class, status]
    # What the scenario asks for before, and the refused request itself.
    assert found[2] == {"closed": 3, "forbidden": 2, "delayed": found[2]}.get(what, 1)


_CLASSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
}


def test_a_run_that_is_not_visible_yet_is_asked_for_again(seen_all: dict[str, Any]) -> None:
    # W-103
    assert saw(seen_all, "refusals")["visible"] == ["NotFoundError", 404, 3]


@pytest.mark.parametrize("folder", ["node", "node-newest"])
def test_a_client_past_its_limit_waits_as_it_is_told(folder: str, tmp_path: Path) -> None:
    # W-13
    app = Path(__file__).parent.parent / "apps" / "tasks.py"
    limited = {
        "EVERTURN_RATE_LIMITS": "true",
        "EVERTURN_RATE_CAPACITY": "6",
        "EVERTURN_RATE_REFILL": "20",
    }
    with System(tmp_path, app, environment=limited) as running:
        driver = Driver(installed(folder), running, "drive_rest.mjs")
        seen = saw(driver.run("limited"), "limited")

    assert seen["asked"] == 12, "every call was answered in the end"
    assert seen["requests"] > 12, "some were refused first"
    assert (seen["class"], seen["status"]) == ("RateLimitError", 429)
