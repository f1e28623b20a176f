"""Who may do what over HTTP (P-12): credentials, tokens, CORS, rate limits.

Wire-protocol §1, §3, §17.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from http_harness import KEY, START_MS, Http, server, session_body

from everturn.protocol.link import Hello, Packer
from everturn.protocol.runs import TaskDeclaration
from everturn.protocol.tokens import verify

pytestmark = pytest.mark.anyio

APPEND = "/realtime/v1/sessions/chat-1/in/append"
ORIGIN = {"origin": "https://app.example"}


class SilentWorker:
    """The other end of a link: it says hello, and then nothing until it goes."""

    def __init__(self) -> None:
        hello = Hello("worker_2", "v1", [TaskDeclaration(task_id="agent", kind="agent")], {}, [])
        self._hello: bytes | None = Packer.message(Packer(64 * 1024).encode(hello))
        self.welcomed = anyio.Event()
        self.gone = anyio.Event()

    async def receive(self) -> bytes | None:
        hello, self._hello = self._hello, None
        if hello is None:
            await self.gone.wait()
        return hello

    async def send(self, message: bytes) -> None:
        self.welcomed.set()


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


def part(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


class TestCredentials:
    @pytest.mark.parametrize(
        ("header", "text"),
        [
            (None, "Invalid or Missing API key"),
            ("", "Invalid or Missing API key"),
            ("Bearer", "Invalid or Missing API key"),
            ("Basic abc", "Invalid or Missing API key"),
            (KEY, "Invalid or Missing API key"),
            ("Bearer tr_dev_unknown0000000000000000", "Invalid API key"),
            ("Bearer tr_pat_abcdefghijklmnopqrstuvwx", "Invalid API key"),
            ("Bearer pk_dev_abcdefghijklmnopqrstuvwx", "Invalid API key"),
            ("Bearer " + "x" * 10_000, "Invalid API key"),
            ("Bearer a.b.c", "Invalid API key"),
        ],
    )
    async def test_what_is_no_working_credential_is_refused(
        self, http: Http, header: str | None, text: str
    ) -> None:
        # W-2
        headers = {} if header is None else {"authorization": header}
        for method, path in (("GET", "/api/v1/sessions"), ("POST", APPEND)):
            reply = await http(method, path, key=None, headers=headers)
            assert (reply.status, reply.json) == (401, {"error": text})

    async def test_a_revoked_key_works_for_a_day_and_no_longer(self, http: Http) -> None:
        # W-21
        services, environment = http.system.services, http.system.environment
        key, secret = await services.keys.create(environment)
        token = http.token("read:sessions", key=secret, exp=START_MS // 1000 + 200_000)
        assert await services.keys.revoke(environment.id, key.id)

        async def works(credential: str) -> bool:
            return (await http("GET", "/api/v1/sessions", key=credential)).status == 200

        await http.clock.jump(24 * 3600 - 1)
        assert await works(secret)
        assert await works(token)
        await http.clock.jump(20)
        assert not await works(secret)
        assert not await works(token)

    async def test_keys_are_stored_encrypted_and_open_only_in_their_environment(
        self, http: Http
    ) -> None:
        from everturn.errors import ConfigurationError

        services = http.system.services
        (key,) = await services.state.keys(http.system.environment.id)
        assert KEY.encode() not in msgspec.json.encode(key)
        assert services.keys.reveal(key) == KEY
        with pytest.raises(ConfigurationError):
            services.keys.reveal(msgspec.structs.replace(key, environment_id="other"))

    async def test_a_fixed_key_gives_the_same_environment_on_every_start(self, http: Http) -> None:
        async with server() as other:
            assert other.system.environment.id == http.system.environment.id


class TestTokens:
    async def test_a_token_that_is_not_good_is_refused_and_nothing_is_stored(
        self, http: Http
    ) -> None:
        await http.create()
        environment_id = http.system.environment.id
        scope = "write:sessions:chat-1"
        good = http.token(scope)
        header, payload, signature = good.split(".")
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=="))
        none = f"{part({'alg': 'none'})}.{payload}."
        forged = f"{header}.{part(claims | {'scopes': ['admin']})}.{signature}"
        before = await http.stored()
        for token, text in (
            (http.token(scope, exp=START_MS // 1000), "Public Access Token is invalid"),
            (http.token(scope, exp=START_MS // 1000 - 1), "Public Access Token is invalid"),
            (none, "Public Access Token is invalid"),
            (f"{part({'alg': 'HS512'})}.{payload}.{signature}", "Public Access Token is invalid"),
            (forged, "Public Access Token is invalid"),
            (f"{header}.{payload}.{signature[:-2]}AA", "Public Access Token is invalid"),
            (
                http.token(scope, key="tr_dev_other000000000000000000"),
                "Public Access Token is invalid",
            ),
            (http.token(scope, sub="cother"), "Invalid Public Access Token"),
            (f"{header}.{part({'pub': True})}.{signature}", "Invalid Public Access Token"),
            (f"{header}.{part({'sub': environment_id})}.{signature}", "Invalid API key"),
        ):
            reply = await http("POST", APPEND, raw=b"a", key=token)
            assert (reply.status, reply.json) == (401, {"error": text}), token
        assert await http.stored() == before
        assert (await http("POST", APPEND, raw=b"a", key=good)).status == 200

    async def test_a_token_that_was_good_expires_on_time(self, http: Http) -> None:
        await http.create()
        token = http.token("write:sessions:chat-1", exp=START_MS // 1000 + 3)
        assert (await http("POST", APPEND, raw=b"a", key=token)).status == 200
        await http.clock.advance(3)
        assert (await http("POST", APPEND, raw=b"a", key=token)).status == 401

    async def test_a_token_for_another_session_or_environment_opens_nothing(
        self, http: Http
    ) -> None:
        await http.create()
        services = http.system.services
        other = await services.state.ensure_environment("prod", now_ms=http.clock.now_ms())
        _, secret = await services.keys.create(other)
        foreign = http.token("write:sessions:chat-1", key=secret, sub=other.id)
        before = await http.stored()

        wrong = await http("POST", APPEND, raw=b"a", key=http.token("write:sessions:chat-2"))
        assert wrong.status == 403
        assert wrong.json == {
            "error": "Unauthorized",
            "code": "unauthorized",
            "param": "access_token",
            "type": "authorization",
        }
        # Its scopes would do, but in its own environment there is no such session.
        assert (await http("POST", APPEND, raw=b"a", key=foreign)).status == 404
        assert await http.stored() == before

    async def test_routes_without_tokens_refuse_them_as_unknown_keys(self, http: Http) -> None:
        # W-29
        key = http.token("admin")
        for method, path in (
            ("POST", "/api/v1/auth/jwt/claims"),
            ("POST", "/api/v1/auth/jwt"),
            ("GET", "/api/v1/runs/run_x/metadata"),
            ("PUT", "/api/v1/runs/run_x/metadata"),
            ("POST", "/api/v1/runs/run_x/tags"),
            ("GET", "/api/v1/runs/run_x/result"),
        ):
            reply = await http(method, path, {}, key=key)
            assert (reply.status, reply.json) == (401, {"error": "Invalid API key"}), path

    async def test_claims_are_what_a_client_signs_with(self, http: Http) -> None:
        # W-24
        reply = await http("POST", "/api/v1/auth/jwt/claims")

        assert reply.json == {"sub": http.system.environment.id, "pub": True}

    async def test_minted_tokens_carry_their_scopes_and_their_lifetime(self, http: Http) -> None:
        # W-27
        body = {"claims": {"scopes": ["read:sessions:a"]}, "expirationTime": "10m"}
        token = (await http("POST", "/api/v1/auth/jwt", body)).json["token"]
        claims = verify(token, KEY, now_ms=START_MS)
        assert claims.scopes == ("read:sessions:a",)
        assert claims.exp == START_MS // 1000 + 600

        public = {"scopes": ["trigger:tasks:job"], "oneTimeUse": True}
        token = (await http("POST", "/api/v1/auth/public-tokens", public)).json["token"]
        assert verify(token, KEY, now_ms=START_MS).otu is True

    async def test_a_lifetime_that_cannot_be_is_refused(self, http: Http) -> None:
        # W-27
        for text in ("soon", "1h ago", "0s", "31d", START_MS // 1000):
            body = {"claims": {"scopes": []}, "expirationTime": text}
            assert (await http("POST", "/api/v1/auth/jwt", body)).status == 400, text


class TestCors:
    async def test_a_preflight_allows_what_was_asked_for(self, http: Http) -> None:
        # W-5
        asked = {"access-control-request-headers": "authorization,x-part-id,x-custom"}
        for path in ("/api/v1/sessions", APPEND, "/api/v1/tasks/job/trigger"):
            reply = await http("OPTIONS", path, key=None, headers=ORIGIN | asked)
            assert (reply.status, reply.body) == (200, b"{}")
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
            assert (
                reply.headers["access-control-allow-headers"] == "authorization,x-part-id,x-custom"
            )
            assert reply.headers["access-control-allow-methods"] == "GET,HEAD,PUT,PATCH,POST,DELETE"
            assert reply.headers["access-control-max-age"] == "300"
            assert "Access-Control-Request-Headers" in reply.headers["vary"]
            assert "access-control-allow-credentials" not in reply.headers

    async def test_every_answer_of_a_cors_route_is_readable_errors_included(
        self, http: Http
    ) -> None:
        # W-5
        await http.create()
        for method, path, body, key in (
            ("GET", "/api/v1/sessions/chat-1", None, KEY),
            ("GET", "/api/v1/sessions/nobody", None, KEY),
            ("GET", "/api/v1/sessions/chat-1", None, None),
            ("DELETE", "/api/v1/sessions/chat-1", None, KEY),
            ("POST", "/api/v1/sessions", {}, KEY),
            ("POST", APPEND, {"kind": "stop"}, KEY),
            ("POST", APPEND, {"kind": "stop"}, None),
            ("POST", "/realtime/v1/sessions/nobody/in/append", {}, KEY),
        ):
            reply = await http(method, path, body, key=key, headers=ORIGIN)
            assert reply.headers["access-control-allow-origin"] == "https://app.example", path
            assert reply.headers["access-control-expose-headers"] == (
                "x-trigger-jwt, x-trigger-jwt-claims"
            )

    async def test_without_an_origin_there_are_no_cors_headers(self, http: Http) -> None:
        reply = await http("GET", "/api/v1/sessions")
        assert not any(name.startswith("access-control") for name in reply.headers)


class TestRateLimits:
    async def test_they_are_off_on_loopback_and_on_elsewhere(self) -> None:
        async with server() as http:
            assert "x-ratelimit-limit" not in (await http("GET", "/api/v1/sessions")).headers
        async with server(host="0.0.0.0") as http:
            reply = await http("GET", "/api/v1/sessions")
            assert reply.headers["x-ratelimit-limit"] == "750"
            assert reply.headers["x-ratelimit-remaining"] == "749"

    async def test_an_emptied_bucket_refuses_until_it_refills(self) -> None:
        # W-13
        async with server(rate_limits=True, rate_capacity=2, rate_refill=10) as http:
            for _ in range(2):
                assert (await http("GET", "/api/v1/sessions")).status == 200
            reply = await http("GET", "/api/v1/sessions", headers=ORIGIN)
            assert reply.status == 429
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
            assert reply.json["title"] == "Rate Limit Exceeded"
            assert reply.json["limit"] == 2
            assert reply.json["reset"] == START_MS + 1000
            await http.clock.advance(1)
            assert (await http("GET", "/api/v1/sessions")).status == 200

    async def test_a_public_token_has_a_window_of_a_minute(self) -> None:
        # W-13
        async with server(rate_limits=True, public_rate=2) as http:
            token = http.token("read:sessions")
            statuses = [(await http("GET", "/api/v1/sessions", key=token)).status for _ in range(3)]
            await http.clock.advance(60)
            again = await http("GET", "/api/v1/sessions", key=token)
            assert (statuses, again.status) == ([200, 200, 429], 200)

    async def test_claims_and_realtime_routes_are_never_limited(self) -> None:
        # W-13
        async with server(rate_limits=True, rate_capacity=1) as http:
            await http("POST", "/api/v1/sessions", session_body())
            for _ in range(5):
                assert (await http("POST", APPEND, raw=b"a")).status == 200
                assert (await http("POST", "/api/v1/auth/jwt/claims")).status == 200


class TestElsewhere:
    async def test_an_unknown_path_is_not_found(self, http: Http) -> None:
        for path in ("/", "/api/v1/nothing", "/api/v1/sessions/", "/realtime/v1/sessions/a"):
            reply = await http("GET", path)
            assert (reply.status, reply.json) == (404, {"error": "Not found"}), path

    async def test_health_needs_no_credential_and_ready_needs_a_worker(
        self, http: Http, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # W-8. The row of a worker that is not connected says nothing: there is one here.
        assert (await http("GET", "/healthz", key=None)).status == 200
        reply = await http("GET", "/readyz", key=None)
        assert reply.status == 503
        assert reply.json == {"ready": False, "reason": "no worker is connected"}
        assert not http.system.ready

        worker, state = SilentWorker(), http.system.services.state
        register, known, go_on = state.register_worker, anyio.Event(), anyio.Event()

        async def slowly(*args: Any, **options: Any) -> None:
            known.set()
            await go_on.wait()
            await register(*args, **options)

        monkeypatch.setattr(state, "register_worker", slowly)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.system.services.links.serve, http.system.environment, worker)
            await known.wait()
            assert (await http("GET", "/readyz", key=None)).status == 503, "not registered yet"
            go_on.set()
            await worker.welcomed.wait()
            assert (await http("GET", "/readyz", key=None)).status == 200
            worker.gone.set()
        assert http.system.ready, "within the grace of its link"
