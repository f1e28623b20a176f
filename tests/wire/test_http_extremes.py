"""Values at the edge of what can be said, and channels larger than memory should hold: one request
never takes the answers of others with it."""

from __future__ import annotations

import base64
import hmac
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from http_harness import KEY, Http, scope_of, server, session_body

from everturn.errors import Unavailable
from everturn.protocol.records import NewRecord, trim_record
from everturn.rules import limits
from everturn.storage.memory.streams import MemoryStreams

pytestmark = pytest.mark.anyio

#: A zone or a rounding leads past the years of four digits.
BEYOND = ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+14:00"]
ENDLESS = "9" * 400


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


class TestDates:
    @pytest.mark.parametrize("date", [*BEYOND, 253_402_300_799_999.9])
    async def test_a_session_that_expires_when_no_answer_could_say_so_is_refused(
        self, http: Http, date: Any
    ) -> None:
        reply = await http("POST", "/api/v1/sessions", session_body() | {"expiresAt": date})

        assert reply.status == 400
        assert reply.json["error"] == "Validation error: Invalid date - at `$.expiresAt`"
        listed = await http("GET", "/api/v1/sessions")
        assert (listed.status, listed.json["data"]) == (200, [])

    @pytest.mark.parametrize("date", ["9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00Z"])
    async def test_the_first_and_the_last_date_are_dates(self, http: Http, date: str) -> None:
        await http("POST", "/api/v1/sessions", session_body() | {"expiresAt": date})

        (session,) = (await http("GET", "/api/v1/sessions")).json["data"]
        assert session["expiresAt"][:10] == date[:10]

    @pytest.mark.parametrize("date", BEYOND[:2])
    async def test_neither_does_a_run_wait_or_a_wait_token_end_then(
        self, http: Http, date: str
    ) -> None:
        options = {"delay": date}
        run = await http("POST", "/api/v1/tasks/job/trigger", {"payload": "1", "options": options})
        token = await http("POST", "/api/v1/waitpoints/tokens", {"timeout": date})

        assert (run.status, token.status) == (422, 422)
        for path in ("/api/v1/runs", "/api/v1/waitpoints/tokens"):
            listed = await http("GET", path)
            assert (listed.status, listed.json["data"]) == (200, [])


class TestNumbers:
    @pytest.mark.parametrize("path", ["/api/v1/auth/jwt", "/api/v1/auth/public-tokens"])
    async def test_a_lifetime_too_long_for_any_number_is_refused(
        self, http: Http, path: str
    ) -> None:
        body = b'{"claims":{},"scopes":["read:sessions"],"expirationTime":%s}' % ENDLESS.encode()
        assert (await http("POST", path, raw=body)).status == 400

    @pytest.mark.parametrize(
        "number",
        [int(ENDLESS), -int(ENDLESS), 1e308, 2**63],
        ids=["long", "below", "float", "word"],
    )
    async def test_a_duration_too_long_for_any_number_is_refused_and_not_an_error_of_ours(
        self, http: Http, number: float
    ) -> None:
        async def asked(path: str, body: dict[str, Any]) -> int:
            reply = await http("POST", path, raw=json.dumps(body).encode())
            return reply.status

        trigger = "/api/v1/tasks/job/trigger"
        for name in ("delay", "ttl", "maxDuration", "maxAttempts", "priority", "concurrencyKey"):
            status = await asked(trigger, {"payload": "1", "options": {name: number}})
            assert status < 500, name
        assert await asked("/api/v1/waitpoints/tokens", {"timeout": number}) in (400, 422)
        waiting = {"payload": "1", "options": {"delay": "1h"}}
        run_id = (await http("POST", trigger, waiting)).json["id"]
        assert await asked(f"/api/v1/runs/{run_id}/reschedule", {"delay": number}) in (400, 422)

    @pytest.mark.parametrize("member", ["exp", "nbf"])
    async def test_a_signed_token_with_a_time_too_long_for_any_number_is_refused(
        self, http: Http, member: str
    ) -> None:
        said = {
            "sub": http.system.environment.id,
            "pub": True,
            "scopes": ["read:sessions"],
            "iss": "https://id.trigger.dev",
            "aud": "https://api.trigger.dev",
            "exp": http.clock.now_ms() // 1000 + 60,
        } | {member: int(ENDLESS)}
        signed = ".".join(map(base64url, (b'{"alg":"HS256"}', json.dumps(said).encode())))
        signature = base64url(hmac.digest(KEY.encode(), signed.encode(), "sha256"))

        reply = await http("GET", "/api/v1/sessions", key=f"{signed}.{signature}")
        assert (reply.status, reply.json["error"]) == (401, "Public Access Token is invalid")


