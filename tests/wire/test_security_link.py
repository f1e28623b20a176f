"""The worker link: who may open one, and what is refused before it becomes a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from http_harness import KEY, Http, server

from everturn.protocol.link import PATH, SUBPROTOCOL

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with server() as opened:
        yield opened


async def knock(
    http: Http,
    authorization: str | None,
    *,
    path: str = PATH,
    subprotocols: tuple[str, ...] = (SUBPROTOCOL,),
    messages: tuple[dict[str, Any], ...] = (),
) -> list[dict[str, Any]]:
    """What the server says to a WebSocket handshake and the messages after it."""
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    scope = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=" + KEY.encode(),
        "headers": headers,
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}},
    }
    coming = iter(({"type": "websocket.connect"}, *messages, {"type": "websocket.disconnect"}))
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    with anyio.fail_after(5):
        await http.system.app(scope, receive, send)
    return said


@pytest.mark.parametrize("kind", ["none", "wrong", "basic", "admin", "worker-shaped", "query"])
async def test_only_a_secret_key_in_the_header_opens_a_link(http: Http, kind: str) -> None:
    """A key in the query would end in logs, and a public token never claims (rulings §4.2)."""
    authorization = {
        "none": None,
        "query": None,
        "wrong": "Bearer tr_dev_" + "0" * 24,
        "basic": f"Basic {KEY}",
        "admin": f"Bearer {http.token('admin')}",
        "worker-shaped": f"Bearer {http.token('write:all', 'read:all', '*:all')}",
    }[kind]
    said = await knock(http, authorization)
    assert said[0]["type"] == "websocket.http.response.start"
    assert said[0]["status"] == 401
    assert not any(message["type"] == "websocket.accept" for message in said)
    assert KEY.encode() not in b"".join(message.get("body", b"") for message in said)


@pytest.mark.parametrize("offered", [(), ("everturn.link.v2",), ("graphql-ws",)])
async def test_another_version_of_the_link_is_refused_in_words(
    http: Http, offered: tuple[str, ...]
) -> None:
    said = await knock(http, f"Bearer {KEY}", subprotocols=offered)
    assert said[0]["status"] == 400
    assert SUBPROTOCOL.encode() in said[1]["body"]


@pytest.mark.parametrize("path", ["/", "/link/v1/", "/link/v2", "/api/v1/sessions", "/link%2Fv1"])
async def test_a_websocket_elsewhere_is_closed(http: Http, path: str) -> None:
    assert await knock(http, f"Bearer {KEY}", path=path) == [
        {"type": "websocket.close", "code": 4404}
    ]


@pytest.mark.parametrize(
    "message",
    [{"text": "hello"}, {"bytes": b"\xc1"}, {"bytes": b"\x90"}, {"bytes": b"\x91\x92\xa4beat\x01"}],
    ids=repr,
)
async def test_what_does_not_begin_with_a_hello_is_closed(
    http: Http, message: dict[str, Any]
) -> None:
    said = await knock(http, f"Bearer {KEY}", messages=({"type": "websocket.receive"} | message,))
    assert [one["type"] for one in said][:1] == ["websocket.accept"]
    codes = [one["code"] for one in said if one["type"] == "websocket.close"]
    # An empty message says nothing yet; its peer left, and there is nobody to close.
    assert codes == ([] if message.get("bytes") == b"\x90" else [1002])
