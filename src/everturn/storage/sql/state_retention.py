"""The verbs of `storage/ports/retention.py`, expiry and request keys, handed whole to a database."""

from __future__ import annotations

from collections.abc import Sequence

from everturn.storage.ports.retention import PacketName
from everturn.storage.ports.rows import Run
from everturn.storage.sql import retention, runs, sweeps
from everturn.storage.sql.transaction import Database


class SqlRetention:
    """The part of `SqlState` that forgets."""

    _db: Database

    async def expired_runs(self, *, now_ms: int, limit: int) -> Sequence[Run]:
        return await self._db.read(sweeps.expired_runs, now_ms=now_ms, limit=limit)

    async def run_by_request(
        self, environment_id: str, request_key: str, *, now_ms: int
    ) -> Run | None:
        return await self._db.read(runs.run_by_request, environment_id, request_key, now_ms=now_ms)

    async def take_chore(self, name: str, *, now_ms: int, every_ms: int) -> bool:
        return await self._db.write(retention.take_chore, name, now_ms=now_ms, every_ms=every_ms)

    async def forgettable_runs(
        self, *, finished_before_ms: int, now_ms: int, limit: int
    ) -> Sequence[Run]:
        return await self._db.read(
            retention.forgettable_runs,
            finished_before_ms=finished_before_ms,
            now_ms=now_ms,
            limit=limit,
        )

    async def forget_runs(self, run_ids: Sequence[str]) -> int:
        return await self._db.write(retention.forget_runs, run_ids)

    async def forget_keys(self, *, now_ms: int, limit: int) -> int:
        return await self._db.write(retention.forget_keys, now_ms=now_ms, limit=limit)

    async def forget_waitpoints(self, *, completed_before_ms: int, now_ms: int, limit: int) -> int:
        return await self._db.write(
            retention.forget_waitpoints,
            completed_before_ms=completed_before_ms,
            now_ms=now_ms,
            limit=limit,
        )

    async def forget_batches(self, *, created_before_ms: int, now_ms: int, limit: int) -> int:
        return await self._db.write(
            retention.forget_batches,
            created_before_ms=created_before_ms,
            now_ms=now_ms,
            limit=limit,
        )

    async def note_packet(self, environment_id: str, name: str, *, now_ms: int) -> None:
        await self._db.write(retention.note_packet, environment_id, name, now_ms=now_ms)

    async def forgettable_packets(
        self, *, noted_before_ms: int, limit: int
    ) -> Sequence[PacketName]:
        return await self._db.read(
            retention.forgettable_packets, noted_before_ms=noted_before_ms, limit=limit
        )

    async def forget_packet(self, packet: PacketName, *, noted_before_ms: int) -> None:
        await self._db.write(retention.forget_packet, packet, noted_before_ms=noted_before_ms)
