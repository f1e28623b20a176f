"""The port of snapshots and other large objects: named bytes, last write wins."""

from __future__ import annotations

from typing import Protocol


class ObjectStore(Protocol):
    """Named blobs. Names use `/` and are made by us, never by a client."""

    async def put(self, name: str, data: bytes) -> None:
        """Store; durable before it returns (a local file is fsynced, and its folder). Atomic."""
        ...

    async def get(self, name: str) -> bytes | None:
        """The stored bytes, None when there are none."""
        ...

    async def delete(self, name: str) -> None:
        """Forget; no error when there is nothing."""
        ...
