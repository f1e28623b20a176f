"""What the commands print: quiet, plain where a script reads, coloured where a person does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

#: How often a command asks a server before it gives up: a person waits for it.
TRIES: Final = 2
#: Characters a table may be wide. A terminal that is narrower wraps its lines.
TABLE_WIDTH: Final = 4096


@cache
def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def complain(message: str, hint: str | None = None) -> None:
    """One line that names the thing, and one that says what to do next."""
    from rich.markup import escape

    stderr().print(f"[red]error:[/] {escape(message)}")
    if hint:
        stderr().print(f"[dim]{escape(hint)}[/]")


def fail(message: str, hint: str | None = None, *, status: int = 1) -> NoReturn:
    """Complain and leave."""
    complain(message, hint)
    sys.exit(status)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for scripts."""
    json.dump(value, sys.stdout, indent=2, default=str, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table for people; `empty` is said when there are no rows.

    Cells are never cut, however narrow the terminal: half an id cannot be copied.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    count = 0
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
        count += 1
    if count:
        Console(highlight=False, soft_wrap=True, width=TABLE_WIDTH).print(table)
    else:
        stderr().print(f"[dim]{escape(empty)}[/]")


def ago(value: str | datetime | None) -> str:
    """A time as its age: `3m`, `2d`. Takes ISO text or a datetime."""
    if value is None:
        return ""
    at = datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else value
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
