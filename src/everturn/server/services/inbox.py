"""Appends from clients: keep the record, then see that some run will read it.

The order is the whole point (rulings §1.1): the record is durable before anything else happens,
so that a crash right after it leaves a record without a run, which a sweep finds, and never a run
without its record. A failed run check does not fail the append, because the record is kept; the
sweep repairs it.

What is stored is the posted text as a JSON *string* inside the envelope, not the JSON it may hold
(wire-protocol §6.2), so quotes and backslashes count twice towards the size limit (§6.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everturn.errors import InvalidRequest, SessionClosedError, TooLarge
from everturn.protocol import nesting
from everturn.protocol.records import ChannelName, Io, NewRecord, input_body, metered_bytes
from everturn.rules import limits

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Session


class Inbox:
    """What comes in from clients."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def check_open(self, session: Session) -> None:
        """Raise SessionClosedError for a closed session, InvalidRequest for an expired one."""
        if session.closed_at_ms is not None:
            raise SessionClosedError(
                "Cannot append to a closed session", reason=session.closed_reason
            )
        if session.expires_at_ms is not None and (
            session.expires_at_ms <= self._services.clock.now_ms()
        ):
            raise InvalidRequest("Cannot append to an expired session")

    async def append(self, session: Session, io: Io, body: bytes, part_id: str | None) -> int:
        """Store one posted text and answer its number, which a repeat of the part id gets again.

        Raises:
            SessionClosedError, InvalidRequest: the session takes no input, the part id is longer
                than limits.PART_ID_CHARS_MAX, or the chunk nests too deep.
            TooLarge: the metered record is over limits.RECORD_BYTES_MAX.
        """
        services = self._services
        self.check_open(session)
        part = part_id or services.ids.part(7)
        if len(part) > limits.PART_ID_CHARS_MAX:
            raise InvalidRequest(
                f"X-Part-Id has {len(part)} characters, at most {limits.PART_ID_CHARS_MAX}"
            )
        # Whoever reads it would take such a message for none, and nobody would ever answer it. Texts
        # that are no chunks are their reader's business.
        if body.lstrip()[:1] == b"{" and nesting.too_deep(body):
            raise InvalidRequest(nesting.TOO_DEEP)
        record = NewRecord(input_body(body.decode("utf-8", "replace"), part), (), part)
        size = metered_bytes((), record.body)
        if size > limits.RECORD_BYTES_MAX:
            raise self.too_large(size)
        channel = ChannelName(session.environment_id, session.key, io)
        if io == "out":
            appended = await services.outbox.append_guest(channel, [record])
        else:
            appended = await services.streams.append(channel, [record])
            await services.dispatch.ensure_run(session)
        return appended.seq_nums[0]

    @staticmethod
    def too_large(size: int) -> TooLarge:
        """The refusal of a record whose metered size is `size` bytes."""
        return TooLarge(
            f"Record metered size {size} bytes exceeds the record limit of "
            f"{limits.RECORD_BYTES_MAX} bytes",
            what="record",
            bytes=size,
            bytes_max=limits.RECORD_BYTES_MAX,
        )
