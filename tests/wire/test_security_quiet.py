"""What is never said and never measured: secrets in logs and in errors, and the time a comparison takes."""

from __future__ import annotations

import hmac
import logging
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from http_harness import KEY, Http, server, session_body

from everturn.protocol import paths
from everturn.rules import limits
from everturn.server.assembly import build
from everturn.server.settings import Settings

pytestmark = pytest.mark.anyio

APPEND = "/realtime/v1/sessions/chat-1/in/append"
MARK = "what-only-two-people-know"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        await opened.create()
        yield opened


# --- logs -----------------------------------------------------------------------------------------


async def test_no_log_line_holds_a_body_a_key_a_token_or_a_signature(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    """At every level, in the message and in what goes with it, whether a request succeeds or not."""
    token = http.token("write:sessions:chat-1", "read:sessions:chat-1")
    with caplog.at_level(logging.DEBUG):
        fresh, secret = await http.system.services.keys.create(http.system.environment)
        body = {**session_body("chat-2"), "metadata": {"note": MARK}}
        body["triggerConfig"] = {"basePayload": {"message": {"id": MARK}}}
        created = await http("POST", paths.SESSIONS, body)
        await http("POST", APPEND, raw=MARK.encode(), key=token)
        await http("POST", APPEND, raw=MARK.encode(), key=token[:-3] + "xyz")
        await http("POST", APPEND, raw=MARK.encode(), key="tr_dev_" + MARK)
        await http("POST", "/api/v1/tasks/agent/trigger", {"payload": MARK}, key=secret)
        await http("POST", paths.SESSIONS, raw=b'{"' + MARK.encode())
        link = (await http("PUT", "/api/v1/sessions/chat-1/snapshot-url")).json["presignedUrl"]
        await http("PUT", "/" + link.split("/", 3)[3][:-4], {}, key=None)
        await http("PUT", "/" + link.split("/", 3)[3], {"text": MARK}, key=None)
        await http.system.services.keys.revoke(http.system.environment.id, fresh.id)
    assert created.status == 201
    assert caplog.records
    signature = link.rpartition("signature=")[2]
    minted = created.json["publicAccessToken"]
    for record in caplog.records:
        said = f"{record.getMessage()} {record.__dict__!r}"
        for hidden in (MARK, KEY, secret, token, minted, signature):
            assert hidden not in said, said


async def test_an_answer_holds_no_key_but_the_one_that_was_asked_for(http: Http) -> None:
    """And a token only where one is given out."""
    for method, path, body in (
        ("GET", "/api/v1/sessions", None),
        ("GET", "/api/v1/sessions/chat-1", None),
        ("GET", "/api/v1/runs", None),
        ("GET", "/api/v1/tasks", None),
        ("GET", "/openapi.json", None),
        ("GET", "/healthz", None),
        ("POST", paths.SESSIONS, {"nothing": KEY[:10]}),
    ):
        reply = await http(method, path, body)
        assert KEY not in reply.text, path


# --- time -----------------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compared in constant time."""
    seen: list[Any] = []
    real: Callable[[Any, Any], bool] = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        seen.extend(x if isinstance(x, str) else x.decode() for x in (a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    return seen


async def test_every_signature_is_compared_in_constant_time(
    http: Http, compared: list[Any]
) -> None:
    """A comparison that ends at the first difference tells a signature byte by byte."""
    token = http.token("write:sessions:chat-1")
    await http("POST", APPEND, raw=b"a", key=token)
    assert token.rpartition(".")[2] in compared

    link = (await http("PUT", "/api/v1/sessions/chat-1/snapshot-url")).json["presignedUrl"]
    await http("PUT", "/" + link.split("/", 3)[3], {}, key=None)
    assert link.rpartition("signature=")[2] in compared

    packet = (await http("PUT", "/api/v1/packets/p")).json["presignedUrl"]
    await http("PUT", "/" + packet.split("/", 3)[3], {}, key=None)
    assert packet.rpartition("signature=")[2] in compared

    made = await http("POST", "/api/v1/waitpoints/tokens", {})
    url = made.json["url"]
    await http("POST", "/" + url.split("/", 3)[3], {}, key=None)
    assert url.rpartition("/")[2] in compared

    ticket = await http("PUT", "/realtime/v1/sessions/chat-1/in", key=token)
    credential = ticket.headers["x-s2-access-token"]
    stream = ticket.headers["x-s2-stream-name"]
    await http("POST", f"/s2/v1/streams/{stream}/records", {"records": []}, key=credential)
    assert credential.rpartition(".")[2] in compared


async def test_a_secret_key_is_looked_up_by_its_hash_and_never_compared_as_text(
    http: Http, compared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    state = http.system.services.keys._state
    real = state.key_by_sha256

    async def look_up(digest: str) -> Any:
        asked.append(digest)
        return await real(digest)

    monkeypatch.setattr(state, "key_by_sha256", look_up)
    wrong = "tr_dev_" + "w" * 24
    assert (await http("GET", "/api/v1/sessions", key=wrong)).status == 401
    assert len(asked) == 1
    assert wrong not in asked
    assert len(asked[0]) == 64


# --- at rest --------------------------------------------------------------------------------------


async def test_a_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with build(Settings(data_dir=str(folder))):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "master.key").stat().st_mode) == 0o600


def test_a_server_listens_on_loopback_and_keeps_what_was_trimmed_for_a_week() -> None:
    assert Settings().host == "127.0.0.1"
    assert limits.RETENTION_MS == 7 * 24 * 3600 * 1000


async def test_a_packet_comes_back_as_an_attachment_and_never_as_a_page(http: Http) -> None:
    made = (await http("PUT", "/api/v1/packets/page")).json["presignedUrl"]
    await http(
        "PUT",
        "/" + made.split("/", 3)[3],
        raw=b"<script>alert(1)</script>",
        key=None,
        headers={"content-type": "text/html"},
    )
    found = (await http("GET", "/api/v1/packets/page")).json["presignedUrl"]
    reply = await http("GET", "/" + found.split("/", 3)[3], key=None)
    assert reply.headers["content-disposition"] == "attachment"
    assert reply.headers["x-content-type-options"] == "nosniff"
