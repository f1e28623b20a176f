"""JSON as other programs write it: with half characters in it.

JavaScript counts text in UTF-16 units. A text that was cut between the two units of an emoji, or a
stream of such pieces, is written as an escape that stands for no character (a lone surrogate), and
strict parsers refuse the whole document for it: a message would be lost, a history forgotten. Here
the half is replaced by U+FFFD, as every browser shows it, and the rest is kept.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

_decode: Final = msgspec.json.decode
_SURROGATE: Final = "\\ud"


def decode(data: bytes | str) -> Any:
    """The value of JSON text.

    Raises:
        msgspec.DecodeError: it is none.
        UnicodeDecodeError, RecursionError: it is no UTF-8, or nested too deep.
    """
    try:
        return _decode(data)
    except msgspec.DecodeError:
        text = data if isinstance(data, str) else data.decode()
        if _SURROGATE not in text.lower():
            raise
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if value is None:
            raise
        return _decode(whole(json.dumps(value, ensure_ascii=False)))


def encode(value: Any) -> bytes:
    """JSON text of plain data whose texts hold half characters, which are replaced.

    Raises ValueError, TypeError or RecursionError for what JSON has no form for.
    """
    return whole(json.dumps(value, ensure_ascii=False, allow_nan=False)).encode()


def whole(text: str) -> str:
    """Text without half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
