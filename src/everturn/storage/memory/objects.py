"""Objects in a dict: the executable specification of the snapshots port."""

from __future__ import annotations


class MemoryObjects:
    """Named blobs that live as long as this object."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    async def put(self, name: str, data: bytes) -> None:
        """Store a copy under `name`; the last write wins."""
        self._blobs[name] = bytes(data)

    async def get(self, name: str) -> bytes | None:
        """The stored bytes, None when there are none."""
        return self._blobs.get(name)

    async def delete(self, name: str) -> None:
        """Forget; no error when there is nothing."""
        self._blobs.pop(name, None)

    def names(self) -> list[str]:
        """The names that hold something, in order: for whoever looks at what is left behind."""
        return sorted(self._blobs)
