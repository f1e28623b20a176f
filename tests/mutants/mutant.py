"""What a mutant is: one deliberate break of one guarantee, and the tests that must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One exact piece of text replaced in one file.

    `tests` is what must fail then, as arguments of pytest: the narrowest choice that shows the
    promise broken, so that a run of all mutants stays affordable. A mutant whose text is not found
    any more, or stands there twice, is an error: whoever moves the code moves the mutant too.
    """

    #: A sentence that says what is broken.
    name: str
    #: The promise of `ARCHITECTURE.md` that does not hold then.
    promise: str
    #: From the root of the tree.
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
