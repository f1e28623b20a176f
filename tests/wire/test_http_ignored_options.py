"""Options that are accepted without an effect, as docs/compatibility.md says: region and context.

There are no regions here, and a run's context object has neither (tasks-and-runs §16). A program
written for the original must run all the same, and must not be shown what is not so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from http_harness import Http, server, session_body

pytestmark = pytest.mark.anyio

CONTEXT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def test_a_trigger_with_a_region_and_a_context_runs_and_shows_neither(http: Http) -> None:
    body = {"payload": 1, "context": CONTEXT, "options": {"region": "eu-central-1"}}
    made = await http("POST", "/api/v1/tasks/job/trigger", body)
    assert made.status == 200

    found = await http("GET", f"/api/v3/runs/{made.json['id']}")

    assert found.json["status"] == "QUEUED"
    assert not {"region", "context"} & found.json.keys()


@pytest.mark.parametrize("context", [None, "text", 1, [], CONTEXT])
async def test_any_context_is_accepted(http: Http, context: object) -> None:
    body = {"payload": 1, "context": context}
    assert (await http("POST", "/api/v1/tasks/job/trigger", body)).status == 200


async def test_an_item_of_a_batch_may_name_them_too(http: Http) -> None:
    batch = await http("POST", "/api/v3/batches", {"runCount": 1})
    item = {"index": 0, "task": "job", "payload": "1", "options": {"region": "eu"}}
    line = msgspec.json.encode(item | {"context": CONTEXT}) + b"\n"
    path = f"/api/v3/batches/{batch.json['id']}/items"
    filled = await http("POST", path, raw=line, headers={"content-type": "application/x-ndjson"})
    assert filled.json["itemsAccepted"] == 1, filled


async def test_a_session_may_name_a_region_for_its_runs(http: Http) -> None:
    body = session_body()
    body["triggerConfig"]["region"] = "eu-central-1"
    opened = await http("POST", "/api/v1/sessions", body)
    assert opened.status == 201

    run = await http("GET", f"/api/v3/runs/{opened.json['runId']}")

    assert run.json["status"] == "QUEUED"
    assert "region" not in run.json
    kept = await http("GET", "/api/v1/sessions/chat-1")
    assert kept.json["triggerConfig"]["region"] == "eu-central-1"


async def test_a_list_filtered_by_region_is_empty(http: Http) -> None:
    body = {"payload": 1, "options": {"region": "eu"}}
    await http("POST", "/api/v1/tasks/job/trigger", body)
    found = await http("GET", "/api/v1/runs?filter[region]=eu")
    assert found.json["data"] == []
