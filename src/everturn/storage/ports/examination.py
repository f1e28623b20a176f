"""What a read-only look at a store finds: facts for `everturn doctor`, the same for every engine.

An examination changes nothing and may be made while a server has the store open. It says what is
there; what that means, and what to do about it, is decided in `server/doctor.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from everturn.protocol.records import ChannelName
from everturn.storage.ports.rows import ApiKey, Worker

#: Damage is named this many times; after that it is counted only.
NAMED_MAX: Final = 10


class StreamFindings(NamedTuple):
    """A stream store.

    * `damage`: places whose bytes fail their check, at most NAMED_MAX; `damaged` counts them all.
    * `records`: those that were read and are whole.
    * `tails`: the number the next record of each channel will get.
    * `newest_ms`: the timestamp of the newest record, 0 for an empty store.
    * `in_use`: another process, a server, has the store open; `holder` is its pid where the
      system tells.
    """

    damage: tuple[str, ...]
    damaged: int
    records: int
    tails: dict[ChannelName, int]
    newest_ms: int
    in_use: bool
    holder: int | None = None


class Committed(NamedTuple):
    """How far a session has decided its `in` channel: `channel` holds at least `seq_num`."""

    channel: ChannelName
    seq_num: int


class StateFindings(NamedTuple):
    """A state store.

    * `schema`: current, behind, ahead (of a newer release) or empty. Only with a current one are
      the other members filled in.
    * `lost_runs`: sessions whose current run is not there. `lost_sessions`: runs whose session is
      not there. Both are 0 in a store that is whole.
    * `unchecked`: sessions whose last run ended and that a sweep has yet to look at.
    * `owners`: environment and key of every session, which is what channels are named by.
    """

    schema: str
    damage: tuple[str, ...] = ()
    sessions: int = 0
    lost_runs: int = 0
    lost_sessions: int = 0
    unchecked: int = 0
    newest_ms: int = 0
    keys: tuple[ApiKey, ...] = ()
    workers: tuple[Worker, ...] = ()
    committed: tuple[Committed, ...] = ()
    owners: frozenset[tuple[str, str]] = frozenset()
