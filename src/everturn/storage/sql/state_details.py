"""The verbs of what a run collects on its way, each handed whole to a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everturn.storage.ports.rows import Run
from everturn.storage.sql import run_details
from everturn.storage.sql.transaction import Database


class SqlDetails:
    """The part of `SqlState` that keeps metadata, tags, names of streams, and journals."""

    _db: Database

    async def note_stream(
        self, environment_id: str, run_id: str, stream: str, *, now_ms: int
    ) -> Run | None:
        verb = run_details.note_stream
        return await self._db.write(verb, environment_id, run_id, stream, now_ms=now_ms)

    async def set_metadata(
        self,
        environment_id: str,
        run_id: str,
        change: Callable[[bytes | None], bytes],
        *,
        now_ms: int,
    ) -> Run | None:
        return await self._db.write(
            run_details.set_metadata, environment_id, run_id, change, now_ms=now_ms
        )

    async def add_tags(
        self, environment_id: str, run_id: str, tags: Sequence[str], *, now_ms: int
    ) -> Run | None:
        return await self._db.write(
            run_details.add_tags, environment_id, run_id, tags, now_ms=now_ms
        )

    # --- the journal -----------------------------------------------------------------------------
    async def journal(self, run_id: str) -> Sequence[tuple[int, str, bytes]]:
        return await self._db.read(run_details.journal, run_id)

    async def journal_put(
        self, run_id: str, position: int, key: str, result: bytes, *, fence: int
    ) -> bool:
        return await self._db.write(
            run_details.journal_put, run_id, position, key, result, fence=fence
        )
