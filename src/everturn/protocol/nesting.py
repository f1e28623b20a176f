"""How deep JSON may nest: the same everywhere, whoever reads it.

JSON itself has no bound. Parsers have one each, and the one of Python is what the interpreter's
stack happens to have left: a value that was read where a request comes in may be too deep where
a list is made of it, or in the worker, or in a client, and what cannot be read there any more
takes along everything that is read with it. So all that comes from outside is held to one bound at
the door, far above what anybody means and far below what any reader can take.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

#: Arrays and objects around the innermost value. Readers downstream give up at 200 (pydantic), or
#: at a thousand frames of the interpreter with several for each level.
DEPTH_MAX: Final = 128
TOO_DEEP: Final = f"JSON may nest at most {DEPTH_MAX} deep"

#: Levels that are looked at by taking out empty pairs, each in one pass over what is left.
_PASSES: Final = 12
_OTHERS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
#: A text, whole or cut off by the end. A quote always matches, so reading is linear in any bytes.
_TEXT: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
#: No text of all holds a bracket, as in nearly all JSON: then each bracket is one of the nesting.
_PLAIN: Final = re.compile(rb'(?:[^"]*+"(?:[^"\\\[\]{}]++|\\.)*+")*+[^"]*+', re.DOTALL)
_STEP: Final = [0] * 256
for _byte in b"[{":
    _STEP[_byte] = 1
for _byte in b"]}":
    _STEP[_byte] = -1


def too_deep(text: bytes | str, most: int = DEPTH_MAX) -> bool:
    """Whether JSON text nests deeper than `most`. Of what is no JSON either answer may come.

    Takes no more of the stack for deep text than for flat, and time in proportion to the text: next
    to none where it has fewer brackets than levels are allowed.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    if not _PLAIN.fullmatch(data):
        data = _TEXT.sub(b"", data)
    brackets = data.translate(None, _OTHERS)
    # A pass takes out one level, or two where a list is all that an object holds.
    if _vanishes(brackets, min(most // 2, _PASSES)):
        return False
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > most


def _vanishes(brackets: bytes, passes: int) -> bool:
    """Whether nothing is left when the innermost pairs are taken out so many times, as of nearly all
    JSON: counting in Python what is left would take longer than parsing it did."""
    for _ in range(passes):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(brackets) in (0, before):
            break
    return not brackets
