"""Tasks and runs over HTTP (wire-protocol §9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from http_harness import KEY, START_MS, Http, server

from everturn.protocol.tokens import verify

pytestmark = pytest.mark.anyio

JOB = "/api/v1/tasks/job/trigger"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def trigger(http: Http, **options: Any) -> str:
    reply = await http("POST", JOB, {"payload": {"n": 1}, "options": options})
    assert reply.status == 200, reply
    run_id: str = reply.json["id"]
    return run_id


class TestTrigger:
    async def test_a_run_is_queued_and_both_token_headers_are_there(self, http: Http) -> None:
        # W-28, W-100
        reply = await http("POST", JOB, {"payload": {"n": 1}})

        run_id = reply.json["id"]
        assert (reply.status, reply.json["isCached"]) == (200, False)
        scopes = (f"read:runs:{run_id}", f"write:inputStreams:{run_id}")
        assert verify(reply.headers["x-trigger-jwt"], KEY, now_ms=START_MS).scopes == scopes
        assert msgspec.json.decode(reply.headers["x-trigger-jwt-claims"]) == {
            "sub": http.system.environment.id,
            "pub": True,
            "scopes": list(scopes),
        }

    async def test_a_retried_request_and_a_repeated_key_do_not_start_a_second_run(
        self, http: Http
    ) -> None:
        # W-101
        headers = {"x-trigger-request-idempotency-key": "u-1"}
        first = await http("POST", JOB, {"payload": 1}, headers=headers)
        again = await http("POST", JOB, {"payload": 1}, headers=headers)
        assert again.json["id"] == first.json["id"]

        body = {"payload": 1, "options": {"idempotencyKey": "k" * 64}}
        one, two = await http("POST", JOB, body), await http("POST", JOB, body)
        assert two.json == {"id": one.json["id"], "isCached": True}

    async def test_an_unknown_task_is_not_found(self, http: Http) -> None:
        # W-100
        before = await http.stored()
        reply = await http("POST", "/api/v1/tasks/nobody/trigger", {"payload": 1})

        assert (reply.status, reply.json) == (404, {"error": "Task not found"})
        assert await http.stored() == before

    async def test_eleven_tags_are_a_broken_rule(self, http: Http) -> None:
        # W-100
        before = await http.stored()
        body = {"payload": 1, "options": {"tags": [f"t{n}" for n in range(11)]}}
        reply = await http("POST", JOB, body)

        assert reply.status == 422
        assert isinstance(reply.json["error"], str)
        assert await http.stored() == before

    async def test_a_one_time_token_starts_one_run(self, http: Http) -> None:
        # W-26
        token = http.token("trigger:tasks:job", otu=True)
        first = await http("POST", JOB, {"payload": 1}, key=token)
        second = await http("POST", JOB, {"payload": 1}, key=token)

        assert (first.status, second.status) == (200, 422)
        assert second.json["error"] == (
            "Cannot trigger job with a one-time use token as it has already been used."
        )

    async def test_a_token_triggers_the_tasks_it_names(self, http: Http) -> None:
        for scope, status in (
            ("trigger:tasks:job", 200),
            ("trigger:tasks", 200),
            ("trigger:tasks:other", 403),
            ("write:tasks:job", 403),
            ("trigger", 403),
        ):
            reply = await http("POST", JOB, {"payload": 1}, key=http.token(scope))
            assert reply.status == status, scope

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"1"])
    async def test_a_body_that_is_no_object_is_refused(self, http: Http, raw: bytes) -> None:
        assert (await http("POST", JOB, raw=raw)).status == 400


class TestRead:
    async def test_a_run_has_every_member_clients_insist_on_and_no_nulls(self, http: Http) -> None:
        # W-103
        run_id = await trigger(http, tags=["a"])
        run = (await http("GET", f"/api/v3/runs/{run_id}")).json

        assert (run["id"], run["status"], run["taskIdentifier"]) == (run_id, "QUEUED", "job")
        for name in [
            "isQueued",
            "isExecuting",
            "isWaiting",
            "isCompleted",
            "isSuccess",
            "isFailed",
            "isCancelled",
            "isTest",
            "createdAt",
            "updatedAt",
            "tags",
            "costInCents",
            "baseCostInCents",
            "durationMs",
            "depth",
            "triggerFunction",
            "relatedRuns",
        ]:
            assert name in run, name
        assert None not in run.values()
        assert run["payload"] == {"n": 1}

    async def test_an_unknown_run_is_asked_for_again(self, http: Http) -> None:
        # W-3, W-103
        reply = await http("GET", "/api/v3/runs/run_x")

        assert (reply.status, reply.json) == (404, {"error": "Not found"})
        assert reply.headers["x-should-retry"] == "true"

    async def test_a_token_reads_by_run_task_or_tag(self, http: Http) -> None:
        # W-106
        run_id = await trigger(http, tags=["a"])
        for scope, status in (
            (f"read:runs:{run_id}", 200),
            ("read:tasks:job", 200),
            ("read:tags:a", 200),
            ("read:tags:b", 403),
            ("read:runs:run_x", 403),
        ):
            reply = await http("GET", f"/api/v3/runs/{run_id}", key=http.token(scope))
            assert reply.status == status, scope

    async def test_lists_are_filtered_and_name_their_environment(self, http: Http) -> None:
        # W-105
        await http.create()
        run_id = await trigger(http, tags=["a"])

        async def ids(query: str) -> list[str]:
            reply = await http("GET", f"/api/v1/runs?{query}")
            assert reply.status == 200, reply
            return [run["id"] for run in reply.json["data"]]

        assert len(await ids("")) == 2
        assert await ids("filter[taskIdentifier]=job") == [run_id]
        assert await ids("filter[tag]=a%2Cb") == [run_id]
        assert len(await ids("filter[status]=QUEUED,EXECUTING")) == 2
        assert await ids("filter[status]=COMPLETED") == []
        assert await ids("filter[schedule]=sched_x") == []
        first = (await http("GET", "/api/v1/runs?page[size]=1")).json
        assert first["data"][0]["env"] == {"id": http.system.environment.id, "name": "dev"}
        assert set(first["pagination"]) == {"next"}

    @pytest.mark.parametrize(
        "query", ["filter[status]=RUNNING", "filter[isTest]=maybe", "filter[colour]=red"]
    )
    async def test_a_filter_that_cannot_be_is_refused(self, http: Http, query: str) -> None:
        # W-12
        reply = await http("GET", f"/api/v1/runs?{query}")
        assert (reply.status, reply.json["error"]) == (400, "Query Error")

    async def test_a_cursor_from_another_list_is_refused(self, http: Http) -> None:
        session_id = (await http.create())["id"]
        assert (await http("GET", f"/api/v1/runs?page[after]={session_id}")).status == 400

    async def test_a_result_is_there_when_the_run_is_final(self, http: Http) -> None:
        # W-112
        run_id = await trigger(http)
        path = f"/api/v1/runs/{run_id}/result"
        assert (await http("GET", path)).status == 404
        await http("POST", f"/api/v2/runs/{run_id}/cancel")
        reply = await http("GET", path)
        assert (reply.status, reply.json["ok"], reply.json["id"]) == (200, False, run_id)


class TestChange:
    async def test_cancelling_twice_is_cancelling_once(self, http: Http) -> None:
        # W-107
        run_id = await trigger(http)
        for _ in range(2):
            reply = await http("POST", f"/api/v2/runs/{run_id}/cancel")
            assert (reply.status, reply.json) == (200, {"id": run_id})
        run = (await http("GET", f"/api/v3/runs/{run_id}")).json
        assert (run["status"], run["isCancelled"], run["isFailed"]) == ("CANCELED", True, True)

    async def test_cancelling_takes_a_run_and_its_scope_and_answers_no_page(
        self, http: Http
    ) -> None:
        run_id = await trigger(http)
        unknown = await http("POST", "/api/v2/runs/run_x/cancel")
        refused = await http("POST", f"/api/v2/runs/{run_id}/cancel", key=http.token("read:runs"))
        plain = await http("OPTIONS", f"/api/v2/runs/{run_id}/cancel")
        assert (unknown.status, refused.status, plain.status) == (404, 403, 405)

    async def test_metadata_is_replaced_or_changed_by_operations(self, http: Http) -> None:
        # W-110
        path = f"/api/v1/runs/{await trigger(http)}/metadata"
        replaced = await http("PUT", path, {"metadata": {"a": 1}})
        changed = await http(
            "PUT",
            path,
            {
                "operations": [
                    {"type": "set", "key": "$.b.c", "value": 2},
                    {"type": "increment", "key": "a", "value": 4},
                    {"type": "append", "key": "list", "value": "x"},
                    {"type": "append", "key": "list", "value": "y"},
                    {"type": "remove", "key": "list", "value": "x"},
                    {"type": "delete", "key": "none"},
                    {"type": "set", "key": "__proto__", "value": 1},
                ]
            },
        )
        assert replaced.json == {"metadata": {"a": 1}}
        assert changed.json == {"metadata": {"a": 5, "b": {"c": 2}, "list": ["y"]}}
        assert (await http("GET", path)).json["metadata"] == changed.json["metadata"]

    async def test_metadata_over_its_cap_is_refused_whole(self, http: Http) -> None:
        # W-110
        path = f"/api/v1/runs/{await trigger(http)}/metadata"
        fits = 256 * 1024 - len('{"a":""}')
        assert (await http("PUT", path, {"metadata": {"a": "x" * fits}})).status == 200
        reply = await http("PUT", path, {"metadata": {"a": "x" * (fits + 1)}})
        assert reply.status == 413
        assert (await http("GET", path)).json["metadata"] == {"a": "x" * fits}

    async def test_tags_are_added_up_to_ten(self, http: Http) -> None:
        # W-111
        run_id = await trigger(http, tags=["t0"])
        path = f"/api/v1/runs/{run_id}/tags"
        assert (await http("POST", path, {"tags": "t0"})).status == 200
        assert (await http("POST", path, {"tags": [f"t{n}" for n in range(10)]})).status == 200
        assert (await http("POST", path, {"tags": ["t10"]})).status == 422
        run = (await http("GET", f"/api/v3/runs/{run_id}")).json
        assert run["tags"] == [f"t{n}" for n in range(10)]

    async def test_what_is_unknown_cannot_be_changed(self, http: Http) -> None:
        for method, path, body in (
            ("PUT", "metadata", {"metadata": {}}),
            ("GET", "metadata", None),
            ("POST", "tags", {"tags": "a"}),
            ("GET", "result", None),
        ):
            reply = await http(method, f"/api/v1/runs/run_x/{path}", body)
            assert (reply.status, reply.json) == (404, {"error": "Run not found"}), path
