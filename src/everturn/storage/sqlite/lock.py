"""One process per file: two writers of one SQLite file starve each other for seconds."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from everturn.errors import ConfigurationError, Unavailable


class FileLock:
    """An exclusive `flock` beside the database; the kernel lets go of it when we die.

    The lock file stays behind on purpose: removing it would let two processes lock two
    different files of the same name.
    """

    def __init__(self, database: Path) -> None:
        """Take the lock.

        Raises:
            ConfigurationError: another process has it.
            Unavailable: the lock file cannot be made (a missing folder, no rights).
        """
        try:
            self._fd = os.open(lock_of(database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{database}: {error.strerror}", file=str(database)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigurationError(
                f"{database}: another process has this stream store open; "
                "one server at a time may use it",
                file=str(database),
            ) from None

    def release(self) -> None:
        """Let the next process in."""
        os.close(self._fd)


def lock_of(database: Path) -> Path:
    """The lock file of a database: one, by whatever links its file is reached."""
    file = database.resolve()
    return file.with_name(f"{file.name}.lock")
