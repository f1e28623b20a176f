"""Run subscriptions over HTTP (wire-protocol §12), in one process."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from http_harness import Http, Reply, server, settle

from everturn.rules import limits

pytestmark = pytest.mark.anyio

ELECTRIC = {"x-trigger-electric-version": "1.0.0-beta.1"}


async def triggered(http: Http, *tags: str, task: str = "job", **options: Any) -> str:
    body = {"payload": {"n": 1}, "options": {"tags": list(tags), **options}}
    run: str = (await http("POST", f"/api/v1/tasks/{task}/trigger", body)).json["id"]
    return run


async def shape(http: Http, path: str, **options: Any) -> Reply:
    headers = options.pop("headers", ELECTRIC)
    return await http("GET", f"/realtime/v1/{path}", headers=headers, **options)


def live(path: str, before: Reply) -> str:
    offset, handle = before.headers["electric-offset"], before.headers["electric-handle"]
    mark = "&" if "?" in path else "?"
    return f"{path}{mark}log=full&live=true&offset={offset}&handle={handle}&cursor=1"


def rows(reply: Reply) -> list[dict[str, str]]:
    messages = reply.json
    assert messages[-1] == {"headers": {"control": "up-to-date"}}
    return [message["value"] for message in messages[:-1]]


async def test_the_first_answer_is_the_run_as_it_is() -> None:
    # W-130
    async with server() as http:
        run = await triggered(http, "a", 'b "c"')
        reply = await shape(http, f"runs/{run}?log=full&offset=-1")
        schema = msgspec.json.decode(reply.headers["electric-schema"])

    [row] = rows(reply)
    assert reply.json[0]["headers"] == {"operation": "insert"}
    assert reply.json[0]["key"] == f'"public"."TaskRun"/"{run.removeprefix("run_")}"'
    assert (row["friendlyId"], row["status"], row["isTest"]) == (run, "PENDING", "f")
    assert row["runTags"] == '{"a","b \\"c\\""}'
    assert row["createdAt"] == "2026-04-22T23:20:00.000"
    assert set(row) == set(schema)
    assert all(value is None or isinstance(value, str) for value in row.values())
    assert schema["runTags"] == {"type": "text", "dims": 1}
    assert reply.headers["cache-control"] == "no-store"
    assert "electric-cursor" not in reply.headers


async def test_a_held_request_is_answered_by_the_next_change() -> None:
    # W-131
    async with server() as http:
        run = await triggered(http)
        first = await shape(http, f"runs/{run}?offset=-1")
        answers: list[Reply] = []

        async def follow() -> None:
            answers.append(await shape(http, live(f"runs/{run}", first)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await settle()
            assert answers == [], "nothing has changed"
            with anyio.fail_after(1):
                await http("POST", f"/api/v2/runs/{run}/cancel")

    [row] = rows(answers[0])
    assert row["status"] == "CANCELED"
    assert row["completedAt"]
    assert answers[0].json[0]["headers"] == {"operation": "update"}
    assert answers[0].headers["electric-cursor"]
    assert "electric-schema" not in answers[0].headers


async def test_a_change_between_two_requests_is_not_missed() -> None:
    async with server() as http:
        run = await triggered(http)
        first = await shape(http, f"runs/{run}?offset=-1")
        await http("POST", f"/api/v1/runs/{run}/tags", {"tags": "late"})
        second = await shape(http, live(f"runs/{run}", first))

    assert rows(second)[0]["runTags"] == '{"late"}'


async def test_a_request_is_answered_empty_when_its_time_is_up() -> None:
    # W-131
    async with server() as http:
        run = await triggered(http)
        first = await shape(http, f"runs/{run}?offset=-1")
        answers: list[Reply] = []

        async def follow() -> None:
            answers.append(await shape(http, live(f"runs/{run}", first)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await settle()
            await http.clock.jump(limits.REALTIME_HOLD_S * 1.2)
            # Any hint makes it look at the clock again.
            http.system.services.wakeups.notify(f"run/{run}")

    assert rows(answers[0]) == []


async def test_tags_select_runs_that_have_all_of_them() -> None:
    # W-130
    async with server() as http:
        both = await triggered(http, "a", "b")
        await triggered(http, "a")
        first = await shape(http, "runs?tags=a,b&offset=-1")
        later = await triggered(http, "b", "a")
        second = await shape(http, live("runs?tags=a,b", first))

    assert [row["friendlyId"] for row in rows(first)] == [both]
    assert later in [row["friendlyId"] for row in rows(second)]


async def test_a_window_keeps_old_runs_out_and_does_not_move() -> None:
    # W-134
    async with server() as http:
        old = await triggered(http, "a")
        await http.clock.jump(3600)
        new = await triggered(http, "a")
        narrow = await shape(http, "runs?tags=a&createdAt=30m&offset=-1")
        wide = await shape(http, "runs?tags=a&offset=-1")
        await http.clock.jump(3600)
        await http("POST", f"/api/v2/runs/{new}/cancel")
        still = await shape(http, live("runs?tags=a&createdAt=30m", narrow))
        bad = await shape(http, "runs?tags=a&createdAt=soon&offset=-1")

    assert [row["friendlyId"] for row in rows(narrow)] == [new]
    assert {row["friendlyId"] for row in rows(wide)} == {old, new}
    assert [row["status"] for row in rows(still)] == ["CANCELED"]
    assert bad.status == 400


async def test_a_batch_is_followed_while_it_fills() -> None:
    async with server() as http:
        batch = (await http("POST", "/api/v3/batches", {"runCount": 1})).json["id"]
        first = await shape(http, f"batches/{batch}?offset=-1")
        await http(
            "POST",
            f"/api/v3/batches/{batch}/items",
            pieces=[b'{"index":0,"task":"job"}'],
            headers={"content-type": "application/x-ndjson"},
        )
        second = await shape(http, live(f"batches/{batch}", first))
        unknown = await shape(http, "batches/batch_none?offset=-1")

    assert rows(first) == []
    assert [row["taskIdentifier"] for row in rows(second)] == ["job"]
    assert unknown.status == 404


async def test_columns_are_left_out_by_request_and_by_token() -> None:
    # W-133
    async with server() as http:
        run = await triggered(http)
        asked = await shape(http, f"runs/{run}?offset=-1&skipColumns=payload,status,id")

    [row] = rows(asked)
    assert "payload" not in row
    assert {"status", "id"} <= set(row), "nobody can do without these"


async def test_scopes_decide_what_can_be_followed() -> None:
    async with server() as http:
        run = await triggered(http, "a")
        paths = {
            f"runs/{run}?offset=-1": (f"read:runs:{run}", "read:tasks:job", "read:tags:a"),
            "runs?tags=a&offset=-1": ("read:runs", "read:tags", "read:tags:a"),
        }
        for path, scopes in paths.items():
            for scope in scopes:
                assert (await shape(http, path, key=http.token(scope))).status == 200, scope
            refused = await shape(http, path, key=http.token("read:tasks:other"))
            assert refused.status == 403
        unknown = await shape(http, "runs/run_none?offset=-1")
        nonsense = await shape(http, f"runs/{run}?offset=nonsense")

    assert (unknown.status, unknown.json) == (404, {"error": "Not found"})
    assert nonsense.status == 400


async def test_a_page_may_read_every_header_and_old_clients_get_old_names() -> None:
    # W-132
    async with server() as http:
        run = await triggered(http)
        page = await shape(
            http, f"runs/{run}?offset=-1", headers=ELECTRIC | {"origin": "https://a"}
        )
        old = await shape(http, f"runs/{run}?offset=-1", headers={})

    assert page.headers["access-control-expose-headers"] == "*"
    assert {"electric-shape-id", "electric-chunk-last-offset"} <= set(old.headers)


async def test_too_many_held_requests_are_told_to_come_again() -> None:
    async with server() as http:
        run = await triggered(http)
        first = await shape(http, f"runs/{run}?offset=-1")
        http.system.services.realtime._held = limits.REALTIME_HELD_MAX
        refused = await shape(http, live(f"runs/{run}", first))

    assert refused.status == 503
    assert refused.headers["retry-after"] == "5"
