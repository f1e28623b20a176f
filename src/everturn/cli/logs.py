"""Log lines on standard error: time, level, event name, fields.

Events are logged with stdlib `logging` and `extra={…}` fields; this renders them on one line.
"""

from __future__ import annotations

import logging
import sys
import time

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_COLORS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


class EventFormatter(logging.Formatter):
    """`12:00:01 warning lease.lost run_id=run_c… worker=worker_c…`"""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        if self._color and record.levelname in _COLORS:
            level = f"{_COLORS[record.levelname]}{level}\x1b[0m"
        fields = " ".join(
            f"{name}={value}"
            for name, value in record.__dict__.items()
            if name not in _STANDARD and value is not None
        )
        line = f"{at} {level} {record.getMessage()}" + (f" {fields}" if fields else "")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str) -> None:
    """Send the events of everturn to standard error from `level` up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter(color=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("everturn").setLevel(level.upper())
