"""The objects contract on memory, local files and a bucket, and what only files promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everturn.errors import ConfigurationError, Unavailable
from everturn.storage.memory.objects import MemoryObjects
from everturn.storage.objects import open_objects
from everturn.storage.ports.snapshots import ObjectStore
from everturn.testing.contracts.objects import *  # noqa: F403  # the suite's classes, to be collected

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "files", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryObjects()
    return open_objects(tmp_path / "objects" if request.param == "files" else "memory:///")


class TestFiles:
    async def test_a_put_syncs_the_file_then_names_it_then_syncs_its_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_objects(tmp_path)
        await store.put("a/b", b"old")
        steps: list[str] = []
        sync, replace = os.fsync, os.replace

        def fsync(handle: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            steps.append("sync folder" if path.is_dir() else f"sync {path.read_bytes()!r}")
            sync(handle)

        def rename(source: str, target: Path) -> None:
            steps.append("rename")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", rename)
        await store.put("a/b", b"new")

        assert steps == ["sync b'new'", "rename", "sync folder"]

    async def test_a_new_folder_is_synced_into_its_parent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_objects(tmp_path)
        synced: list[Path] = []
        sync = os.fsync

        def fsync(handle: int) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
            sync(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        await store.put("a/b/c", b"1")

        folders = [path for path in synced if path.is_dir()]
        assert folders == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]

    async def test_a_failed_put_leaves_the_old_object_and_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_objects(tmp_path)
        await store.put("a", b"old")

        def full(_handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="No space left"):
            await store.put("a", b"new")

        assert await store.get("a") == b"old"
        assert [path.name for path in (tmp_path / ".writing").iterdir()] == ["lock"]

    async def test_leftovers_of_a_crash_go_when_nobody_has_the_store_open(
        self, tmp_path: Path
    ) -> None:
        first = open_objects(tmp_path)
        leftover = tmp_path / ".writing" / "tmpabc"
        leftover.write_bytes(b"half")

        second = open_objects(tmp_path)
        assert leftover.exists()
        for store in (first, second):
            store.close()  # type: ignore[attr-defined]  # not of the port: files have it
        third = open_objects(tmp_path)

        assert not leftover.exists()
        third.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", ["", "/a", "a//b", "../a", "a/../b", "a/.b", "a\0b"])
    async def test_a_name_cannot_leave_the_store(self, tmp_path: Path, name: str) -> None:
        store = open_objects(tmp_path.as_uri())

        with pytest.raises(ValueError, match="not an object name"):
            await store.put(name, b"")


def test_an_unknown_kind_of_url_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_objects("gopher://secret@somewhere/x")

    assert "\n" not in refused.value.message
    assert "secret" not in refused.value.message
