"""The contract of the objects port (`storage/ports/snapshots.py`), on any engine.

A test module imports the class and defines a fixture `objects`, an empty store.
"""

from __future__ import annotations

import anyio
import pytest

from everturn.storage.ports.snapshots import ObjectStore


class TestObjects:
    async def test_what_was_put_is_got_back(self, objects: ObjectStore) -> None:
        data = bytes(range(256)) * 5000
        await objects.put("env/session_c1/snapshot", data)

        assert await objects.get("env/session_c1/snapshot") == data

    async def test_the_last_put_wins(self, objects: ObjectStore) -> None:
        await objects.put("a", b"a long first value")
        await objects.put("a", b"")

        assert await objects.get("a") == b""

    async def test_an_unknown_name_has_nothing(self, objects: ObjectStore) -> None:
        await objects.put("a/b", b"1")

        for name in ("a", "b", "a/b/c", "a/bb"):
            assert await objects.get(name) is None

    async def test_deleting_forgets_and_may_be_repeated(self, objects: ObjectStore) -> None:
        await objects.put("a/b", b"1")
        await objects.put("a/c", b"2")

        await objects.delete("a/b")
        await objects.delete("a/b")
        await objects.delete("never/was")

        assert await objects.get("a/b") is None
        assert await objects.get("a/c") == b"2"

    async def test_a_reader_never_sees_half_an_object(self, objects: ObjectStore) -> None:
        values = {bytes([n]) * 200_000 for n in range(4)}
        seen: set[bytes | None] = set()
        await objects.put("a", next(iter(values)))

        async def write(value: bytes) -> None:
            for _ in range(5):
                await objects.put("a", value)

        async def read() -> None:
            for _ in range(20):
                seen.add(await objects.get("a"))

        async with anyio.create_task_group() as tasks:
            for value in values:
                tasks.start_soon(write, value)
            tasks.start_soon(read)

        assert seen <= values

    @pytest.mark.parametrize("name", ["session%2F1/a b", "ünïcode/\u4f60", "a.b/c-d_e~f"])
    async def test_names_are_taken_as_they_are(self, objects: ObjectStore, name: str) -> None:
        await objects.put(name, b"1")

        assert await objects.get(name) == b"1"
