"""Folders and files of this machine that a power cut does not take back.

A new file or folder is found again after a power cut only when the folder it was made in was
synced too. What is made here is synced like that, and nobody sees it half made.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from pathlib import Path

# Held while folders are made: who finds one there relies on it being synced into its parent.
_making = threading.Lock()


def make_folders(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and its parents, each synced into the one above it. Raises OSError."""
    with _making:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            made.mkdir(mode=mode, exist_ok=True)
            sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Write to disk what was made, renamed or removed in a folder. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(target: Path, data: bytes, *, writing: Path, prefix: str = "tmp") -> None:
    """Put a synced file in place of what is there; readers see the old bytes or the new ones.

    Its folder is not synced here. `writing` is where it is written first, on the same file system.
    Raises OSError.
    """
    handle, temporary = tempfile.mkstemp(prefix=prefix, dir=writing)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes) -> bytes:
    """The bytes of a file, which is made of `data` unless it is there. Raises OSError.

    Of several processes that ask at once one makes it and all get the same bytes. It is never seen
    empty or half written, also not after a crash, and nobody but its owner may read it.
    """
    if path.exists():
        return path.read_bytes()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            replace_file(path, data, writing=path.parent, prefix=f".{path.name}.")
            os.fsync(folder)
    finally:
        os.close(folder)
    return path.read_bytes()
