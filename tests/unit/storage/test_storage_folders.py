"""What is made on disk is found again after a crash or a power cut, whole or not at all."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everturn.errors import ConfigurationError
from everturn.server.assembly import build, open_keys
from everturn.server.settings import Settings
from everturn.storage.folders import make_folders, write_once


class Died(BaseException):
    """The process ends here."""


def named(handle: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{handle}"))


def test_a_file_is_never_seen_half_made_wherever_its_maker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first start that was killed must not keep the second from starting."""
    path = tmp_path / "master.key"
    steps = 0
    for name in ("fsync", "replace", "fdopen"):
        original = getattr(os, name)

        def dying(*args: object, _original: object = original, **options: object) -> object:
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise Died
            return _original(*args, **options)  # type: ignore[operator]  # a function of os

        monkeypatch.setattr(os, name, dying)
    for steps_before in range(4):
        steps = steps_before
        with pytest.raises(Died):
            write_once(path, b"first")
        assert not path.exists() or path.read_bytes() == b"first"
        path.unlink(missing_ok=True)
    monkeypatch.undo()
    assert write_once(path, b"second") == b"second"


def test_of_many_that_make_a_file_at_once_all_get_the_bytes_of_one(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    start = threading.Barrier(8)

    def make(number: int) -> bytes:
        start.wait()
        return write_once(path, b"%d" % number)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(make, range(8))) == {path.read_bytes()}
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_uses_a_new_folder_before_it_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two puts at once the second finds the folder the first has made."""
    folder = tmp_path / "a"
    syncing, may_sync, finished = threading.Event(), threading.Event(), threading.Event()
    sync = os.fsync

    def slowly(handle: int) -> None:
        syncing.set()
        assert may_sync.wait(10)
        sync(handle)

    monkeypatch.setattr(os, "fsync", slowly)

    def second() -> None:
        make_folders(folder)
        finished.set()

    threads = [threading.Thread(target=make_folders, args=(folder,))]
    threads[0].start()
    assert syncing.wait(10)
    assert folder.exists()
    threads.append(threading.Thread(target=second))
    threads[1].start()
    assert not finished.wait(0.1), "it went on while the folder could still be lost"
    may_sync.set()
    for thread in threads:
        thread.join(10)
    assert finished.is_set()


@pytest.mark.anyio
async def test_the_data_folder_and_the_master_key_are_synced_before_anything_relies_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def fsync(handle: int) -> None:
        synced.append(named(handle))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "new" / "data"
    async with open_keys(Settings(data_dir=str(folder))):
        pass
    # Each folder into the one above it; the key, before it has its name; the name.
    key = next(path for path in synced if path.name.startswith(".master.key"))
    assert synced == [tmp_path, tmp_path / "new", key, folder]


@pytest.mark.anyio
async def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file/data cannot be made: Not a directory"):
        async with build(Settings(data_dir=str(tmp_path / "file" / "data"))):
            pass
