"""The in-process transport: streams stream, senders wait, connections break."""

from __future__ import annotations

from typing import Any

import anyio
import httpx2
import pytest

from everturn.testing.asgi import AsgiTransport

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_pieces_arrive_while_the_application_still_runs() -> None:
    go_on = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(piece(b"first"))
        await go_on.wait()
        await send(piece(b"last", more=False))

    async with (
        httpx2.AsyncClient(transport=AsgiTransport(app)) as client,
        client.stream("GET", "http://test/") as response,
    ):
        assert response.headers["x-a"] == "b"
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        go_on.set()
        assert [rest async for rest in pieces] == [b"last"]


async def test_the_application_sees_the_request_with_its_raw_path() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, body=(await receive())["body"])
        await send(START)
        await send(piece(b"", more=False))

    async with AsgiTransport(app) as transport, httpx2.AsyncClient(transport=transport) as client:
        await client.post("http://test/a%2Fb?x=%2F", content=b"body")
    assert (seen["raw_path"], seen["query_string"]) == (b"/a%2Fb", b"x=%2F")
    assert (seen["method"], seen["body"]) == ("POST", b"body")


async def test_a_sender_waits_for_its_reader() -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(100):
            await send(piece(b"x"))
            sent.append(number)

    async with (
        httpx2.AsyncClient(transport=AsgiTransport(app)) as client,
        client.stream("GET", "http://test/") as response,
    ):
        await anext(response.aiter_raw())
        await anyio.wait_all_tasks_blocked()
        assert len(sent) <= 2


async def test_leaving_early_is_a_disconnect_for_the_application() -> None:
    told = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(piece(b"x"))
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError, match="disconnected"):
            await send(piece(b"y"))
        told.set()

    async with AsgiTransport(app) as transport, httpx2.AsyncClient(transport=transport) as client:
        async with client.stream("GET", "http://test/") as response:
            await anext(response.aiter_raw())
        with anyio.fail_after(5):
            await told.wait()


async def test_a_cut_and_a_failing_application_break_the_connection() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(piece(b"x"))
        await anyio.sleep_forever()

    async with (
        AsgiTransport(endless) as transport,
        httpx2.AsyncClient(transport=transport) as client,
        client.stream("GET", "http://test/") as response,
    ):
        pieces = response.aiter_raw()
        await anext(pieces)
        assert transport.cut() == 1
        with pytest.raises(httpx2.ReadError):
            await anext(pieces)

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("its own trouble")

    async with AsgiTransport(failing) as transport, httpx2.AsyncClient(transport=transport) as c:
        with pytest.raises(httpx2.RemoteProtocolError, match="its own trouble"):
            await c.get("http://test/")


async def test_leaving_the_block_ends_requests_in_progress() -> None:
    ended = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
            await send(piece(b"x"))
            await anyio.sleep_forever()
        finally:
            ended.set()

    client = httpx2.AsyncClient(transport=AsgiTransport(app))
    async with client:
        request = client.build_request("GET", "http://test/")
        response = await client.send(request, stream=True)
        pieces = response.aiter_raw()
        await anext(pieces)
    assert ended.is_set()
    with pytest.raises(httpx2.RemoteProtocolError):
        await anext(pieces)
