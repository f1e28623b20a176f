"""What a disk may hold after a power loss: the synced bytes, and any part of the others.

`tear` puts a folder together from two: the *shadow*, which holds each file as of its last sync
(`power.c`), and the *live* folder, which holds everything that was written. A disk writes sectors,
in any order, and may have written any of them before the power failed. So each sector that
differs comes from either, by lot, and the end of a file lies anywhere between both ends. A name
that was not synced is there or not; what was not synced of a file without a synced name is zeros
where the lot says so.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

SECTOR = 512
#: Files that are written in place. All others are put in place whole, by a rename.
_IN_PLACE = (".db", "-wal")


def tear(live: Path, shadow: Path, into: Path, chance: random.Random) -> None:
    """Fill the folder `into` with one outcome of a power loss."""
    names = {p.relative_to(live) for p in live.rglob("*") if p.is_file()}
    names |= {p.relative_to(shadow) for p in shadow.rglob("*") if p.is_file()}
    whole = {p.read_bytes() for p in shadow.rglob("*") if p.is_file()}
    for name in sorted(names):
        if name.suffix == ".copying":
            continue  # the shim's own
        old, new = _bytes(shadow / name), _bytes(live / name)
        if name.suffix == ".log":
            left = new  # the processes' own logs, for whoever reads a failure
        elif name.name.endswith(_IN_PLACE):
            left = _by_sectors(old, new, chance)
        else:
            left = _either(old, new, chance, whole)
        if left is not None:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(left)
    for private in into.rglob("*"):
        if private.is_file():
            private.chmod(0o600)


def replace_torn(live: Path, shadow: Path, chance: random.Random) -> None:
    """Let a power loss happen to `live`. Everything that wrote to it must be dead."""
    torn = live.with_name(f"{live.name}.torn")
    tear(live, shadow, torn, chance)
    shutil.rmtree(live)
    torn.rename(live)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _by_sectors(old: bytes | None, new: bytes | None, chance: random.Random) -> bytes | None:
    if old is None and new is None:
        return None
    if old is None and chance.random() < 0.5:
        return None  # its name was never synced
    if new is None and chance.random() < 0.5:
        return None  # its deletion was not synced either, and happened all the same
    if new is None:
        return old
    synced = old or b""
    # By stretches and not only by single sectors, so that long pieces survive whole as well.
    share = chance.choice((0.02, 0.5, 0.98))
    size = chance.choice((len(synced), len(new), chance.randint(*sorted((len(synced), len(new))))))
    torn = bytearray()
    for at in range(0, size, SECTOR):
        source = new if chance.random() < share else synced
        torn += source[at : at + SECTOR].ljust(SECTOR, b"\0")
    return bytes(torn[:size])


def _either(
    old: bytes | None, new: bytes | None, chance: random.Random, whole: set[bytes]
) -> bytes | None:
    if old == new or chance.random() < 0.5:
        return old
    if new is None or new in whole:
        return new  # synced under another name before it was renamed
    return new[: chance.randrange(len(new) + 1)]
