"""The stored histories of sessions: one object each and what was added to it since.

`protocol/history.py` has the form of what is stored. Every step of a rewrite is safe to die after:

1. The new document is stored under a name nobody used before. A crash here leaves an object that
   nothing names; it is never read.
2. A record says that the document is there. This is the moment at which the history changes, and
   the fence is checked in it: a run that lost its session writes an object, and no more.
3. Objects other than the newest are deleted, and the records before it trimmed. A reader that was
   about to read one looks again; a crash before the trim leaves the records, by which the next
   rewrite finds what is left. Which is newest the records say, and not who comes last: a rewrite
   that is repeated late finds its record stored already, and a newer one behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from everturn.errors import CursorTrimmed, NotFound, TooLarge
from everturn.protocol import history
from everturn.protocol.records import ChannelName, NewRecord, Record, trim_record
from everturn.rules import limits

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session

#: How often a reader looks again when a document went while it read: each time another one came.
_LOOKS: Final = 5


class Stored(NamedTuple):
    """A history as it is stored."""

    #: The document, composed; None when nothing was stored yet.
    data: bytes | None
    #: Bytes of patches behind the newest document: how much a rewrite would spare.
    patched_bytes: int
    #: The part number that the asking fence may use next.
    next_part: int


class Histories:
    """Reads, extends and rewrites the histories of sessions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def read(self, session: Session, *, fence: int | None = None) -> Stored:
        """The history of a session.

        With a fence, for the run that goes on from it: nobody before that run writes any more.
        """
        channel = channel_of(session)
        if fence is not None:
            await self._services.streams.raise_fence(channel, fence)
        for _ in range(_LOOKS):
            records = await self._records(channel)
            name = _base(records)
            base = None if name is None else await self._services.objects.get(name)
            if name is not None and base is None:
                continue
            patches = [record.body for record in _after_base(records)]
            return Stored(
                history.compose(base, patches), sum(map(len, patches)), _next_part(records, fence)
            )
        raise NotFound(
            f"the history of session {session.id} names an object that is not there: {name}"
        )

    async def patch(self, session: Session, data: bytes, *, fence: int, part: int) -> None:
        """Add a patch, as that part of the fence; durable before it returns.

        Raises Fenced, and TooLarge for a patch that is no record: rewrite then.
        """
        record = NewRecord(data, history.headers(history.PATCH_HEADER, fence, part))
        await self._services.streams.append(
            channel_of(session), [record], fence=fence, first_part=part
        )

    async def rewrite(
        self, session: Session, data: bytes, *, fence: int | None = None, part: int | None = None
    ) -> None:
        """Store the document anew, as that part of the fence; durable before it returns.

        Raises Fenced, and TooLarge past 64 MiB.
        """
        if len(data) > limits.SNAPSHOT_BODY_BYTES_MAX:
            raise TooLarge(
                f"the snapshot is {len(data)} bytes, at most {limits.SNAPSHOT_BODY_BYTES_MAX}",
                what="snapshot",
                bytes=len(data),
                bytes_max=limits.SNAPSHOT_BODY_BYTES_MAX,
            )
        streams, objects, channel = (
            self._services.streams,
            self._services.objects,
            channel_of(session),
        )
        name = self._object_name(session, fence, part)
        await objects.put(name, data)
        record = NewRecord(name.encode(), history.headers(history.BASE_HEADER, fence, part))
        await streams.append(channel, [record], fence=fence, first_part=part)
        await self._keep_newest(channel, name)

    async def _keep_newest(self, channel: ChannelName, written: str) -> None:
        """Forget every document but the newest, and `written` too when that is another."""
        records = await self._records(channel)
        named = [(record.seq_num, name) for record in records if (name := history.base_of(record))]
        start, newest = named[-1]
        for name in {written, *(name for _, name in named)} - {newest}:
            await self._services.objects.delete(name)
        if records[0].seq_num < start:
            await self._services.streams.append(channel, [trim_record(start)])

    def _object_name(self, session: Session, fence: int | None, part: int | None) -> str:
        writer = self._services.ids.part() if fence is None else f"{fence}-{part}"
        return f"{session.environment_id}/sessions/{session.id}/history-{writer}.json"

    async def _records(self, channel: ChannelName) -> list[Record]:
        found: list[Record] = []
        after: int | None = None
        while page := await self._page(channel, after, limits.READ_RECORDS_MAX):
            found.extend(page)
            after = page[-1].seq_num
        return found

    async def _page(self, channel: ChannelName, after: int | None, count: int) -> list[Record]:
        read = self._services.streams.read
        while True:
            try:
                return list(await read(channel, after=after, records_max=count))
            except CursorTrimmed as trimmed:
                # Rewritten while it was read: what is left begins with the new document.
                after = trimmed.first_seq_num - 1


def channel_of(session: Session) -> ChannelName:
    """The channel that holds a session's patches; no client can name it."""
    return ChannelName(session.environment_id, session.key, "history")


def _base(records: list[Record]) -> str | None:
    """The newest document that records name."""
    return next((name for r in reversed(records) if (name := history.base_of(r))), None)


def _after_base(records: list[Record]) -> list[Record]:
    """The patches behind the newest document."""
    start = 0
    for index, record in enumerate(records):
        if history.base_of(record) is not None:
            start = index + 1
    return [record for record in records[start:] if history.is_patch(record)]


def _next_part(records: list[Record], fence: int | None) -> int:
    if fence is None:
        return 0
    parts = [part for r in records if (part := history.part_of(r, fence)) is not None]
    return max(parts, default=-1) + 1
