"""The second ring of decoders: what was stored, what is configured, and what a server answers.

As `fuzz_targets.py` has it: functions of bytes that raise nothing but an EverturnError.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx2
import msgspec
import pytest
from fuzz_targets import KEY, NOW_MS, json_of, text_of

from everturn.chat import transcript
from everturn.client import config
from everturn.client.api import Api
from everturn.client.follow import Follower, stored_records
from everturn.clock import SystemClock
from everturn.errors import EverturnError, NotAllowed, NotAuthenticated
from everturn.protocol import history, lenient, nesting, sse
from everturn.protocol.records import Record
from everturn.rules import metadata
from everturn.server.services.direct import Direct
from everturn.server.services.packets import Packets
from everturn.server.services.snapshots import Snapshots
from everturn.server.settings import PREFIX, Settings
from everturn.storage.sql import schema
from everturn.testing.virtual_loop import LoopClock, run_virtual

FENCE: Final = 7
_KINDS: Final = ("set", "delete", "append", "remove", "increment", "update")


def histories(data: bytes) -> None:
    """Patches after any document, and the records they are kept in."""
    text = text_of(data)
    for value in (text, f"{FENCE}-{text}"):
        record = Record(0, 1, ((history.PATCH_HEADER, value), (history.BASE_HEADER, value)), data)
        assert history.is_patch(record)
        history.part_of(record, FENCE)
        history.base_of(record)
    good = b'{"keep":1,"messages":[{"id":"m"}],"version":1}'
    document = b'{"version":1,"messages":[{"id":"a"},{"id":"b"}]}'
    for base, patches in ((data, [good]), (document, [data, good]), (None, [good, data])):
        with suppress(EverturnError):
            found = transcript.decode(history.compose(base, patches))
            assert found is not None


def operations(data: bytes) -> None:
    """Operations on metadata: whatever the result is, it is stored whole and can be read again."""
    value, text = json_of(data), text_of(data).encode("utf-8", "replace").decode()
    several = [
        metadata.Operation(type=kind, key=key, value=value)  # type: ignore[arg-type]  # one of them
        for kind in _KINDS
        for key in ("a", text, f"$.{text}", "$.a.b")
    ]
    kept: bytes | None = data if isinstance(value, dict) else None
    for one in [*several, *reversed(several)]:
        with suppress(EverturnError):
            kept = metadata.change([one])(kept)
            assert isinstance(msgspec.json.decode(kept), dict)


def depths(data: bytes) -> None:
    """The bound on nesting agrees with a parser, wherever the bytes are JSON at all."""
    for most in (0, 1, 3, nesting.DEPTH_MAX):
        nesting.too_deep(data, most)
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        assert nesting.too_deep(data, most) is (_depth(value) > most)
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        lenient.decode(data)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return depth


def configured(data: bytes) -> None:
    """Settings from an environment, each of them in turn, and the file `everturn dev` leaves."""
    text = text_of(data).replace("\0", "")
    for field in dataclasses.fields(Settings):
        with suppress(EverturnError):
            made = Settings.from_env({f"{PREFIX}{field.name.upper()}": text})
            assert made.database
            assert made.key_type
            repr(made)
    with suppress(EverturnError):
        schema.parsed_url(text)
    with _dev_file() as path:
        path.write_bytes(data)
        for environ in ({}, {"EVERTURN_API_URL": text}, {"EVERTURN_SECRET_KEY": text}):
            with suppress(EverturnError):
                config.resolve(environ={"EVERTURN_DATA_DIR": str(path.parent), **environ})


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@contextmanager
def _dev_file() -> Iterator[Path]:
    path = Path(_folder().name) / "dev.json"
    try:
        yield path
    finally:
        path.unlink()


def answered(data: bytes) -> None:
    """A client of a server that answers anything at all, with any status, to any question."""

    async def ask() -> None:
        for status in (200, 404, 429):
            api = _api(status, {"content-type": "application/json", "x-ratelimit-reset": "1"}, data)
            for call in (
                api.retrieve_session("s"),
                api.read_records("s", "in"),
                stored_records(api, "s", "out"),
            ):
                with suppress(EverturnError):
                    await call

    run_virtual(ask)


def followed(data: bytes) -> None:
    """A reader of a server whose event stream is anything: each record once, in rising order."""

    async def follow() -> None:
        api = _api(200, {"content-type": "text/event-stream", "x-stream-version": "v2"}, data)
        last = -1
        with suppress(EverturnError):
            async with Follower(api, "s") as records:
                async for record in records:
                    assert record.seq_num > last
                    last = record.seq_num

    run_virtual(follow)


def _api(status: int, headers: dict[str, str], content: bytes) -> Api:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers, content=_once(content))

    target = config.Target("http://test", KEY, None, httpx2.MockTransport(answer))
    return Api(target, clock=LoopClock(), tries=1)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def sent(data: bytes) -> None:
    """What our server writes as an event, read as a client reads it: the same records."""
    text = text_of(data).encode("utf-8", "replace").decode()
    headers = ((text, text), ("trigger-control", "turn-complete"))
    records = [Record(3, NOW_MS, headers, b""), Record(4, NOW_MS, (), data)]
    event = sse.encode_batch(records, sent_records=2, sent_bytes=9, tail=(5, NOW_MS))
    events = sse.Decoder().feed(event)
    assert [event.event for event in events] == ["batch"]
    found, tail = sse.decode_batch(events[0].data)
    assert tail == (5, NOW_MS)
    assert found[0].headers == headers
    assert [record.seq_num for record in found] == [3, 4]
    assert found[1].body == data.decode("utf-8", "replace").encode()
    error = sse.Decoder().feed(sse.encode_error(text))
    assert len(error) == 1


def links(data: bytes) -> None:
    """What stands in the signed links and tickets that a server gives out: nobody signed this."""
    text = text_of(data)
    services: Any = SimpleNamespace(clock=SystemClock())
    direct = Direct(services, bytes(32))
    snapshots, packets = Snapshots(services, bytes(32)), Packets(services, bytes(32))
    _, ticket = direct.issue("env", "chat", "in")
    for candidate in (text, f"{text}.{ticket.partition('.')[2]}", f"{ticket}{text or '.'}"):
        with pytest.raises((NotAuthenticated, NotAllowed)):
            direct.open(candidate, text)
    for expires, signature in ((text, text), ("9" * 12, text), (text, "0" * 64)):
        for link in (snapshots, packets):
            with pytest.raises(NotAllowed):
                link.check("env", "thing", "get", expires, signature)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        histories,
        operations,
        depths,
        configured,
        answered,
        followed,
        sent,
        links,
    )
}
