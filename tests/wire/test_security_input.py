"""Hostile input over HTTP: forged tokens, tricky ids, injected headers, and every size limit.

Wire-protocol §1, §3, §5, §6. What is refused leaves nothing behind.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from http_harness import KEY, START_MS, Http, scope_of, server, session_body

from everturn.protocol import paths
from everturn.protocol.records import metered_bytes, open_envelope
from everturn.rules import limits
from everturn.server.services.keys import CACHE_S

pytestmark = pytest.mark.anyio

APPEND = "/realtime/v1/sessions/chat-1/in/append"
RECORDS = "/realtime/v1/sessions/chat-1/out/records"
NOW_S = START_MS // 1000


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        await opened.create()
        yield opened


def part(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def signed(payload: Any, *, header: Any = None, key: str = KEY, digest: str = "sha256") -> str:
    """A JWT signed with whatever, saying whatever."""
    text = f"{part(header or {'alg': 'HS256'})}.{part(payload)}"
    signature = hmac.new(key.encode(), text.encode(), getattr(hashlib, digest)).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


class TestForgery:
    def claims(self, http: Http, **changes: Any) -> dict[str, Any]:
        good = {
            "sub": http.system.environment.id,
            "pub": True,
            "scopes": ["write:sessions:chat-1"],
            "iss": "https://id.trigger.dev",
            "aud": "https://api.trigger.dev",
            "iat": NOW_S,
            "exp": NOW_S + 900,
        }
        return {k: v for k, v in (good | changes).items() if v is not ...}

    async def status(self, http: Http, token: str) -> int:
        return (await http("POST", APPEND, raw=b"a", key=token)).status

    async def test_what_our_forger_makes_would_be_good_if_it_were_honest(self, http: Http) -> None:
        assert await self.status(http, signed(self.claims(http))) == 200
        typed = signed(self.claims(http), header={"alg": "HS256", "typ": "JWT"})
        assert await self.status(http, typed) == 200

    @pytest.mark.parametrize(
        "changes",
        [
            {"iss": "https://evil.example"},
            {"iss": ...},
            {"aud": "https://evil.example"},
            {"aud": ...},
            {"aud": ["https://evil.example"]},
            {"aud": {"https://api.trigger.dev": 1}},
            {"exp": NOW_S},
            {"exp": ...},
            {"exp": "9999999999"},
            {"exp": True},
            {"exp": None},
            {"exp": -1},
            {"exp": 1e400},
            {"nbf": NOW_S + 60},
            {"nbf": "soon"},
            {"sub": "cother"},
            {"sub": ...},
            {"sub": 7},
            {"sub": ""},
            {"sub": ["x"]},
            {"pub": ...},
            {"pub": False},
            {"pub": 1},
            {"pub": "true"},
        ],
        ids=repr,
    )
    async def test_a_signed_token_that_says_the_wrong_thing_is_refused(
        self, http: Http, changes: dict[str, Any]
    ) -> None:
        assert await self.status(http, signed(self.claims(http, **changes))) == 401

    @pytest.mark.parametrize(
        "header",
        [
            {"alg": "none"},
            {"alg": "None"},
            {"alg": "HS384"},
            {"alg": "HS512"},
            {"alg": "RS256"},
            {"alg": "ES256"},
            {"alg": "hs256"},
            {"alg": ["HS256"]},
            {"alg": None},
            {"typ": "JWT"},
            {"alg": "HS256", "crit": ["exp"]},
            ["HS256"],
            "HS256",
        ],
        ids=repr,
    )
    async def test_only_one_algorithm_exists_whatever_the_header_says(
        self, http: Http, header: Any
    ) -> None:
        token = signed(self.claims(http), header=header)
        assert await self.status(http, token) == 401
        body, _, _ = token.rpartition(".")
        assert await self.status(http, body + ".") == 401

    async def test_a_key_is_never_taken_from_the_token(self, http: Http) -> None:
        """RS/HS confusion: whatever public material is at hand, or none, signs nothing here."""
        claims = self.claims(http)
        for key in ("", "null", http.system.environment.id, KEY[:-1], KEY + " ", KEY.upper()):
            for more in ({}, {"kid": "0"}, {"jwk": {"kty": "oct", "k": ""}}, {"jku": "http://x"}):
                token = signed(claims, header={"alg": "HS256"} | more, key=key)
                assert await self.status(http, token) == 401
        for digest in ("sha384", "sha512", "md5"):
            assert await self.status(http, signed(claims, digest=digest)) == 401

    async def test_one_spelling_of_a_token_is_good_and_no_other(self, http: Http) -> None:
        good = signed(self.claims(http))
        head, body, signature = good.split(".")
        for bad in (
            good + "=",
            good + ".",
            f"{head}.{body}.{signature}.{signature}",
            f"{head}.{body}.{signature[:-1]}",
            f"{head}.{body}.{signature.swapcase()}",
            f"{head}=.{body}.{signature}",
            f"{head}.{body}\n.{signature}",
            f"{head}.{body}%00.{signature}",
        ):
            assert await self.status(http, bad) == 401, bad

    async def test_scopes_that_are_not_a_list_of_texts_open_nothing(self, http: Http) -> None:
        for scopes in ("admin", {"admin": True}, [["admin"]], [None, 1], 1, None, ...):
            token = signed(self.claims(http, scopes=scopes))
            assert await self.status(http, token) == 403, scopes

    async def test_a_far_future_expiry_is_the_signers_word_and_ends_with_its_key(
        self, http: Http
    ) -> None:
        """Whoever holds the secret key may sign for long; revoking the key ends it (§3.3)."""
        services, environment = http.system.services, http.system.environment
        key, secret = await services.keys.create(environment)
        token = signed(self.claims(http, exp=NOW_S + 10**9), key=secret)
        assert await self.status(http, token) == 200
        assert await services.keys.revoke(environment.id, key.id)
        await http.clock.jump(24 * 3600 + 20)
        assert await self.status(http, token) == 401

    async def test_a_leaked_key_can_be_ended_at_once_with_every_token_it_signed(
        self, http: Http
    ) -> None:
        services, environment = http.system.services, http.system.environment
        key, secret = await services.keys.create(environment)
        token = signed(self.claims(http), key=secret)
        assert await self.status(http, token) == await self.status(http, secret) == 200
        assert await services.keys.revoke(environment.id, key.id, at_once=True)
        await http.clock.jump(CACHE_S)
        assert await self.status(http, token) == await self.status(http, secret) == 401

    async def test_a_token_of_any_length_or_depth_is_answered_401(self, http: Http) -> None:
        deep = base64.urlsafe_b64encode(b"[" * 50_000).decode().rstrip("=")
        for bad in (deep + ".x.y", f"x.{deep}.y", "a." * 20_000, "." * 20_000, "é.é.é"):
            assert await self.status(http, bad) == 401
        wide = signed(self.claims(http, scopes=["write:sessions:" + "x" * 60_000]))
        assert await self.status(http, wide) == 401


TRICKS = [
    "..",
    ".",
    "../prod",
    "a/../b",
    "/etc/passwd",
    "..\\..\\x",
    "a/b",
    "%2e%2e",
    "%2F",
    "a%00b",
    "a?b#c",
    "a b+c",
    "ünï",
    "\u202eright",
    "\u0000".join("ab")[:1] + "🙂",
    "' OR 1=1 --",
    "%s%n{}${x}",
    "line\nbreak",
    "con",
    "x" * limits.EXTERNAL_ID_CHARS_MAX,
]


class TestIds:
    @pytest.mark.parametrize("external_id", TRICKS, ids=repr)
    async def test_an_id_is_only_a_name_whatever_it_looks_like(
        self, http: Http, external_id: str
    ) -> None:
        """Either it is refused when it is chosen, or it names this one session on every route."""
        created = await http("POST", paths.SESSIONS, session_body(external_id))
        if created.status == 400:
            return
        assert created.status == 201, created
        session_id = created.json["id"]
        segment = quote(external_id, safe="").replace(".", "%2E")
        base = f"/realtime/v1/sessions/{segment}"
        token = http.token(f"write:sessions:{external_id}", f"read:sessions:{external_id}")
        for key in (KEY, token):
            found = await http("GET", f"/api/v1/sessions/{segment}", key=key)
            assert found.json["id"] == session_id
            assert (await http("POST", base + "/in/append", raw=b"x", key=key)).status == 200
        assert len((await http("GET", base + "/in/records")).json["records"]) == 2
        untouched = (await http("GET", "/realtime/v1/sessions/chat-1/in/records")).json["records"]
        assert untouched == []
        link = await http("PUT", f"/api/v1/sessions/{segment}/snapshot-url")
        url = "/" + link.json["presignedUrl"].partition("://")[2].partition("/")[2]
        assert (await http("PUT", url, {"messages": []}, key=None)).status == 200

    @pytest.mark.parametrize(
        "segment",
        ["%00", "a%00", "%ff", "%c0%ae%c0%ae", "", "x" * 513, "%ed%a0%80"],
    )
    async def test_a_segment_that_is_no_text_is_refused_and_no_other_is_opened(
        self, http: Http, segment: str
    ) -> None:
        for path in (
            f"/api/v1/sessions/{segment}",
            f"/realtime/v1/sessions/{segment}/in/records",
            f"/api/v3/runs/{segment}",
            f"/api/v1/waitpoints/tokens/{segment}",
            f"/realtime/v1/streams/{segment}/s",
        ):
            reply = await http("GET", path)
            assert reply.status in (400, 404), (path, reply)

    @pytest.mark.parametrize(
        "name", ["../../master.key", "..%2f..%2fmaster.key", "a/../../b", "/abs", "%2e%2e/x", "."]
    )
    async def test_a_packet_is_stored_under_its_digest_and_never_under_its_name(
        self, http: Http, name: str
    ) -> None:
        reply = await http("PUT", f"/api/v2/packets/{name}")
        if reply.status in (400, 404):
            return
        url = "/" + reply.json["presignedUrl"].partition("://")[2].partition("/")[2]
        assert ".." not in url.partition("?")[0]
        assert (await http("PUT", url, {"a": 1}, key=None)).status == 200
        read = await http("GET", f"/api/v1/packets/{name}")
        url = "/" + read.json["presignedUrl"].partition("://")[2].partition("/")[2]
        assert (await http("GET", url, key=None)).json == {"a": 1}

    async def test_a_signed_link_opens_one_thing_for_one_verb_until_its_time(
        self, http: Http
    ) -> None:
        link = await http("PUT", "/api/v1/sessions/chat-1/snapshot-url")
        url = "/" + link.json["presignedUrl"].partition("://")[2].partition("/")[2]
        path, _, query = url.partition("?")
        other = path.rpartition("/")[0] + "/session_" + "0" * 25
        for bad in (
            f"{other}?{query}",
            f"{path}?{query.replace('expires=', 'expires=9')}",
            f"{path}?{query[:-1]}",
            f"{path}?{query}&signature=",
            f"{path}/../x?{query}",
        ):
            assert (await http("PUT", bad, {}, key=None)).status in (403, 404), bad
        assert (await http("GET", url, key=None)).status == 403
        await http.clock.jump(3601)
        assert (await http("PUT", url, {}, key=None)).status == 403

    async def test_a_packets_link_opens_one_packet_for_one_verb_until_its_time(
        self, http: Http
    ) -> None:
        made = await http("PUT", "/api/v1/packets/mine")
        url = "/" + made.json["presignedUrl"].partition("://")[2].partition("/")[2]
        path, _, query = url.partition("?")
        other = f"{path[:-1]}{'0' if path[-1] != '0' else '1'}"
        signed = query.rpartition("signature=")[0]
        for bad in (
            f"{other}?{query}",
            f"{path}?{query.replace('expires=', 'expires=9')}",
            f"{path}?{signed}signature=",
            f"{path}?{signed}signature={'0' * 64}",
            f"{path}?{query[:-1]}",
        ):
            for method in ("GET", "PUT"):
                refused = await http(method, bad, {} if method == "PUT" else None, key=None)
                assert refused.status in (403, 404), (method, bad)
        assert (await http("GET", url, key=None)).status == 403
        await http.clock.jump(3601)
        assert (await http("PUT", url, {}, key=None)).status == 403

    async def test_a_scope_opens_its_own_id_and_none_that_begins_or_ends_like_it(
        self, http: Http
    ) -> None:
        for scope in ("chat-", "chat-10", "hat-1", "chat-1 ", "CHAT-1", "", "*", "chat-%31"):
            token = http.token(f"write:sessions:{scope}")
            refused = await http("POST", APPEND, raw=b"a", key=token)
            assert refused.status == 403, scope


class TestInjection:
    @pytest.mark.parametrize(
        "part_id", ["a\r\nx: y", "a\nb", "\x00", "é\x85\x1f", '"}],"x":[{"', "data: x", "1-1"]
    )
    async def test_a_part_id_stays_inside_its_record(self, http: Http, part_id: str) -> None:
        """HTTP parsers shut out CR and LF; were one to let them pass, nothing would come of it."""
        reply = await http("POST", APPEND, raw=b"hello", headers={"x-part-id": part_id})
        assert reply.status == 200
        (record,) = await http.system.services.streams.read(http.channel("in"), after=None)
        assert open_envelope(record.body) == ("hello", part_id)
        async with http.follow("/realtime/v1/sessions/chat-1/in") as stream:
            await stream.wait(lambda: stream.records)
            assert [e.event for e in stream.events if e.event not in ("ping",)] == ["batch"]
            assert open_envelope(stream.records[0].body) == ("hello", part_id)

    async def test_a_body_cannot_end_its_event_or_begin_another(self, http: Http) -> None:
        body = b'x\n\nevent: batch\ndata: {"records":[]}\n\n: \r\n\r\ndata: [DONE]\n\n\xff\xfe'
        assert (await http("POST", APPEND, raw=body)).status == 200
        async with http.follow("/realtime/v1/sessions/chat-1/in") as stream:
            await stream.wait(lambda: stream.records)
            (record,) = stream.records
        assert open_envelope(record.body)[0] == body.decode("utf-8", "replace")  # type: ignore[index]

    async def test_headers_of_guests_records_stay_headers_and_never_make_a_command(
        self, http: Http
    ) -> None:
        evil = "x\r\n\r\ndata: [DONE]\r\n\r\n"
        good = {"control": evil, "headers": [["a\nb", evil], ["trigger-control", "turn-complete"]]}
        assert (await http("POST", RECORDS, {"records": [good]})).status == 200
        for bad in (
            {"control": "x", "headers": [["", "trim"]]},
            {"control": "", "headers": []},
            {"control": "x", "headers": [["a"]]},
            {"control": "x", "headers": [["a", 1]]},
            {"data": 1, "control": "x"},
            {"data": 1, "trim": 1},
            {"trim": -1},
            {"trim": 2**63},
            {},
        ):
            assert (await http("POST", RECORDS, {"records": [bad]})).status == 400, bad
        (record,) = await http.system.services.streams.read(http.channel(), after=None)
        assert record.control == evil
        assert not record.is_command
        async with http.follow("/realtime/v1/sessions/chat-1/out") as stream:
            await stream.wait(lambda: stream.records)
            assert stream.records[0].headers == record.headers
            assert not stream.is_done

    @pytest.mark.parametrize(
        "data", [b"\xff", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b'{"a":1,}', b"NaN", b"01"]
    )
    async def test_data_that_is_no_json_is_refused_or_stored_as_good_json(
        self, http: Http, data: bytes
    ) -> None:
        reply = await http("POST", RECORDS, raw=b'{"records":[{"data":' + data + b"}]}")
        assert reply.status in (200, 400), reply
        for record in await http.system.services.streams.read(http.channel(), after=None):
            assert open_envelope(record.body) is not None
            record.wire.decode("utf-8")

    async def test_an_origin_is_echoed_and_gives_no_credentials(self, http: Http) -> None:
        for origin in ("null", "https://evil.example", "*", "http://[::1]:1"):
            reply = await http("GET", "/api/v1/sessions/chat-1", headers={"origin": origin})
            assert reply.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in reply.headers

    async def test_an_error_repeats_no_secret(self, http: Http) -> None:
        secret = "tr_dev_" + "s3cret" * 4
        for reply in (
            await http("GET", "/api/v1/sessions", key=secret),
            await http("POST", APPEND, {}, key=http.token("x", key=secret)),
            await http("GET", f"/api/v1/sessions/{secret}/x", key=KEY),
        ):
            assert b"s3cret" not in reply.body
            assert KEY.encode() not in reply.body
            assert http.system.environment.id.encode() not in reply.body


def record_of(size: int) -> bytes:
    """Records whose one stored record meters `size` bytes."""
    frame = len(open_record(b'""'))
    return b'{"records":[{"partId":"p","data":"' + b"x" * (size - frame) + b'"}]}'


def open_record(data: bytes) -> bytes:
    from everturn.protocol.records import data_body

    body = data_body(data, "p")
    return b"x" * metered_bytes((), body)


class TestSizes:
    """At the limit it works; one past it, it is refused and nothing is stored."""

    async def both(self, http: Http, at: Any, past: Any, status: int) -> None:
        good = await http(*at[:2], **at[2])
        assert good.status < 300, good
        before = await http.stored()
        bad = await http(*past[:2], **past[2])
        assert bad.status == status, bad
        assert await http.stored() == before

    async def test_a_record_of_one_mebibyte(self, http: Http) -> None:
        most = limits.RECORD_BYTES_MAX
        # The posted frame around the record is larger than what is metered, so the body's own cap
        # is met first: a guest's largest record is a little smaller.
        frame = len(record_of(1000)) - 1000
        at = record_of(most - frame)
        assert len(at) == limits.APPEND_BODY_BYTES_MAX
        past = record_of(most - frame + 1)
        await self.both(http, ("POST", RECORDS, {"raw": at}), ("POST", RECORDS, {"raw": past}), 413)

    async def test_a_text_whose_quotes_count_twice(self, http: Http) -> None:
        from everturn.protocol.records import input_body

        around = metered_bytes((), input_body("", "p"))
        room = limits.RECORD_BYTES_MAX - around
        headers = {"x-part-id": "p"}
        plain = b"x" * (room % 2) + b'"' * (room // 2)
        await self.both(
            http,
            ("POST", APPEND, {"raw": plain, "headers": headers}),
            ("POST", APPEND, {"raw": plain + b"x", "headers": {"x-part-id": "q"}}),
            413,
        )

    async def test_a_part_id(self, http: Http) -> None:
        most = limits.PART_ID_CHARS_MAX
        await self.both(
            http,
            ("POST", APPEND, {"raw": b"a", "headers": {"x-part-id": "p" * most}}),
            ("POST", APPEND, {"raw": b"a", "headers": {"x-part-id": "p" * (most + 1)}}),
            400,
        )

    async def test_a_batch_of_records(self, http: Http) -> None:
        most = limits.BATCH_RECORDS_MAX
        await self.both(
            http,
            ("POST", RECORDS, {"body": {"records": [{"data": 1}] * most}}),
            ("POST", RECORDS, {"body": {"records": [{"data": 1}] * (most + 1)}}),
            400,
        )

    @pytest.mark.parametrize(
        ("method", "path", "most", "before", "after"),
        [
            ("PATCH", "/api/v1/sessions/chat-1", limits.UPDATE_BODY_BYTES_MAX, b"{", b"}"),
            ("POST", "/api/v1/sessions/chat-1/close", limits.SMALL_BODY_BYTES_MAX, b"{", b"}"),
            ("POST", paths.TOKENS, limits.UPDATE_BODY_BYTES_MAX, b"{", b"}"),
            ("POST", paths.WAIT_TOKENS, limits.WAIT_BODY_BYTES_MAX, b"{", b"}"),
            (
                "POST",
                "/api/v1/tasks/job/trigger",
                limits.TRIGGER_BODY_BYTES_MAX,
                b'{"payload":1',
                b"}",
            ),
            (
                "POST",
                paths.SESSIONS,
                limits.CREATE_BODY_BYTES_MAX,
                msgspec.json.encode(session_body())[:-1],
                b"}",
            ),
            ("POST", paths.BATCHES, limits.BATCH_BODY_BYTES_MAX, b'{"runCount":1', b"}"),
            (
                "POST",
                "/api/v1/idempotencyKeys/k/reset",
                limits.IDEMPOTENCY_RESET_BYTES_MAX,
                b'{"taskIdentifier":"job"',
                b"}",
            ),
        ],
    )
    async def test_a_body(
        self, http: Http, method: str, path: str, most: int, before: bytes, after: bytes
    ) -> None:
        def body(size: int) -> bytes:
            return before + b" " * (size - len(before) - len(after)) + after

        past = await http(method, path, raw=body(most + 1))
        assert past.status == 413, past
        at = await http(method, path, raw=body(most))
        assert at.status not in (413, 401, 403, 500), at

    @pytest.mark.parametrize(
        "declared", ["", "-1", "1e3", "+5", "0x10", "99999999999999999999", "5, 5", "٥"]
    )
    async def test_a_length_that_is_no_number_is_refused(self, http: Http, declared: str) -> None:
        before = await http.stored()
        header = declared.encode("utf-8").decode("latin-1")
        reply = await http("POST", APPEND, raw=b"hello", headers={"content-length": header})
        assert reply.status == 413
        assert await http.stored() == before

    async def test_a_body_longer_than_it_said_is_cut_off_at_the_cap(self, http: Http) -> None:
        pieces = [b"x" * 65_536] * 17
        reply = await http("POST", APPEND, pieces=pieces, headers={"content-length": "5"})
        assert reply.status == 413

    @pytest.mark.parametrize("value", [2**31, 2**63, -(2**63), 2**70, 1e300], ids=repr)
    @pytest.mark.parametrize("name", ["maxAttempts", "maxDuration", "priority"])
    async def test_a_number_that_no_engine_can_hold(
        self, http: Http, name: str, value: float
    ) -> None:
        path = "/api/v1/tasks/agent/trigger"
        reply = await http("POST", path, {"payload": 1, "options": {name: value}})
        assert reply.status in (400, 422), reply
        config = {**session_body("big")["triggerConfig"], name: value}
        reply = await http("POST", paths.SESSIONS, {**session_body("big"), "triggerConfig": config})
        # A session has no priority: what it does not know is left out.
        assert reply.status in ((200, 201) if name == "priority" else (400,)), reply

    async def test_a_lifetime_of_a_key_without_end_is_as_long_as_any(self, http: Http) -> None:
        options = {"idempotencyKey": "k", "idempotencyKeyTTL": "9" * 30 + "d"}
        path = "/api/v1/tasks/agent/trigger"
        reply = await http("POST", path, {"payload": 1, "options": options})
        assert reply.status == 200, reply
        token = {"idempotencyKey": "k", "idempotencyKeyTTL": "9" * 30 + "d"}
        assert (await http("POST", "/api/v1/waitpoints/tokens", token)).status == 200

    async def test_of_a_body_past_the_cap_no_more_is_read(self, http: Http) -> None:
        """Whatever it declared: what is refused does not fill the memory first."""
        given = 0

        async def receive() -> dict[str, Any]:
            nonlocal given
            given += 1
            assert given < 100
            return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {"authorization": f"Bearer {KEY}", "content-length": "5"}
        await http.system.app(scope_of("POST", APPEND, headers), receive, send)
        assert sent[0]["status"] == 413
        assert given == limits.APPEND_BODY_BYTES_MAX // 65_536 + 1

    @pytest.mark.parametrize(
        ("member", "most", "value"),
        [
            ("externalId", limits.EXTERNAL_ID_CHARS_MAX, lambda n: "x" * n),
            ("type", limits.SESSION_TYPE_CHARS_MAX, lambda n: "x" * n),
            ("tags", limits.SESSION_TAGS_MAX, lambda n: [f"t{i}" for i in range(n)]),
            ("tags", limits.TAG_CHARS_MAX, lambda n: ["x" * n]),
        ],
    )
    async def test_a_member_of_a_session(
        self, http: Http, member: str, most: int, value: Any
    ) -> None:
        def create(size: int) -> dict[str, Any]:
            return session_body("chat-2") | {member: value(size)}

        await self.both(
            http,
            ("POST", paths.SESSIONS, {"body": create(most)}),
            ("POST", paths.SESSIONS, {"body": create(most + 1)}),
            400,
        )

    async def test_tags_of_a_run(self, http: Http) -> None:
        def trigger(tags: list[str]) -> tuple[str, str, dict[str, Any]]:
            body = {"payload": {}, "options": {"tags": tags}}
            return ("POST", "/api/v1/tasks/job/trigger", {"body": body})

        most = limits.RUN_TAGS_MAX
        many = [f"t{i}" for i in range(most + 1)]
        reply = await http(*trigger(many)[:2], **trigger(many)[2])
        assert reply.status in (400, 422)
        assert (await http(*trigger(many[:-1])[:2], **trigger(many[:-1])[2])).status == 200

    async def test_a_page_and_a_query(self, http: Http) -> None:
        size = limits.PAGE_SIZE_MAX
        assert (await http("GET", f"/api/v1/sessions?page[size]={size}")).status == 200
        for bad in (size + 1, 0, -1, "1e1", "٣", "9" * 30):
            text = quote(str(bad))
            assert (await http("GET", f"/api/v1/sessions?page[size]={text}")).status == 400
        parts = "&".join(f"a{n}=1" for n in range(101))
        assert (await http("GET", f"/api/v1/sessions?{parts}")).status == 400

    async def test_a_run_of_nested_brackets_is_refused_everywhere(self, http: Http) -> None:
        deep = b'{"a":' * 100_000
        for method, path in (
            ("POST", paths.SESSIONS),
            ("POST", "/api/v1/tasks/job/trigger"),
            ("POST", paths.BATCHES),
            ("POST", RECORDS),
            ("PUT", "/api/v1/runs/run_x/metadata"),
        ):
            reply = await http(method, path, raw=deep)
            assert reply.status in (400, 404, 413), (path, reply)
