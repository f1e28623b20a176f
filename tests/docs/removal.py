"""What a removal is: one exact piece of text of the product, and what replaces it."""

from __future__ import annotations

from typing import Final, NamedTuple

CHAT: Final = "src/everturn/chat"


class Removal(NamedTuple):
    """Behaviour that a clause promises, taken away.

    Attributes:
        clause: whose tests must fail.
        name: what the product does then.
        file: from the root of the tree.
        text: found in the file exactly once.
        replacement: what stands there instead.
    """

    clause: int
    name: str
    file: str
    text: str
    replacement: str
