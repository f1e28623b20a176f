"""The unmodified npm package @trigger.dev/sdk 4.5.0 against a real server and worker.

Wire-protocol §18.1, §18.2.
"""

from __future__ import annotations

import uuid

import pytest
from driver import Driver

from everturn.testing.processes import System

pytestmark = pytest.mark.processes


def fresh(name: str) -> str:
    """An external id with a slash in it, which must be routed on the raw path (W-1)."""
    return f"{name}/{uuid.uuid4().hex[:8]}"


def test_sessions_start_send_read_list_update_and_close(drive: Driver) -> None:
    tag = fresh("tag")  # several clients are tried against one server
    seen = drive.run("sessions", id=fresh("inbox"), tag=tag)

    assert seen["started"]["isCached"] is False
    assert seen["again"]["isCached"] is True
    assert seen["again"]["id"] == seen["started"]["id"]
    assert seen["again"]["runId"] == seen["started"]["runId"]
    assert seen["out"] == [{"echo": {"n": 1}}, {"echo": "two"}, {"said": "goodbye"}]
    assert seen["retrieved"]["tags"] == ["one"]
    assert seen["retrieved"]["metadata"] == {"plan": "free"}
    assert seen["updated"]["tags"] == [tag]
    assert [item["id"] for item in seen["listed"]] == [seen["started"]["id"]]
    assert seen["closed"]["closedReason"] == "done"
    assert seen["closedAgain"]["closedReason"] == "done"


def test_agent_chat_answers_a_message_and_a_follow_up_on_the_same_run(drive: Driver) -> None:
    seen = drive.run("chat", id=fresh("chat"))

    assert seen["first"] == "echo: hello"
    assert seen["second"] == "echo: again"
    assert seen["runs"] == [seen["run"]], "the follow-up was served by the first run"
    assert int(seen["state"]["lastEventId"]) > int(seen["stateAfterFirst"]["lastEventId"])
    assert seen["closed"] is True


def test_a_chat_restored_from_last_event_id_sees_only_its_own_turn(drive: Driver) -> None:
    seen = drive.run("restore", id=fresh("restore"))

    assert seen["first"] == "echo: one"
    assert seen["second"] == "echo: two"
    assert int(seen["after"]["lastEventId"]) > int(seen["before"]["lastEventId"])


def test_stop_ends_the_answer_and_the_next_one_is_whole(drive: Driver) -> None:
    seen = drive.run("stop", id=fresh("stop"))

    assert seen["text"].startswith("w0 w1")
    assert "w39" not in seen["text"]
    assert seen["next"] == "short"


def test_a_client_in_mid_answer_gets_the_whole_answer_after_its_worker_was_killed(
    drive: Driver, system: System
) -> None:
    """P-3, rulings §1.6: the client sends nothing again."""
    process = drive.start("crash", id=fresh("crash"))
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "READY"
    system.kill_worker()
    system.start_worker(wait=False)
    seen = drive.finish(process)

    assert "data-restarted" in seen["types"]
    assert seen["text"].endswith("w38 w39 ")
    assert seen["types"].count("finish") == 1
