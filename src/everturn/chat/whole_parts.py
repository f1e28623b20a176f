"""Parts that one chunk builds whole: files, sources, and what providers add of their own.

A table instead of a method each: the reducer appends what it says, and whoever turns a message
back into chunks finds here which parts are their own chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from everturn.chat.open_parts import text_field
from everturn.errors import UIMessageStreamError

Json = dict[str, Any]


class WholePart(NamedTuple):
    """The fields of one such part.

    Attributes:
        text: strings it cannot do without.
        lists: lists it cannot do without.
        kept: taken over when the chunk names them, `null` too.
        given: taken over unless they are `null`.
    """

    text: tuple[str, ...]
    lists: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


_FILE: Final = WholePart(("mediaType", "url"), given=("providerMetadata",))

#: By type, which is that of the chunk and of the part. The last three came with `ai` 7.
WHOLE_PARTS: Final[Mapping[str, WholePart]] = {
    "file": _FILE,
    "source-url": WholePart(("sourceId", "url"), kept=("title", "providerMetadata")),
    "source-document": WholePart(
        ("sourceId", "mediaType", "title"), kept=("filename", "providerMetadata")
    ),
    "reasoning-file": _FILE,
    "custom": WholePart(("kind",), kept=("providerMetadata",)),
    "steering-message": WholePart(("id",), lists=("parts",)),
}


def whole_part(chunk: Mapping[str, Any]) -> Json:
    """The part a chunk of one of these types builds.

    Raises UIMessageStreamError for a chunk that lacks what the part cannot do without.
    """
    kind = chunk["type"]
    shape = WHOLE_PARTS[kind]
    part: Json = {"type": kind, **{field: text_field(chunk, field) for field in shape.text}}
    for field in shape.lists:
        if not isinstance(chunk.get(field), list):
            raise UIMessageStreamError(f"a {kind!r} chunk needs a list `{field}`", chunk_type=kind)
        part[field] = chunk[field]
    part.update((field, chunk[field]) for field in shape.kept if field in chunk)
    part.update((field, chunk[field]) for field in shape.given if chunk.get(field) is not None)
    return part
