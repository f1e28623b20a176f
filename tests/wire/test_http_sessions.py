"""Sessions over HTTP, as wire-protocol §4 says them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from http_harness import KEY, Http, server, session_body

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


class TestCreate:
    async def test_a_new_session_answers_201_with_every_member_clients_insist_on(
        self, http: Http
    ) -> None:
        # W-40
        reply = await http("POST", "/api/v1/sessions", session_body("chat/1"))

        assert reply.status == 201
        item = reply.json
        assert item["id"].startswith("session_")
        assert item["runId"].startswith("run_")
        assert item["currentRunId"] == item["runId"]
        assert item | {"id": 0, "runId": 0, "currentRunId": 0, "publicAccessToken": 0} == {
            "id": 0,
            "externalId": "chat/1",
            "type": "chat.agent",
            "taskIdentifier": "agent",
            "triggerConfig": {"basePayload": {"messages": [], "trigger": "preload"}},
            "currentRunId": 0,
            "tags": [],
            "metadata": None,
            "closedAt": None,
            "closedReason": None,
            "expiresAt": None,
            "createdAt": "2026-04-22T23:20:00.000Z",
            "updatedAt": "2026-04-22T23:20:00.000Z",
            "runId": 0,
            "publicAccessToken": 0,
            "isCached": False,
        }

    async def test_the_same_external_id_answers_200_with_the_same_session_and_run(
        self, http: Http
    ) -> None:
        # W-40
        first = await http.create()
        again = await http("POST", "/api/v1/sessions", session_body())

        assert again.status == 200
        assert again.json["isCached"] is True
        assert (again.json["id"], again.json["runId"]) == (first["id"], first["runId"])

    async def test_on_a_hit_only_the_trigger_config_is_replaced(self, http: Http) -> None:
        # W-40
        await http.create(tags=["a"], metadata={"v": 1})
        changed = session_body() | {
            "tags": ["b"],
            "metadata": {"v": 2},
            "triggerConfig": {"basePayload": {}, "idleTimeoutInSeconds": 60},
        }
        item = (await http("POST", "/api/v1/sessions", changed)).json

        assert (item["tags"], item["metadata"]) == (["a"], {"v": 1})
        assert item["triggerConfig"] == {"basePayload": {}, "idleTimeoutInSeconds": 60}

    async def test_its_token_opens_exactly_this_session(self, http: Http) -> None:
        token = (await http.create("a:b"))["publicAccessToken"]
        await http.create("other")

        path = "/realtime/v1/sessions/{}/in/append"
        mine = await http("POST", path.format("a%3Ab"), {"kind": "stop"}, key=token)
        other = await http("POST", path.format("other"), {"kind": "stop"}, key=token)
        assert (mine.status, other.status) == (200, 403)

    async def test_the_first_message_becomes_the_first_record_of_in(self, http: Http) -> None:
        # W-41
        message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
        base = {"chatId": "chat-1", "trigger": "submit-message", "message": message}
        await http.create(triggerConfig={"basePayload": base})

        records = await http.system.services.streams.read(http.channel("in"), after=None)
        assert len(records) == 1
        assert b'\\"hi\\"' in records[0].body

    async def test_a_closed_session_is_a_conflict_that_is_not_retried(self, http: Http) -> None:
        # W-43
        await http.create()
        await http("POST", "/api/v1/sessions/chat-1/close", {})
        before = await http.stored()
        reply = await http("POST", "/api/v1/sessions", session_body())

        assert reply.status == 409
        assert reply.json == {
            "error": "Session is closed; use a different externalId to create a new session"
        }
        assert reply.headers["x-should-retry"] == "false"
        assert await http.stored() == before

    async def test_an_expired_session_is_a_conflict_too(self, http: Http) -> None:
        # W-47
        await http.create(expiresAt="2026-04-22T23:21:00Z")
        await http.clock.advance(61)
        reply = await http("POST", "/api/v1/sessions", session_body())

        assert reply.status == 409
        assert reply.json == {
            "error": "Session is expired; use a different externalId to create a new session"
        }

    async def test_an_agent_that_is_not_registered_is_refused(self, http: Http) -> None:
        # W-43
        before = await http.stored()
        body = session_body() | {"taskIdentifier": "nobody"}
        reply = await http("POST", "/api/v1/sessions", body)

        assert reply.status == 422
        assert reply.headers["x-should-retry"] == "false"
        assert reply.json == {"error": "Task 'nobody' is not registered in this environment"}
        assert await http.stored() == before

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"externalId": "session_x"}, "externalId cannot start with 'session_'"),
            ({"externalId": "  "}, "externalId has 0 characters"),
            ({"externalId": "x" * 257}, "externalId has 257 characters"),
            ({"externalId": "a\0b"}, "externalId holds a NUL"),
            ({"tags": [f"t{n}" for n in range(11)]}, "length <= 10"),
            ({"tags": ["x" * 129]}, "length <= 128"),
            ({"type": ""}, "length >= 1"),
            ({"type": "x" * 65}, "length <= 64"),
            ({"taskIdentifier": "x" * 129}, "length <= 128"),
            ({"triggerConfig": {}}, "missing required field `basePayload`"),
            ({"triggerConfig": {"basePayload": {}, "tags": list("abcdef")}}, "length <= 5"),
            ({"triggerConfig": {"basePayload": {}, "machine": "huge"}}, "Invalid enum value"),
            ({"triggerConfig": {"basePayload": {}, "maxAttempts": 11}}, "<= 10"),
            ({"triggerConfig": {"basePayload": {}, "idleTimeoutInSeconds": 0}}, ">= 1"),
            ({"expiresAt": "soon"}, "Invalid date"),
            ({"metadata": [1]}, "Expected `object"),
        ],
    )
    async def test_a_value_out_of_its_bounds_is_refused_and_nothing_is_stored(
        self, http: Http, change: dict[str, Any], text: str
    ) -> None:
        # W-42, W-10
        before = await http.stored()
        reply = await http("POST", "/api/v1/sessions", session_body() | change)

        assert reply.status == 400
        assert reply.json["error"].startswith("Validation error: ")
        assert text in reply.json["error"]
        assert await http.stored() == before

    @pytest.mark.parametrize(
        ("raw", "error"),
        [
            (b"", "Request body is empty"),
            (b"{", "Invalid JSON"),
            (b"null", "Invalid JSON"),
            (b"0", "Invalid JSON"),
            (b"\xff\xfe", "Invalid JSON"),
            (b"[" * 100_000, "JSON may nest at most 128 deep"),
        ],
    )
    async def test_a_body_that_is_no_json_is_refused(
        self, http: Http, raw: bytes, error: str
    ) -> None:
        # W-10
        reply = await http("POST", "/api/v1/sessions", raw=raw)

        assert (reply.status, reply.json) == (400, {"error": error})

    async def test_a_body_at_the_cap_is_read_and_one_past_it_is_not(self, http: Http) -> None:
        cap = 1024 * 1024
        small = session_body() | {"metadata": {"fill": ""}}
        fill = cap - len(msgspec.json.encode(small))
        at_cap = session_body() | {"metadata": {"fill": "x" * fill}}
        past = session_body("chat-2") | {"metadata": {"fill": "x" * (fill + 1)}}

        assert (await http("POST", "/api/v1/sessions", at_cap)).status == 201
        before = await http.stored()
        reply = await http("POST", "/api/v1/sessions", past)
        assert (reply.status, reply.json) == (413, {"error": "Request body too large"})
        assert await http.stored() == before

    async def test_a_body_without_a_declared_size_is_refused(self, http: Http) -> None:
        reply = await http("POST", "/api/v1/sessions", pieces=[b"{", b"}"])

        assert (reply.status, reply.json) == (413, {"error": "Request body too large"})

    async def test_the_content_type_does_not_matter(self, http: Http) -> None:
        # W-10
        reply = await http(
            "POST", "/api/v1/sessions", session_body(), headers={"content-type": "text/plain"}
        )

        assert reply.status == 201

    async def test_a_token_needs_the_task_or_all_sessions(self, http: Http) -> None:
        # W-29, W-25
        def token(*scopes: str) -> str:
            return http.token(*scopes)

        for scope, status in (
            ("write:tasks:agent", 201),
            ("write:sessions", 200),
            ("admin", 200),
            ("write:sessions:chat-1", 403),
            ("read:sessions", 403),
            ("trigger:tasks:agent", 403),
        ):
            reply = await http("POST", "/api/v1/sessions", session_body(), key=token(scope))
            assert reply.status == status, scope


class TestRetrieveAndList:
    async def test_both_forms_of_the_id_find_the_session(self, http: Http) -> None:
        created = await http.create("chat/1")
        for form in ("chat%2F1", created["id"]):
            reply = await http("GET", f"/api/v1/sessions/{form}")
            assert (reply.status, reply.json["id"]) == (200, created["id"])

    async def test_an_unknown_session_is_not_found_and_not_retried(self, http: Http) -> None:
        for form in ("nobody", "session_cnobody"):
            reply = await http("GET", f"/api/v1/sessions/{form}")
            assert (reply.status, reply.json) == (404, {"error": "Not found"})
            assert reply.headers["x-should-retry"] == "false"

    async def test_another_environment_does_not_see_it(self, http: Http) -> None:
        await http.create()
        services = http.system.services
        other = await services.state.ensure_environment("prod", now_ms=http.clock.now_ms())
        _, secret = await services.keys.create(other)

        assert (await http("GET", "/api/v1/sessions/chat-1", key=secret)).status == 404
        assert (await http("GET", "/api/v1/sessions", key=secret)).json["data"] == []

    async def test_pages_are_newest_first_and_have_no_null_cursors(self, http: Http) -> None:
        # W-7, W-49
        for n in range(3):
            await http.create(f"chat-{n}")
            await http.clock.advance(1)
        first = (await http("GET", "/api/v1/sessions?page%5Bsize%5D=2")).json
        after = first["pagination"]["next"]
        second = (await http("GET", f"/api/v1/sessions?page[size]=2&page[after]={after}")).json

        assert [item["externalId"] for item in first["data"]] == ["chat-2", "chat-1"]
        assert set(first["pagination"]) == {"next"}
        assert [item["externalId"] for item in second["data"]] == ["chat-0"]
        assert "next" not in second["pagination"]
        assert "triggerConfig" not in first["data"][0]

    async def test_filters_take_comma_lists(self, http: Http) -> None:
        # W-45, W-47
        await http.create("a", tags=["red"])
        await http.create("b", tags=["blue"])
        await http.create("c", tags=["green"])
        await http("POST", "/api/v1/sessions/b/close", {})

        async def names(query: str) -> set[str]:
            reply = await http("GET", f"/api/v1/sessions?{query}")
            assert reply.status == 200, reply
            return {item["externalId"] for item in reply.json["data"]}

        assert await names("filter%5Btags%5D=red%2Cblue") == {"a", "b"}
        assert await names("filter[status]=CLOSED") == {"b"}
        assert await names("filter[status]=ACTIVE%2CCLOSED") == {"a", "b", "c"}
        assert await names("filter[externalId]=c") == {"c"}
        assert await names("filter[type]=other") == set()
        assert await names("filter[createdAt][period]=1h") == {"a", "b", "c"}

    @pytest.mark.parametrize(
        "query",
        [
            "filter[nonsense]=1",
            "filter[status]=OPEN",
            "filter[createdAt][from]=yesterday",
            "filter[createdAt][period]=ever",
            "page[size]=0",
            "page[size]=101",
            "page[size]=x",
        ],
    )
    async def test_a_query_that_cannot_be_is_refused(self, http: Http, query: str) -> None:
        reply = await http("GET", f"/api/v1/sessions?{query}")

        assert reply.status == 400
        assert reply.json["error"] == "Query Error"
        assert reply.json["details"]

    async def test_a_client_that_steps_back_may_still_send_the_cursor_it_came_by(
        self, http: Http
    ) -> None:
        # W-7
        for name in "abc":
            await http.create(name)
        path = "/api/v1/sessions?page[size]=1"
        first = (await http("GET", path)).json
        after = f"&page[after]={first['pagination']['next']}"
        second = (await http("GET", path + after)).json
        before = f"&page[before]={second['pagination']['previous']}"

        back = await http("GET", path + after + before)

        assert back.json["data"] == first["data"]

    async def test_a_cursor_from_another_list_is_refused(self, http: Http) -> None:
        # W-7
        run_id = (await http.create())["runId"]
        reply = await http("GET", f"/api/v1/sessions?page[after]={run_id}")

        assert reply.status == 400
        assert isinstance(reply.json["error"], str)

    async def test_a_token_lists_what_its_scopes_name(self, http: Http) -> None:
        # W-49
        for scope, query, status in (
            ("read:sessions", "", 200),
            ("read:tasks", "", 200),
            ("read:tasks:agent", "", 403),
            ("read:tasks:agent", "?filter[taskIdentifier]=agent", 200),
            ("read:tasks:agent", "?filter[taskIdentifier]=agent,job", 403),
            ("read:sessions:chat-1", "", 403),
        ):
            reply = await http("GET", f"/api/v1/sessions{query}", key=http.token(scope))
            assert reply.status == status, (scope, query)


class TestUpdateAndClose:
    async def test_tags_and_metadata_are_replaced_and_null_clears(self, http: Http) -> None:
        await http.create(tags=["a"], metadata={"v": 1})
        path = "/api/v1/sessions/chat-1"

        changed = (await http("PATCH", path, {"tags": ["b"], "metadata": {"w": 2}})).json
        cleared = (await http("PATCH", path, {"metadata": None})).json
        assert (changed["tags"], changed["metadata"]) == (["b"], {"w": 2})
        assert (cleared["tags"], cleared["metadata"]) == (["b"], None)

    async def test_the_external_id_may_be_repeated_but_never_changed(self, http: Http) -> None:
        # W-44
        await http.create()
        same = await http("PATCH", "/api/v1/sessions/chat-1", {"externalId": "chat-1"})
        assert same.status == 200
        for changed in ("chat-2", None):
            reply = await http("PATCH", "/api/v1/sessions/chat-1", {"externalId": changed})
            assert reply.status == 422
            assert reply.json["error"].startswith("externalId cannot be changed after creation")

    async def test_the_first_close_wins(self, http: Http) -> None:
        # W-44
        await http.create()
        path = "/api/v1/sessions/chat-1/close"
        first = (await http("POST", path, {"reason": "done"})).json
        await http.clock.advance(5)
        again = (await http("POST", path, {"reason": "again"})).json

        assert first["closedReason"] == "done"
        assert (again["closedAt"], again["closedReason"]) == (first["closedAt"], "done")

    async def test_an_empty_body_does_not_close(self, http: Http) -> None:
        await http.create()
        reply = await http("POST", "/api/v1/sessions/chat-1/close", raw=b"")

        assert (reply.status, reply.json) == (400, {"error": "Request body is empty"})
        assert (await http("GET", "/api/v1/sessions/chat-1")).json["closedAt"] is None

    async def test_what_is_unknown_cannot_be_changed(self, http: Http) -> None:
        for method, path in (("PATCH", ""), ("POST", "/close")):
            reply = await http(method, f"/api/v1/sessions/nobody{path}", {"tags": []})
            assert (reply.status, reply.json) == (404, {"error": "Session not found"})

    async def test_public_tokens_change_nothing_whatever_their_scopes(self, http: Http) -> None:
        # W-25
        run_id = (await http.create())["runId"]
        before = await http.stored()
        for method, path, body in (
            ("PATCH", "", {"tags": ["x"]}),
            ("POST", "/close", {}),
            ("POST", "/end-and-continue", {"callingRunId": run_id, "reason": "upgrade"}),
            ("PUT", "/snapshot-url", None),
        ):
            target = f"/api/v1/sessions/chat-1{path}"
            reply = await http(method, target, body, key=http.token("admin"))
            assert reply.status == 403, path
            assert reply.json == {
                "error": "Unauthorized",
                "code": "unauthorized",
                "param": "access_token",
                "type": "authorization",
            }
        assert await http.stored() == before


class TestEndAndContinue:
    async def test_the_current_run_is_swapped_once(self, http: Http) -> None:
        # W-46
        run_id = (await http.create())["runId"]
        path = "/api/v1/sessions/chat-1/end-and-continue"
        body = {"callingRunId": run_id, "reason": "upgrade"}
        first = (await http("POST", path, body)).json
        again = (await http("POST", path, body)).json

        assert first["swapped"] is True
        assert first["runId"] != run_id
        assert again == {"runId": first["runId"], "swapped": False}

    async def test_a_closed_session_and_an_unknown_run_are_refused(self, http: Http) -> None:
        run_id = (await http.create())["runId"]
        path = "/api/v1/sessions/chat-1/end-and-continue"
        unknown = await http("POST", path, {"callingRunId": "run_x", "reason": "upgrade"})
        assert unknown.status == 404
        assert unknown.json == {"error": "callingRunId not found in this environment"}

        await http("POST", "/api/v1/sessions/chat-1/close", {})
        closed = await http("POST", path, {"callingRunId": run_id, "reason": "upgrade"})
        assert closed.status == 400
        assert closed.json == {"error": "Cannot end-and-continue a closed session"}


class TestSnapshots:
    async def test_a_snapshot_goes_up_and_comes_down_through_signed_links(self, http: Http) -> None:
        # W-48
        await http.create()
        up = (await http("PUT", "/api/v1/sessions/chat-1/snapshot-url")).json["presignedUrl"]
        down = (await http("GET", "/api/v1/sessions/chat-1/snapshot-url")).json["presignedUrl"]
        up, down = ("/" + link.split("/", 3)[3] for link in (up, down))

        assert (await http("GET", down, key=None)).status == 404
        assert (await http("PUT", up, {"version": 1}, key=None)).status == 200
        assert (await http("GET", down, key=None)).json == {"version": 1}

    async def test_a_link_is_good_for_its_verb_its_session_and_its_hour(self, http: Http) -> None:
        # W-48
        await http.create()
        link = (await http("GET", "/api/v1/sessions/chat-1/snapshot-url")).json["presignedUrl"]
        path = "/" + link.split("/", 3)[3]

        assert (await http("PUT", path, {"version": 1}, key=None)).status == 403
        assert (await http("GET", path.replace("session_", "session_x"), key=None)).status == 403
        assert (await http("GET", path[:-4] + "0000", key=None)).status == 403
        await http.clock.jump(3601)
        assert (await http("GET", path, key=None)).status == 403

    async def test_no_session_no_link(self, http: Http) -> None:
        reply = await http("GET", "/api/v1/sessions/nobody/snapshot-url", key=KEY)
        assert (reply.status, reply.json) == (404, {"error": "Session not found"})
