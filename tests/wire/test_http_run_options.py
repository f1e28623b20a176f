"""Options of a trigger that act later: time to live, debounce (tasks-and-runs §4.5, §4.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from http_harness import START_MS, Http, Reply, server

from everturn.rules import limits
from everturn.server.sweeps import OFTEN, sweep_once
from everturn.storage.ports.rows import TaskVersion, Wait, Worker

pytestmark = pytest.mark.anyio

JOB = "/api/v1/tasks/job/trigger"
DEBOUNCE = {"key": "k", "delay": "5s"}


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def trigger(http: Http, payload: Any = 1, task: str = "job", **options: Any) -> Reply:
    path = f"/api/v1/tasks/{task}/trigger"
    return await http("POST", path, {"payload": payload, "options": options})


async def triggered(http: Http, payload: Any = 1, task: str = "job", **options: Any) -> str:
    reply = await trigger(http, payload, task, **options)
    assert reply.status == 200, reply
    run_id: str = reply.json["id"]
    return run_id


async def retrieved(http: Http, run_id: str) -> Any:
    return (await http("GET", f"/api/v3/runs/{run_id}")).json


async def pass_s(http: Http, seconds: float) -> None:
    await http.clock.advance(seconds)
    await sweep_once(http.system.services, {"expired_runs": OFTEN["expired_runs"]})


async def register(http: Http, **config: Any) -> None:
    """A further task, `brief`, as its worker declares it."""
    now_ms = http.clock.now_ms()
    services = http.system.services
    worker = Worker(
        id="worker_2",
        environment_id=http.system.environment.id,
        version="v2",
        server_id=services.server_id,
        lease_until_ms=now_ms + 10**9,
        registered_at_ms=now_ms,
    )
    tasks = [TaskVersion(task_id="brief", config=config), TaskVersion(task_id="job")]
    await services.state.register_worker(worker, tasks, {}, now_ms=now_ms)


class TestTimeToLive:
    async def test_a_run_that_nobody_starts_in_time_expires_and_says_why(self, http: Http) -> None:
        # W-115
        run = await triggered(http, ttl="2s")
        assert (await retrieved(http, run))["ttl"] == "2s"
        await pass_s(http, 1.5)
        assert (await retrieved(http, run))["status"] == "QUEUED"
        await pass_s(http, 0.5)

        found = await retrieved(http, run)

        assert (found["status"], found["isCompleted"], found["isFailed"]) == ("EXPIRED", True, True)
        assert found["expiredAt"] == found["finishedAt"]
        assert found["error"] == {"message": "Run expired because the TTL (2s) was reached"}

    async def test_it_counts_from_the_end_of_the_delay(self, http: Http) -> None:
        # W-115
        run = await triggered(http, ttl=2, delay="10s")
        await pass_s(http, 11.5)
        assert (await retrieved(http, run))["status"] == "QUEUED"
        await pass_s(http, 0.5)
        assert (await retrieved(http, run))["status"] == "EXPIRED"

    async def test_a_run_that_was_started_once_does_not_expire(self, http: Http) -> None:
        run = await triggered(http, ttl=2)
        state = http.system.services.state
        await state.claim_runs("worker_1", limit=1, now_ms=http.clock.now_ms())
        await pass_s(http, 5)
        assert (await retrieved(http, run))["status"] == "DEQUEUED"

    async def test_the_trigger_wins_over_the_task_and_nothing_means_for_ever(
        self, http: Http
    ) -> None:
        # W-115
        await register(http, ttl=2)
        of_task, longer, never = [
            await triggered(http, task="brief", **options)
            for options in ({}, {"ttl": "1h30m"}, {"ttl": 0})
        ]
        await pass_s(http, 3)

        shown = [await retrieved(http, run) for run in (of_task, longer, never)]

        assert [run["status"] for run in shown] == ["EXPIRED", "QUEUED", "QUEUED"]
        assert [run.get("ttl") for run in shown] == ["2s", "1h30m", None]

    async def test_a_waiting_parent_hears_that_its_child_expired(self, http: Http) -> None:
        parent = await triggered(http)
        state, now_ms = http.system.services.state, http.clock.now_ms()
        [claimed] = await state.claim_runs("worker_1", limit=1, now_ms=now_ms)
        await state.start_run(parent, fence=claimed.fence, now_ms=now_ms)
        child = await triggered(http, ttl=2, parentRunId=parent, resumeParentOnCompletion=True)
        wait = Wait(kind="run", ref=child)
        await state.suspend_run(parent, wait, fence=claimed.fence, now_ms=now_ms)

        await pass_s(http, 2)

        assert (await retrieved(http, parent))["status"] != "WAITING"
        result = (await http("GET", f"/api/v1/runs/{child}/result")).json
        assert result["error"]["type"] == "STRING_ERROR"

    @pytest.mark.parametrize("ttl", ["soon", -1, "2026-01-01"])
    async def test_a_time_to_live_that_is_none_is_refused_by_name(
        self, http: Http, ttl: Any
    ) -> None:
        # W-115
        reply = await trigger(http, ttl=ttl)
        assert reply.status == 422
        assert "ttl" in reply.json["error"]


class TestDebounce:
    async def test_calls_in_a_row_become_one_run_that_waits_for_a_pause(self, http: Http) -> None:
        # W-116
        first = await trigger(http, 1, debounce=DEBOUNCE)
        await http.clock.advance(3)
        second = await trigger(http, 2, debounce=DEBOUNCE)

        assert second.json == {"id": first.json["id"], "isCached": True}
        found = await retrieved(http, first.json["id"])
        assert (found["status"], found["payload"]) == ("DELAYED", 1)
        assert found["delayedUntil"] > found["createdAt"]
        run = await http.system.services.state.run(None, first.json["id"])
        assert run is not None
        assert run.not_before_ms == (START_MS + 8000) // 1000 * 1000

    async def test_the_last_call_gives_the_payload_when_it_is_trailing(self, http: Http) -> None:
        # W-116
        trailing = DEBOUNCE | {"mode": "trailing"}
        run = await triggered(http, 1, debounce=trailing, tags=["a"])
        await triggered(http, 2, debounce=trailing, tags=["b"], metadata={"m": 1})

        found = await retrieved(http, run)
        assert (found["payload"], found["tags"], found["metadata"]) == (2, ["b"], {"m": 1})

    async def test_a_run_is_put_off_only_so_long(self, http: Http) -> None:
        # W-116
        bounded = DEBOUNCE | {"maxDelay": "7s"}
        first = await triggered(http, debounce=bounded)
        await http.clock.advance(3)
        assert await triggered(http, debounce=bounded) != first
        assert (await retrieved(http, first))["delayedUntil"].endswith("05.000Z")

    async def test_a_one_time_token_may_put_off_a_run_that_is_there(self, http: Http) -> None:
        # W-26, W-116
        token = http.token("trigger:tasks:job", otu=True)
        body = {"payload": 2, "options": {"debounce": DEBOUNCE}}
        first = await triggered(http, 1, debounce=DEBOUNCE)

        used = await http("POST", JOB, body, key=token)
        again = await http("POST", JOB, body, key=token)

        assert (used.status, used.json["id"]) == (200, first)
        assert again.status == 422

    async def test_callers_that_race_share_one_run(self, http: Http) -> None:
        # W-116
        made: set[str] = set()

        async def call() -> None:
            made.add(await triggered(http, debounce=DEBOUNCE))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(call)

        assert len(made) == 1

    @pytest.mark.parametrize(
        ("bad", "named"),
        [
            ({"delay": "soon"}, "debounce.delay"),
            ({"delay": "0s"}, "debounce.delay"),
            ({"delay": "2026-04-24T09:00:00Z"}, "debounce.delay"),
            ({"maxDelay": "x"}, "debounce.maxDelay"),
            ({"key": ""}, "debounce.key"),
            ({"key": "k" * (limits.DEBOUNCE_KEY_CHARS_MAX + 1)}, "debounce.key"),
        ],
    )
    async def test_what_cannot_be_meant_is_refused_by_name(
        self, http: Http, bad: dict[str, str], named: str
    ) -> None:
        # W-116
        reply = await trigger(http, debounce=DEBOUNCE | bad)
        assert reply.status == 422
        assert named in reply.json["error"]
