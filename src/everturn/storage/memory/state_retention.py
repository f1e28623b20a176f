"""Forgetting in memory."""

from __future__ import annotations

from collections.abc import Sequence

from everturn.rules.run_states import FINAL, RunState
from everturn.storage.memory.state_tables import Tables
from everturn.storage.ports.retention import PacketName
from everturn.storage.ports.rows import Run

#: The type of a payload that is the name of a packet.
_STORED = "application/store"


class Retention(Tables):
    """What is over, and what nobody can ask for any more."""

    async def take_chore(self, name: str, *, now_ms: int, every_ms: int) -> bool:
        self._check_open()
        if now_ms < self._chores.get(name, now_ms) <= now_ms + every_ms:
            return False
        self._chores[name] = now_ms + every_ms
        return True

    async def forgettable_runs(
        self, *, finished_before_ms: int, now_ms: int, limit: int
    ) -> Sequence[Run]:
        self._check_open()
        kept = {s.current_run_id for s in self._sessions.values()}
        kept |= {
            run.wait.ref
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None and run.wait.kind == "run"
        }
        kept |= {run_id for run_id, expires in self._run_keys.values() if (expires or 0) > now_ms}
        found = [
            run
            for run in self._in_states(*FINAL)
            if run.finished_at_ms is not None
            and run.finished_at_ms <= finished_before_ms
            and run.id not in kept
            and self._is_over(run.parent_run_id)
        ]
        found.sort(key=lambda run: (run.finished_at_ms or 0, run.id))
        return tuple(found[:limit])

    def _is_over(self, run_id: str | None) -> bool:
        run = self._runs.get(run_id or "")
        return run is None or run.state in FINAL

    async def forget_runs(self, run_ids: Sequence[str]) -> int:
        self._check_open()
        gone = [run_id for run_id in run_ids if run_id in self._runs and self._is_over(run_id)]
        for run_id in gone:
            run = self._runs.pop(run_id)
            del self._by_state[run.state][run_id]
            self._since.pop(run_id, None)
            self._children.pop(run_id, None)
            self._journals.pop(run_id, None)
            siblings = self._children.get(run.parent_run_id or "")
            if siblings is not None:
                siblings.remove(run_id)
        self._run_keys = {
            key: held for key, held in self._run_keys.items() if held[0] not in set(gone)
        }
        return len(gone)

    async def forget_keys(self, *, now_ms: int, limit: int) -> int:
        self._check_open()
        over = [
            key
            for key, (_, expires_ms) in self._run_keys.items()
            if expires_ms is not None and expires_ms <= now_ms
        ][:limit]
        for key in over:
            del self._run_keys[key]
        return len(over)

    async def forget_waitpoints(self, *, completed_before_ms: int, now_ms: int, limit: int) -> int:
        self._check_open()
        awaited = {
            run.wait.ref
            for run in self._in_states(RunState.SUSPENDED)
            if run.wait is not None and run.wait.kind == "token"
        }
        over = [
            row.id
            for row in self._waitpoints.values()
            if row.completed_at_ms is not None
            and row.completed_at_ms <= completed_before_ms
            and (row.idempotency_expires_ms or 0) <= now_ms
            and row.id not in awaited
        ][:limit]
        for waitpoint_id in over:
            del self._waitpoints[waitpoint_id]
        self._waitpoint_keys = {
            key: held for key, held in self._waitpoint_keys.items() if held not in set(over)
        }
        return len(over)

    async def forget_batches(self, *, created_before_ms: int, now_ms: int, limit: int) -> int:
        self._check_open()
        over = [
            batch.id
            for batch in self._batches.values()
            if batch.created_at_ms <= created_before_ms
            and (batch.idempotency_expires_ms or 0) <= now_ms
            and not any(run in self._runs for run in self._batch_items[batch.id].values())
        ][:limit]
        for batch_id in over:
            del self._batches[batch_id]
            del self._batch_items[batch_id]
        self._batch_keys = {
            key: held for key, held in self._batch_keys.items() if held not in set(over)
        }
        return len(over)

    async def note_packet(self, environment_id: str, name: str, *, now_ms: int) -> None:
        self._check_open()
        self._packets[PacketName(environment_id, name)] = now_ms

    async def forgettable_packets(
        self, *, noted_before_ms: int, limit: int
    ) -> Sequence[PacketName]:
        self._check_open()
        used = {
            PacketName(run.environment_id, run.payload.decode("utf-8", "replace"))
            for run in self._runs.values()
            if run.payload_type == _STORED
        }
        old = [
            (noted_ms, name)
            for name, noted_ms in self._packets.items()
            if noted_ms <= noted_before_ms and name not in used
        ]
        return tuple(name for _, name in sorted(old)[:limit])

    async def forget_packet(self, packet: PacketName, *, noted_before_ms: int) -> None:
        self._check_open()
        if self._packets.get(packet, noted_before_ms + 1) <= noted_before_ms:
            del self._packets[packet]
