"""The part of the state port that forgets: what is over, and what nobody can ask for any more.

Forgetting is slow, repeated and never urgent. Each verb takes a bounded bite and is harmless when
repeated. A row is kept while something alive could still need it, whatever its age:

* a run: its session's current one; one whose parent is not final; one that a suspended run waits
  for, its child or not; one that an idempotency key or a one-time-use token, whose time is not
  over, finds
* a wait token: one that is not completed; one that a suspended run waits for; one that its key finds
* a batch: one that has runs left, or that its key finds
* a packet: one that is the payload of a run
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from everturn.storage.ports.rows import Run


class PacketName(NamedTuple):
    """A packet as its client named it."""

    environment_id: str
    name: str


class RetentionStore(Protocol):
    """Forgets rows. Any call may raise Unavailable."""

    async def take_chore(self, name: str, *, now_ms: int, every_ms: int) -> bool:
        """Whether the caller is the one to do a chore now. Of several servers one gets True, and
        nobody does again for `every_ms`. A time further ahead than that was written before the
        clock was set back, and counts for nothing."""
        ...

    async def forgettable_runs(
        self, *, finished_before_ms: int, now_ms: int, limit: int
    ) -> Sequence[Run]:
        """Final runs that ended by then and that nothing alive needs, oldest first."""
        ...

    async def forget_runs(self, run_ids: Sequence[str]) -> int:
        """Delete final runs with their tags, keys and journals; how many there were."""
        ...

    async def forget_keys(self, *, now_ms: int, limit: int) -> int:
        """Delete keys of runs whose time is over; how many."""
        ...

    async def forget_waitpoints(self, *, completed_before_ms: int, now_ms: int, limit: int) -> int:
        """Delete wait tokens that were completed by then and that nothing needs; how many."""
        ...

    async def forget_batches(self, *, created_before_ms: int, now_ms: int, limit: int) -> int:
        """Delete batches made by then whose runs are forgotten, sealed or not; how many."""
        ...

    async def note_packet(self, environment_id: str, name: str, *, now_ms: int) -> None:
        """A packet of this name is about to be stored, again perhaps: its age counts from now."""
        ...

    async def forgettable_packets(
        self, *, noted_before_ms: int, limit: int
    ) -> Sequence[PacketName]:
        """Packets noted by then that are the payload of no run, oldest first."""
        ...

    async def forget_packet(self, packet: PacketName, *, noted_before_ms: int) -> None:
        """Delete a packet's note, unless it was noted again since."""
        ...