class TestReadingAsJson:
    async def test_a_record_that_is_no_json_or_no_utf_8_leaves_the_others_readable(
        self, http: Http
    ) -> None:
        """What direct writes bring is stored as it is, whatever it is."""
        await http.create()
        bad = [b'{"data":' + b"[" * 100_000, b'{"data":"\xff","id":"x"}', b'{"id":5,"data":1}']
        for body in (*bad, b'{"data":"good","id":"y"}'):
            await http.system.services.streams.append(http.channel("in"), [NewRecord(body)])

        reply = await http("GET", "/realtime/v1/sessions/chat-1/in/records")
        assert reply.status == 200
        records = json.loads(reply.body.decode("utf-8"))["records"]
        assert [r["data"] for r in records] == [bad[0].decode(), "\ufffd", bad[2].decode(), "good"]

    async def test_many_pages_come_whole_and_commands_among_them_are_skipped(
        self, http: Http
    ) -> None:
        await http.create()
        streams, out = http.system.services.streams, http.channel()
        for start in range(0, 3500, 500):
            data = [NewRecord(b'{"data":%d,"id":""}' % n) for n in range(start, start + 500)]
            await streams.append(out, data)
        await streams.append(out, [trim_record(0)] * 1000)
        await streams.append(out, [NewRecord(b'{"data":"last","id":""}')])

        reply = await http("GET", "/realtime/v1/sessions/chat-1/out/records")
        assert "content-length" not in reply.headers
        assert [r["data"] for r in reply.json["records"]] == [*range(3500), "last"]
        rest = await http("GET", "/realtime/v1/sessions/chat-1/out/records?afterEventId=3499")
        assert [r["data"] for r in rest.json["records"]] == ["last"]
        assert rest.headers["content-length"] == str(len(rest.body))

    async def test_a_channel_of_any_size_takes_a_page_or_two_of_memory(self, http: Http) -> None:
        await http.create()
        streams, out = http.system.services.streams, http.channel()
        body = b'{"data":"%s","id":""}' % (b"x" * (limits.MIB // 2))
        for _ in range(40):
            await streams.append(out, [NewRecord(body)])
        received = 0

        async def send(message: dict[str, Any]) -> None:
            nonlocal received
            received += len(message.get("body", b""))

        scope = scope_of("GET", "/realtime/v1/sessions/chat-1/out/records", credentials())
        tracemalloc.start()
        try:
            await http.system.app(scope, anyio.sleep_forever, send)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert received > 20 * limits.MIB
        assert peak < 8 * limits.MIB

    async def test_an_answer_that_breaks_off_is_cut_and_never_ended_in_good_order(self) -> None:
        class Failing(MemoryStreams):
            async def read(self, *args: Any, **options: Any) -> Any:
                if (options["after"] or 0) > 2500:
                    raise Unavailable("the disk is gone")
                return await super().read(*args, **options)

        messages: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        async with server(engine=Failing) as http:
            await http.create()
            for _ in range(4):
                records = [NewRecord(b'{"data":1,"id":""}')] * 1000
                await http.system.services.streams.append(http.channel(), records)
            scope = scope_of("GET", "/realtime/v1/sessions/chat-1/out/records", credentials())
            with pytest.raises(Unavailable):
                await http.system.app(scope, anyio.sleep_forever, send)
        assert messages[0]["status"] == 200
        assert all(message["more_body"] for message in messages[1:])

    async def test_a_writer_that_never_pauses_does_not_keep_an_answer_open(self) -> None:
        class Growing(MemoryStreams):
            async def read(self, channel: Any, **options: Any) -> Any:
                await self.append(channel, [NewRecord(b'{"data":1,"id":""}')] * 1000)
                return await super().read(channel, **options)

        async with server(engine=Growing) as http:
            await http.create()
            await http.system.services.streams.append(
                http.channel(), [NewRecord(b'{"data":1,"id":""}')] * 1000
            )
            with anyio.fail_after(10):
                reply = await http("GET", "/realtime/v1/sessions/chat-1/out/records")
        assert len(msgspec.json.decode(reply.body)["records"]) >= 1000


def credentials() -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}"}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
