"""The cursor of a reader that goes on where it stopped writing (wire-protocol §7.3).

A backend with a client of 4.5 writes the first step of an answer itself (`chat.headStart`), tells
the agent, and reads on after what its writer called its end. That is one past the last record it
wrote. While nothing else is there, a cursor past the tail is clamped and all is well. But between
the word to the agent and the read lie two requests, and an agent that is quick has then answered:
the record that has the number is the agent's first, often its turn-complete. Skipped, it is missed
for good, and whoever asked waits until the read times out.

So for that client, and only for a moment, a cursor at the seam between a guest's data and what a
run wrote after it means the guest's last record. A reader that has really seen the run's first
record, which no writer has, would within that moment get it once more. Browsers do not say which
client they are and are never meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from everturn.protocol.records import ChannelName
    from everturn.storage.ports.streams import StreamStore

#: Clients whose writers count one too many; 4.8.3 does not.
_VERSIONS: Final = "4.5."
#: How long after the run's record. Between a writer's end and its read lie two requests.
RECENT_MS: Final = 10_000


async def cursor_meant(
    streams: StreamStore,
    channel: ChannelName,
    cursor: int | None,
    *,
    version: str | None,
    now_ms: int,
) -> int | None:
    """The cursor a reader meant.

    Args:
        cursor: the one it sent, None without one.
        version: its `trigger-version` header.
    """
    if cursor is None or channel.io != "out" or not (version or "").startswith(_VERSIONS):
        return cursor
    at_seam = await streams.read_back(channel, before=cursor + 1, records_max=2)
    if len(at_seam) < 2:
        return cursor
    first_of_run, last_of_guest = at_seam
    is_seam = first_of_run.fence > 0 and last_of_guest.fence == 0 and last_of_guest.is_data
    if not is_seam or first_of_run.seq_num != cursor:
        return cursor
    is_recent = now_ms - first_of_run.timestamp_ms < RECENT_MS
    return last_of_guest.seq_num if is_recent else cursor
