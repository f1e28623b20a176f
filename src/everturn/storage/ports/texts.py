"""What may stand in a text of the state: everything but NUL.

A value (a payload, an output, metadata, a config, an error) is kept as bytes, byte for byte. What
names or finds something (an id, a key, a tag, a queue) is kept as text, and PostgreSQL has no NUL
in a text. So no engine takes one there: the same call has the same answer wherever it is made.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from everturn.errors import InvalidRequest


def check_texts(**members: str | Iterable[str] | None) -> None:
    """Raise InvalidRequest for a text that holds a NUL, naming its member."""
    for name, value in members.items():
        texts = () if value is None else (value,) if isinstance(value, str) else value
        if any("\0" in text for text in texts):
            raise InvalidRequest(f"{name} holds a NUL character (U+0000)", member=name)


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """A row to be stored. Making one raises InvalidRequest for a text that holds a NUL."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is str or type(value) is tuple:
                check_texts(**{name: value})
