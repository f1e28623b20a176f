"""How far `.out` may be trimmed after a turn (chat-agent §2.15, rulings §1.17, promise P-9).

Each turn-complete asks for a trim to the one before it, so that a reader who is one turn behind
still finds where it was. The request is lowered to what a stored snapshot covers: a snapshot that
failed to be written keeps the records that would otherwise be the only copy of a turn.
"""

from __future__ import annotations


class TrimChain:
    """The trim slot of a run: the seq_num of the previous turn-complete.

    `bounded` is False where the author keeps history himself (hydrating agents); then the word
    of the loop is enough and no snapshot is asked for.
    """

    __slots__ = ("_bounded", "_covered", "_slot", "_trimmed")

    def __init__(self, slot: int | None = None, *, bounded: bool = True) -> None:
        """`slot` is `lastOutEventId` of the snapshot a boot read, which is covered by it."""
        self._slot = slot
        self._covered = slot
        self._trimmed = -1
        self._bounded = bounded

    @property
    def slot(self) -> int | None:
        return self._slot

    def stored(self, last_out: int | None) -> None:
        """A snapshot that covers the stream up to turn-complete `last_out` is durable."""
        if last_out is not None and (self._covered is None or last_out > self._covered):
            self._covered = last_out

    def advance(self, turn_complete: int) -> int | None:
        """Move the slot to a new turn-complete. Returns what to trim to, None for nothing."""
        target, self._slot = self._slot, turn_complete
        if target is None:
            return None
        if self._bounded:
            if self._covered is None:
                return None
            target = min(target, self._covered)
        if target <= self._trimmed:
            return None
        self._trimmed = target
        return target
