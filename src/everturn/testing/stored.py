"""Reading back what a running server has stored, for judges of what happened to it."""

from __future__ import annotations

from typing import Final

from everturn.chat import transcript
from everturn.chat.transcript import Snapshot
from everturn.client.api import Api
from everturn.errors import NotFound, SessionNotFound
from everturn.protocol import paths, sse
from everturn.protocol.records import Io, Record

#: A channel that holds nothing says so by its silence.
_SILENCE_S: Final = 1


async def read_stored(api: Api, session: str, io: Io) -> list[Record]:
    """Every record ever stored on a channel, trimmed ones included, without waiting for more.

    Needs a secret key (rulings §1.17). A session that does not exist has no records. Raises
    ApiError when the server does not answer.
    """
    path = paths.fill(paths.CHANNEL, session=session, io=io) + "?includeTrimmed=true"
    try:
        response = await api.open_events(path, after=None, timeout_s=_SILENCE_S)
    except SessionNotFound:
        return []
    found: list[Record] = []
    decoder = sse.Decoder()
    try:
        async for piece in response.aiter_raw():
            for event in decoder.feed(piece):
                if event.event != "batch":
                    continue
                records, tail = sse.decode_batch(event.data)
                found.extend(records)
                if tail is not None and found and found[-1].seq_num + 1 >= tail[0]:
                    return found
    finally:
        await response.aclose()
    return found


async def read_history(api: Api, session: str) -> Snapshot | None:
    """The stored history of a chat; None when there is none.

    Needs a secret key. Raises ApiError when the server does not answer.
    """
    try:
        data, _ = await api.download(await api.history_link(session))
    except NotFound:
        return None
    return transcript.decode(data)
