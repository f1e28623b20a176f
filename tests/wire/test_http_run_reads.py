"""Further ways to read and start runs: events, traces, lists by project, whole batches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from http_harness import Http, server

from everturn.rules import limits
from everturn.rules.run_states import RunEvent

pytestmark = pytest.mark.anyio

JOB = "/api/v1/tasks/job/trigger"
BATCH = "/api/v2/tasks/batch"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def triggered(http: Http, **options: Any) -> str:
    reply = await http("POST", JOB, {"payload": 1, "options": options})
    assert reply.status == 200, reply
    run_id: str = reply.json["id"]
    return run_id


async def failed(http: Http) -> str:
    """A run that was started and failed a second later."""
    run_id = await triggered(http)
    state, now_ms = http.system.services.state, http.clock.now_ms()
    [run] = await state.claim_runs("worker_1", limit=1, now_ms=now_ms)
    await state.start_run(run_id, fence=run.fence, now_ms=now_ms)
    error = {"type": "BUILT_IN_ERROR", "name": "ValueError", "message": "no", "stackTrace": ""}
    await state.finish_run(run_id, RunEvent.FAIL, now_ms=now_ms + 1000, error=error)
    return run_id


class TestEventsAndTraces:
    async def test_events_are_the_changes_of_state_in_their_order(self, http: Http) -> None:
        # W-118
        run = await failed(http)

        events = (await http("GET", f"/api/v1/runs/{run}/events")).json["events"]

        assert [event["message"] for event in events] == [
            "QUEUED",
            "DEQUEUED",
            "EXECUTING",
            "FAILED",
        ]
        assert [event["isError"] for event in events] == [False, False, False, True]
        assert {event["runId"] for event in events} == {run}

    async def test_a_trace_holds_the_run_and_the_runs_beneath_it(self, http: Http) -> None:
        # W-118
        root = await triggered(http)
        child = await triggered(http, parentRunId=root)
        grandchild = await triggered(http, parentRunId=child)

        trace = (await http("GET", f"/api/v1/runs/{root}/trace")).json["trace"]
        of_child = (await http("GET", f"/api/v1/runs/{child}/trace")).json["trace"]

        span = trace["rootSpan"]
        assert (span["runId"], "parentId" in span) == (root, False)
        assert span["data"]["isPartial"] is True
        [below] = span["children"]
        assert (below["runId"], below["parentId"]) == (child, span["id"])
        assert [one["runId"] for one in below["children"]] == [grandchild]
        assert of_child["traceId"] == trace["traceId"]
        assert of_child["rootSpan"]["id"] == below["id"]

    async def test_one_span_of_a_trace_is_read_by_its_id(self, http: Http) -> None:
        # W-118
        run = await failed(http)
        trace = (await http("GET", f"/api/v1/runs/{run}/trace")).json["trace"]
        span_id = trace["rootSpan"]["id"]

        span = (await http("GET", f"/api/v1/runs/{run}/spans/{span_id}")).json

        assert (span["runId"], span["parentId"], span["durationMs"]) == (run, None, 1000)
        assert span["properties"] == {"error": {"message": "no", "name": "ValueError"}}
        assert (await http("GET", f"/api/v1/runs/{run}/spans/{'0' * 16}")).status == 404
        assert (await http("GET", "/api/v1/runs/run_none/trace")).status == 404

    async def test_a_token_reads_the_trace_of_its_own_run_only(self, http: Http) -> None:
        mine, other = await triggered(http), await triggered(http)
        token = http.token(f"read:runs:{mine}")
        for what in ("events", "trace"):
            assert (await http("GET", f"/api/v1/runs/{mine}/{what}", key=token)).status == 200
            assert (await http("GET", f"/api/v1/runs/{other}/{what}", key=token)).status == 403

    async def test_a_large_family_is_shown_in_part(self, http: Http) -> None:
        root = await triggered(http)
        for _ in range(limits.RELATED_RUNS_MAX + 5):
            await triggered(http, parentRunId=root)
        trace = (await http("GET", f"/api/v1/runs/{root}/trace")).json["trace"]
        assert len(trace["rootSpan"]["children"]) == limits.RELATED_RUNS_MAX - 1


class TestListsByProject:
    async def test_any_project_lists_the_runs_of_the_keys_environment(self, http: Http) -> None:
        # W-119
        run = await triggered(http, tags=["a"])
        await triggered(http)
        path = "/api/v1/projects/proj_any/runs?filter%5Btag%5D=a"
        for more, found in (("", [run]), ("&filter%5Benv%5D=dev,prod", [run]), ("x", [])):
            tail = "&filter%5Benv%5D=prod" if more == "x" else more
            page = (await http("GET", path + tail)).json
            assert [item["id"] for item in page["data"]] == found
            assert page["pagination"] == {}
        assert (await http("GET", path, key=http.token("read:runs"))).status == 401
        assert (await http("GET", "/api/v1/runs?filter%5Benv%5D=dev")).status == 400


class TestWholeBatches:
    async def test_all_items_of_one_request_become_runs_of_a_sealed_batch(self, http: Http) -> None:
        # W-124
        items = [{"task": "job", "payload": n, "options": {"tags": [f"n{n}"]}} for n in range(12)]

        made = await http("POST", BATCH, {"items": items})

        assert (made.status, made.json["runCount"], made.json["isCached"]) == (202, 12, False)
        whole = (await http("GET", f"/api/v2/batches/{made.json['id']}")).json
        assert whole["status"] == "PROCESSING"
        tags = [(await http("GET", f"/api/v3/runs/{run}")).json["tags"] for run in whole["runs"]]
        assert tags == [[f"n{n}"] for n in range(12)]

    async def test_a_repeat_with_its_key_finds_the_batch_and_starts_nothing(
        self, http: Http
    ) -> None:
        # W-124
        body = {"items": [{"task": "job", "payload": 1}]}
        headers = {"idempotency-key": "k"}
        first = await http("POST", BATCH, body, headers=headers)
        again = await http("POST", BATCH, body, headers=headers)

        assert again.json == first.json | {"isCached": True}
        assert first.json["idempotencyKey"] == "k"
        assert len((await http("GET", "/api/v1/runs")).json["data"]) == 1

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 400),
            ({"items": []}, 400),
            ({"items": [{"task": "job"}] * 501}, 400),
            ({"items": [{"task": "nobody"}]}, 404),
            ({"items": [{"task": "job", "options": {"ttl": "x"}}]}, 422),
        ],
    )
    async def test_what_cannot_be_a_batch_is_refused(
        self, http: Http, body: Any, status: int
    ) -> None:
        # W-124
        assert (await http("POST", BATCH, body)).status == status

    async def test_a_key_that_is_too_long_and_a_token_are_refused(self, http: Http) -> None:
        body = {"items": [{"task": "job"}]}
        headers = {"idempotency-key": "k" * (limits.IDEMPOTENCY_KEY_CHARS_MAX + 1)}
        assert (await http("POST", BATCH, body, headers=headers)).status == 400
        token = http.token("batchTrigger:tasks")
        assert (await http("POST", BATCH, body, key=token)).status == 401


class TestStreamsInRows:
    async def test_subscribers_learn_the_streams_of_a_run_from_its_row(self, http: Http) -> None:
        # W-130
        run = await triggered(http, ttl="1h30m")
        path = f"/realtime/v1/runs/{run}?offset=-1"
        before = msgspec.json.decode((await http("GET", path)).body)[0]["value"]
        for stream in ("b", "a", "b"):
            await http("POST", f"/realtime/v1/streams/{run}/self/{stream}/append", raw=b"x")
        await http("POST", f"/realtime/v1/streams/{run}/input/secret", {"data": 1})

        after = msgspec.json.decode((await http("GET", path)).body)[0]["value"]

        assert (before["realtimeStreams"], before["ttl"]) == ("{}", "1h30m")
        assert after["realtimeStreams"] == '{"b","a"}'

    async def test_an_output_cannot_have_the_name_of_an_input(self, http: Http) -> None:
        # W-135
        run = await triggered(http)
        path = f"/realtime/v1/streams/{run}/self/$trigger.input:x/append"
        assert (await http("POST", path, raw=b"x")).status == 400
