"""Runs changed over HTTP: replay, reschedule, idempotency keys, filters (wire-protocol §9)."""

from __future__ import annotations

from typing import Any

import pytest
from http_harness import Http, server, session_body

pytestmark = pytest.mark.anyio


async def triggered(http: Http, **options: Any) -> str:
    body = {"payload": {"n": 1}, "options": options}
    run: str = (await http("POST", "/api/v1/tasks/job/trigger", body)).json["id"]
    return run


async def retrieved(http: Http, run: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http("GET", f"/api/v3/runs/{run}")).json
    return found


async def test_a_replay_copies_what_the_run_was_given_and_not_its_key_or_limits() -> None:
    # W-108
    async with server() as http:
        options = {"tags": ["a"], "metadata": {"m": 1}, "queue": {"name": "q"}}
        kept = await triggered(
            http, idempotencyKey="k", delay="1h", maxAttempts=2, test=True, **options
        )
        replayed = (await http("POST", f"/api/v1/runs/{kept}/replay")).json["id"]
        old, new = await retrieved(http, kept), await retrieved(http, replayed)

    assert replayed != kept
    assert new["payload"] == old["payload"] == {"n": 1}
    assert (new["tags"], new["metadata"], new["isTest"]) == (["a"], {"m": 1}, True)
    assert (old["status"], new["status"]) == ("DELAYED", "QUEUED")
    assert "idempotencyKey" not in new


async def test_a_run_of_a_session_or_an_unknown_run_is_not_replayed() -> None:
    # W-108
    async with server() as http:
        session = (await http("POST", "/api/v1/sessions", session_body())).json
        refused = await http("POST", f"/api/v1/runs/{session['runId']}/replay")
        unknown = await http("POST", "/api/v1/runs/run_none/replay")
        public = await http("POST", "/api/v1/runs/run_none/replay", key=http.token("admin"))

    assert refused.status == 422
    assert unknown.status == 404
    assert public.status == 401


async def test_a_delayed_run_is_moved_and_no_other() -> None:
    # W-109
    async with server() as http:
        delayed = await triggered(http, delay="1h")
        queued = await triggered(http)
        moved = await http("POST", f"/api/v1/runs/{delayed}/reschedule", {"delay": "2h"})
        refused = await http("POST", f"/api/v1/runs/{queued}/reschedule", {"delay": "2h"})
        past = await http(
            "POST", f"/api/v1/runs/{delayed}/reschedule", {"delay": "2020-01-01T00:00:00Z"}
        )
        nonsense = await http("POST", f"/api/v1/runs/{delayed}/reschedule", {"delay": "soon"})
        empty = await http("POST", f"/api/v1/runs/{delayed}/reschedule", {})
        unknown = await http("POST", "/api/v1/runs/run_none/reschedule", {"delay": "2h"})

    assert moved.json["delayedUntil"] == "2026-04-23T01:20:00.000Z"
    assert moved.json["relatedRuns"] == {}
    assert [r.status for r in (refused, past, nonsense, empty, unknown)] == [
        422,
        422,
        422,
        400,
        404,
    ]


async def test_a_reset_key_starts_a_new_run() -> None:
    # W-113
    async with server() as http:
        first = await triggered(http, idempotencyKey="a/b")
        assert await triggered(http, idempotencyKey="a/b") == first
        path = "/api/v1/idempotencyKeys/a%2Fb/reset"
        other = await http("POST", path, {"taskIdentifier": "agent"})
        refused = await http("POST", path, {"taskIdentifier": "job"}, key=http.token("read:runs"))
        mine = http.token("write:runs")
        reset = await http("POST", path, {"taskIdentifier": "job"}, key=mine)
        again = await http("POST", path, {"taskIdentifier": "job"})
        empty = await http("POST", path, {})

        assert (reset.status, reset.json) == (200, {"id": "a/b"})
        assert (other.status, refused.status, again.status) == (404, 403, 404)
        assert empty.status == 400
        assert await triggered(http, idempotencyKey="a/b") != first


async def test_a_delayed_run_is_listed_as_such_and_not_as_queued() -> None:
    # W-104, W-105
    async with server() as http:
        delayed, queued = await triggered(http, delay="1h"), await triggered(http)

        async def listed(status: str) -> set[str]:
            found = (await http("GET", f"/api/v1/runs?filter[status]={status}")).json
            return {run["id"] for run in found["data"]}

        assert await listed("DELAYED") == {delayed}
        assert await listed("QUEUED") == {queued}
        assert await listed("QUEUED,DELAYED") == {queued, delayed}
        assert await listed("EXECUTING") == set()


async def test_runs_are_listed_by_machine() -> None:
    # W-105
    async with server() as http:
        small = await triggered(http, machine="micro")
        await triggered(http, machine="large-1x")
        found = (await http("GET", "/api/v1/runs?filter[machine]=micro,small-1x")).json

    assert [run["id"] for run in found["data"]] == [small]
