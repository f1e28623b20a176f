"""The unmodified npm package @trigger.dev/sdk 4.5.0: wait tokens, subscriptions, packets, batches.

Wire-protocol §18.6 to §18.8, on a real server and worker.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Driver

from everturn.testing.processes import System

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    app = Path(__file__).parent.parent / "apps" / "tasks.py"
    with System(tmp_path_factory.mktemp("runs"), app) as running:
        yield running


@pytest.fixture
def drive(node_folder: Path, system: System) -> Driver:
    return Driver(node_folder, system, "drive_runs.mjs")


def fresh() -> str:
    return uuid.uuid4().hex[:12]


@pytest.mark.parametrize("task", ["waiting", "sync-waiting"])
def test_a_run_waits_for_a_token_until_it_is_completed(drive: Driver, task: str) -> None:
    seen = drive.run("token", id=fresh(), task=task)

    token = seen["token"]["id"]
    assert seen["token"]["isCached"] is False
    assert seen["token"]["publicAccessToken"]
    assert seen["before"]["status"] == "WAITING"
    assert seen["listed"] == [token]
    assert seen["completed"] == seen["again"] == {"success": True}
    assert seen["ended"]["status"] == "COMPLETED"
    assert seen["ended"]["output"]["said"]["yes"] is True
    assert seen["after"]["status"] == "COMPLETED"
    assert seen["after"]["output"] == {"yes": True, "on": "1970-01-01T00:00:00.000Z"}


def test_a_third_party_completes_a_token_by_its_url(drive: Driver) -> None:
    seen = drive.run("callback", id=fresh())

    assert (seen["status"], seen["body"]) == (200, {"success": True})
    assert seen["output"] == {"ok": True, "output": {"approved": "by mail"}, "error": ""}


def test_a_run_goes_on_when_its_token_times_out(drive: Driver) -> None:
    seen = drive.run("timeout", id=fresh())

    assert seen["status"] == "TIMED_OUT"
    assert seen["output"]["ok"] is False
    assert "not completed in time" in seen["output"]["error"]
    assert seen["error"]


def test_a_subscription_follows_a_run_to_its_end(drive: Driver) -> None:
    seen = drive.run("subscribe", id=fresh())["seen"]

    assert seen[-1]["status"] == "COMPLETED"
    assert seen[-1]["output"] == {"steps": 3}
    steps = [one["step"] for one in seen if one.get("step") is not None]
    assert steps == sorted(steps)
    assert {0, 2} <= set(steps), "changes arrive while the run is under way"


def test_a_subscription_by_tag_sees_runs_that_start_later(drive: Driver) -> None:
    seen = drive.run("sets", id=fresh())

    assert {run for run, _ in seen["tagged"]} == set(seen["ids"])


def test_runs_are_replayed_moved_listed_and_their_keys_reset(drive: Driver) -> None:
    seen = drive.run("mutations", id=fresh())

    assert seen["replayed"]["id"] != seen["first"]["id"]
    assert seen["again"]["output"] == {"doubled": 42}
    assert seen["before"]["status"] == "DELAYED"
    assert seen["moved"]["delayedUntil"] > seen["before"]["delayedUntil"]
    assert seen["canceled"] == [seen["delayed"]["id"]]
    assert seen["cached"]["id"] == seen["keyed"]["id"]
    assert seen["cached"]["isCached"] is True
    assert seen["fresh"]["id"] != seen["keyed"]["id"]


def test_a_payload_too_large_for_a_request_travels_as_a_packet(drive: Driver) -> None:
    size = 4 * 1024 * 1024

    seen = drive.run("packet", id=fresh(), size=size)

    assert seen == {"output": {"length": size}, "back": size}


def test_a_batch_becomes_runs_in_the_order_of_its_items(drive: Driver) -> None:
    seen = drive.run("batch", id=fresh())

    assert seen["handle"]["runCount"] == 3
    assert seen["handle"]["publicAccessToken"]
    assert seen["whole"]["runCount"] == 3
    assert seen["outputs"] == [2, 4, 6]
    assert seen["seen"] == ["double", "measure"]
    assert set(seen["listed"]) == set(seen["whole"]["runs"])
    assert seen["ids"][0] == seen["ids"][1]


def test_a_stream_of_a_run_is_read_from_any_place(drive: Driver) -> None:
    seen = drive.run("streams", id=fresh())

    assert seen["seen"] == [{"line": 0}, {"line": 1}, {"line": 2}]
    assert seen["later"] == ["b", "c"]


def test_a_batch_token_starts_one_batch_of_its_task(drive: Driver) -> None:
    """Wire-protocol §3.5: any task may begin, each item's task is checked, one use in all."""
    seen = drive.run("batchToken", id=fresh())

    assert seen["runs"] == 1
    assert seen["again"] == 422
    assert seen["other"] in (403, 422)
