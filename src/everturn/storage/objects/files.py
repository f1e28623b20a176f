"""Objects as local files, durable before a put returns.

obstore's own local store renames without syncing, so after a power cut the name may lead to an
empty file, or still to the old one. P-9 lets the log be trimmed once a snapshot is stored; here
therefore a put is: write a temporary file beside the target, sync it, rename it over the target,
sync the folder. A reader sees the old bytes or the new ones, never a mixture. Folders that had
to be made are synced into their parents for the same reason.

Temporary files are written into one folder of their own. What a crash left there is removed by the
next one to open the store while nobody else has it open, which a shared lock on that folder tells.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from anyio import to_thread

from everturn.errors import Unavailable
from everturn.storage.folders import make_folders, replace_file, sync_folder
from everturn.storage.objects.names import checked_name

#: Object names never start with a dot, so this cannot be the folder of one.
_WRITING = ".writing"


class FileObjects:
    """The port of objects over one folder of this machine."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, making it when it is missing. Raises OSError when that cannot be done."""
        self._folder = folder.absolute()
        self._writing = self._folder / _WRITING
        make_folders(self._writing)
        # Held for as long as this object lives.
        lock = os.open(self._writing / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        self._unlock = weakref.finalize(self, os.close, lock)
        _remove_leftovers(self._writing, lock)

    def close(self) -> None:
        """Let go of the folder. Not needed for anything that was put to stay."""
        self._unlock()

    async def put(self, name: str, data: bytes) -> None:
        """Store; the file and its folder are synced when this returns. Raises Unavailable."""
        target = self._path(name)
        try:
            await to_thread.run_sync(_write, self._writing, target, data)
        except OSError as error:
            raise Unavailable(f"the object {name!r} was not stored: {error}") from error

    async def get(self, name: str) -> bytes | None:
        """The stored bytes, None when there are none. Raises Unavailable."""
        try:
            return await to_thread.run_sync(self._path(name).read_bytes)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Unavailable(f"the object {name!r} was not read: {error}") from error

    async def delete(self, name: str) -> None:
        """Forget; no error when there is nothing. Raises Unavailable."""
        try:
            await to_thread.run_sync(_delete, self._path(name))
        except OSError as error:
            raise Unavailable(f"the object {name!r} was not deleted: {error}") from error

    def _path(self, name: str) -> Path:
        return self._folder / checked_name(name)


def _write(writing: Path, target: Path, data: bytes) -> None:
    make_folders(target.parent)
    replace_file(target, data, writing=writing)
    sync_folder(target.parent)


def _remove_leftovers(writing: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # somebody has the store open, and these files may be theirs
    else:
        for leftover in writing.iterdir():
            if leftover.name != "lock":
                leftover.unlink(missing_ok=True)
    fcntl.flock(lock, fcntl.LOCK_SH)


def _delete(target: Path) -> None:
    try:
        target.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    sync_folder(target.parent)
