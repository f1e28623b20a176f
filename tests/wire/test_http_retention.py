"""What is over is forgotten after `retention_days`, with everything it led to, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from http_harness import Http, server, settle

from everturn.server.services.packets import digest_of
from everturn.server.services.run_streams import channel_of
from everturn.server.sweeps import SELDOM, sweep_once

pytestmark = pytest.mark.anyio

JOB = "/api/v1/tasks/job/trigger"
DAY_S = 24 * 3600


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def triggered(http: Http, payload: Any = 1, **options: Any) -> str:
    reply = await http("POST", JOB, {"payload": payload, "options": options})
    assert reply.status == 200, reply
    run_id: str = reply.json["id"]
    return run_id


async def cancelled(http: Http, run_id: str) -> None:
    assert (await http("POST", f"/api/v2/runs/{run_id}/cancel")).status == 200


async def pass_days(http: Http, days: float) -> None:
    """Time goes by, and the sweeps come round."""
    await http.clock.jump(days * DAY_S)
    for _ in range(20):
        await settle()


async def status(http: Http, path: str) -> int:
    return (await http("GET", path)).status


async def test_a_finished_run_is_forgotten_with_its_streams(http: Http) -> None:
    # W-117
    old, live = await triggered(http), await triggered(http)
    rows = {}
    for run in (old, live):
        await http("POST", f"/realtime/v1/streams/{run}/self/story/append", raw=b"once")
        await http("POST", f"/realtime/v1/streams/{run}/input/word", {"data": 1})
        rows[run] = await http.system.services.state.run(None, run)
    await cancelled(http, old)
    await pass_days(http, 29)
    assert await status(http, f"/api/v3/runs/{old}") == 200

    await pass_days(http, 2)

    assert await status(http, f"/api/v3/runs/{old}") == 404
    assert await status(http, f"/api/v3/runs/{live}") == 200
    listed = (await http("GET", "/api/v1/runs")).json["data"]
    assert [run["id"] for run in listed] == [live]
    for run, is_empty in ((old, True), (live, False)):
        row = rows[run]
        assert row is not None
        for channel in (channel_of(row, "story"), channel_of(row, "word", is_input=True)):
            records = await http.system.services.streams.read(channel, after=None)
            assert all(record.is_command for record in records) is is_empty


async def test_a_batch_is_forgotten_with_its_runs(http: Http) -> None:
    # W-117
    batch = (await http("POST", "/api/v3/batches", {"runCount": 1})).json["id"]
    line = b'{"index":0,"task":"job","payload":"1"}'
    headers = {"content-type": "application/x-ndjson"}
    await http("POST", f"/api/v3/batches/{batch}/items", pieces=[line], headers=headers)
    [run] = (await http("GET", f"/api/v2/batches/{batch}")).json["runs"]
    await pass_days(http, 31)
    assert await status(http, f"/api/v2/batches/{batch}") == 200, "its run is not over"
    await cancelled(http, run)

    await pass_days(http, 31)

    assert await status(http, f"/api/v2/batches/{batch}") == 404
    assert await status(http, f"/api/v3/runs/{run}") == 404


async def test_a_completed_token_is_forgotten_and_an_open_one_waits_on(http: Http) -> None:
    # W-117
    done, waiting = [
        (await http("POST", "/api/v1/waitpoints/tokens", {})).json["id"] for _ in range(2)
    ]
    await http("POST", f"/api/v1/waitpoints/tokens/{done}/complete", {"data": 1})

    await pass_days(http, 31)

    assert await status(http, f"/api/v1/waitpoints/tokens/{done}") == 404
    assert await status(http, f"/api/v1/waitpoints/tokens/{waiting}") == 200


async def test_a_packet_is_forgotten_with_the_last_run_that_has_it(http: Http) -> None:
    # W-117
    services, environment_id = http.system.services, http.system.environment.id
    for name in ("used/payload.json", "unused"):
        link = (await http("PUT", f"/api/v2/packets/{name}")).json["presignedUrl"]
        path = link.removeprefix(services.base_url)
        assert (await http("PUT", path, raw=b"{}", key=None)).status == 200
    run = await triggered(http, "used/payload.json", payloadType="application/store")

    async def stored(name: str) -> bool:
        return await services.packets.get(environment_id, digest_of(name)) is not None

    await pass_days(http, 31)
    assert [await stored("used/payload.json"), await stored("unused")] == [True, False]
    await cancelled(http, run)
    await pass_days(http, 31)
    assert not await stored("used/payload.json")


async def test_a_token_used_once_stays_used_while_it_is_good(http: Http) -> None:
    # W-26, W-117
    now_s = http.clock.now_ms() // 1000
    token = http.token("trigger:tasks:job", otu=True, exp=now_s + 60 * DAY_S)
    first = await http("POST", JOB, {"payload": 1}, key=token)
    await cancelled(http, first.json["id"])

    await pass_days(http, 31)

    assert (await http("POST", JOB, {"payload": 1}, key=token)).status == 422
    await pass_days(http, 30)
    assert await status(http, f"/api/v3/runs/{first.json['id']}") == 404


async def test_the_current_run_of_a_chat_outlives_every_retention(http: Http) -> None:
    # W-117
    session = await http.create()
    await cancelled(http, session["runId"])

    await pass_days(http, 400)

    assert await status(http, f"/api/v3/runs/{session['runId']}") == 200


async def test_nothing_is_forgotten_where_the_setting_says_so() -> None:
    # W-117
    async with server(retention_days=0) as http:
        run = await triggered(http)
        await cancelled(http, run)
        await pass_days(http, 4000)
        assert await status(http, f"/api/v3/runs/{run}") == 200


async def test_one_server_does_it_for_all(http: Http) -> None:
    # W-117
    run = await triggered(http)
    await cancelled(http, run)
    then_ms = http.clock.now_ms() + 31 * DAY_S * 1000
    state = http.system.services.state
    # Another server, at the moment at which the sweeps of this one come round.
    assert await state.take_chore("retention", now_ms=then_ms, every_ms=60_000)

    await pass_days(http, 31)
    assert await status(http, f"/api/v3/runs/{run}") == 200
    assert await sweep_once(http.system.services, {"old_rows": SELDOM["old_rows"]}) == 0
    await pass_days(http, 10)
    assert await status(http, f"/api/v3/runs/{run}") == 404
