"""The stored history of a session: a document, and the patches by which it grows.

The document is the snapshot of the wire protocol (§4.9): `{version: 1, savedAt, messages,
lastOutEventId?, lastInEventId?}`. Writing all of it after each turn would make a turn cost more
the longer the conversation is, so a turn stores a patch instead: what of the messages stays, what
follows it, and the document's other members as they are now.

    {"keep": 12, "messages": [<new>, <new>], "savedAt": …, "lastOutEventId": …, …}

Patches are records of a channel of the session, `history`, behind the fence of its run: the same
single writer that refuses a zombie's answer refuses its history. When they outweigh the document,
it is written anew, to an object of its own, and a record names that object; what came before it
is trimmed. So reading takes one object and what follows it, and writing, over the life of a
conversation, twice what was said in it.

Messages are passed on as they are, byte for byte: nobody here looks inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from everturn.errors import ProtocolError
from everturn.protocol.records import Headers, Record

VERSION: Final = 1
#: Marks the records of the channel; its value is `<fence>-<part>`, or empty for a guest's.
PATCH_HEADER: Final = "history-patch"
BASE_HEADER: Final = "history-base"

_Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(_Fields)
_items = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def headers(kind: str, fence: int | None, part: int | None) -> Headers:
    """The headers of a record of the channel."""
    return ((kind, "" if fence is None else f"{fence}-{part}"),)


def part_of(record: Record, fence: int) -> int | None:
    """The number of a record among the parts of a fence; None when it is of another writer."""
    for _, value in record.headers:
        writer, dash, part = value.partition("-")
        if dash and writer == str(fence) and part.isascii() and part.isdigit() and len(part) < 19:
            return int(part)
    return None


def base_of(record: Record) -> str | None:
    """The name of the object that a record says the document is in; None for other records."""
    if any(name == BASE_HEADER for name, _ in record.headers):
        return record.body.decode("utf-8", "replace")
    return None


def is_patch(record: Record) -> bool:
    return any(name == PATCH_HEADER for name, _ in record.headers)


def patch(keep: int, document: dict[str, Any]) -> dict[str, Any]:
    """A patch: the first `keep` messages stay, those of `document` follow, and its members count."""
    return {"keep": keep, **document}


def compose(base: bytes | None, patches: Iterable[bytes]) -> bytes | None:
    """The document after `patches`, oldest first. What is no document counts as an empty one.

    Raises ProtocolError for a patch that is none.
    """
    patches = list(patches)
    if not patches:
        return base
    messages = _messages(base) if base is not None else []
    head: _Fields = {}
    for data in patches:
        try:
            head = _fields.decode(data)
            keep = msgspec.json.decode(head.pop("keep", msgspec.Raw(b"null")), type=int)
            added = _items.decode(head.pop("messages", msgspec.Raw(b"null")))
        except _MALFORMED as error:
            raise ProtocolError(f"not a patch of a history: {error}") from error
        messages[max(0, keep) :] = added
    return _encode({**head, "messages": messages})


def _messages(document: bytes) -> list[msgspec.Raw]:
    try:
        fields = _fields.decode(document)
        if msgspec.json.decode(fields.get("version", b"null")) != VERSION:
            return []
        return _items.decode(fields.get("messages", b"null"))
    except _MALFORMED:
        return []
