"""The lines of a request's body, however it is cut on its way (`routes/calls.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from everturn.errors import TooLarge
from everturn.server.routes.calls import Call, Disconnected

pytestmark = pytest.mark.anyio


async def lines_of(pieces: Sequence[bytes], *, cap: int = 100, whole: bool = True) -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    events.append({"type": "http.request"} if whole else {"type": "http.disconnect"})
    coming = iter(events)

    async def receive() -> Any:
        return next(coming)

    call = Call(cast("Any", None), {}, receive, {})
    return [line async for line in call.lines(cap)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_lines_are_the_same_however_the_body_is_cut(size: int) -> None:
    body = b"one\n\ntwo and more\n  \nthree"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert await lines_of(pieces) == [b"one", b"two and more", b"three"]


async def test_a_line_at_the_cap_passes_and_one_byte_more_does_not() -> None:
    assert await lines_of([b"x" * 60, b"x" * 40, b"\ny"]) == [b"x" * 100, b"y"]
    with pytest.raises(TooLarge):
        await lines_of([b"x" * 60, b"x" * 41, b"\ny"])
    with pytest.raises(TooLarge):
        await lines_of([b"x" * 60, b"x" * 41 + b"\n"])


async def test_a_body_that_never_completes_has_no_last_line() -> None:
    with pytest.raises(Disconnected):
        await lines_of([b"one\ntw"], whole=False)


async def test_a_long_line_in_many_pieces_costs_what_its_bytes_cost() -> None:
    """Joined at each piece, these 4 MiB would be copied 1,024 times over: eight seconds."""
    pieces = [b"x" * 2048] * 2048
    began = time.process_time()
    (line,) = await lines_of(pieces, cap=1 << 23)
    assert len(line) == 1 << 22
    assert time.process_time() - began < 1
