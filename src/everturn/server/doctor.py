"""What `everturn doctor` looks at on this machine: the installation and the data directory.

Every check answers what it found in one line, and, when something needs attention, what to do in
another. Nothing is changed: the stores are read through connections that cannot write, the lock
is only asked for, and the one file that is written, to see whether that is possible, has no name
and is gone when it is closed. A server may be running meanwhile.

A check that cannot be made because of what another one found is skipped, so that one broken thing
is reported once.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from everturn.errors import ConfigurationError, EverturnError, Unavailable
from everturn.rules import limits
from everturn.server.assembly import closed_keys, examine_state, examine_streams

if TYPE_CHECKING:
    from everturn.clock import Clock
    from everturn.server.settings import Settings
    from everturn.storage.ports.examination import StateFindings, StreamFindings

Status = Literal["ok", "attention", "skipped"]

PYTHON_MIN: Final = (3, 11)
#: Room for what may wait for compaction, compacted, with as much again for a snapshot or two.
DISK_BYTES_MIN: Final = 4 * limits.STREAM_UNCOMPACTED_BYTES_MAX
#: What a clock may be behind what was written before: two machines never agree exactly.
CLOCK_MS_MAX: Final = 60_000
#: Written to see whether writing works: more than one page of SQLite, and its shared memory.
PROBE_BYTES: Final = 64 * limits.KIB

#: Files nobody but the server's user may read, whatever the folder says.
_SECRETS: Final = ("master.key", "dev.json")
#: What the channels of run-scoped streams are named by; they belong to runs.
_STREAMS_OF_RUNS: Final = "session_run_"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?\s*([^;]*)(?:;\s*(.*))?")
_BOUND: Final = re.compile(r"(>=|<)\s*([0-9][0-9.]*)")


class Check(NamedTuple):
    """One thing that was looked at. `todo` is None unless it needs attention."""

    name: str
    status: Status
    found: str
    todo: str | None = None


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def attention(name: str, found: str, todo: str) -> Check:
    return Check(name, "attention", found, todo)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", why)


def examine(settings: Settings, clock: Clock) -> list[Check]:
    """Every check of this machine, in the order to mend things in. Blocking."""
    found = [_python(), _packages(), _sqlite()]
    folder = settings.folder
    if folder is not None and not folder.is_dir():
        todo = "Name it with --data-dir, or start `everturn dev`, which makes one."
        return [*found, attention("data", f"there is no data directory {folder}", todo)]
    if folder is not None:
        found += [*_modes(folder), _disk(folder), _writable(folder)]
    return [*found, *_stores(settings, clock)]


# --- the installation ----------------------------------------------------------------------------


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_MIN:
        return attention("python", f"Python {version}", "everturn needs Python 3.11 or newer.")
    return ok("python", f"Python {version}")


def _packages() -> Check:
    """Every package that everturn requires is there, in a version it works with."""
    version = importlib.metadata.version("everturn")
    required = importlib.metadata.requires("everturn") or []
    wrong = [problem for text in required if (problem := package_problem(text)) is not None]
    if wrong:
        todo = "Install everturn again into this environment: pip install --upgrade everturn"
        return attention("packages", "; ".join(wrong), todo)
    return ok("packages", f"everturn {version}, its packages are as it requires")


def package_problem(requirement: str) -> str | None:
    """What is wrong with one requirement, None when it is met or asked for only by an extra."""
    match = _REQUIREMENT.match(requirement)
    if match is None or match[3]:
        return None  # An extra's, or another platform's.
    name, bounds = match[1], match[2]
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    for operator, bound in _BOUND.findall(bounds):
        enough = _numbers(installed) >= _numbers(bound)
        if enough is not (operator == ">="):
            return f"{name} is {installed}, everturn requires {bounds.strip()}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: 2.0 is 2."""
    leading = re.split(r"[^0-9.]", version, maxsplit=1)[0]
    numbers = [int(n) for n in leading.split(".") if n]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _sqlite() -> Check:
    """Partial indexes and upserts as the state engine writes them came with 3.35."""
    if sqlite3.sqlite_version_info < (3, 35):
        return attention(
            "sqlite",
            f"SQLite {sqlite3.sqlite_version}",
            "The embedded engines need SQLite 3.35 or newer: use a newer Python.",
        )
    return ok("sqlite", f"SQLite {sqlite3.sqlite_version}")


# --- the folder ----------------------------------------------------------------------------------


def _modes(folder: Path) -> Iterator[Check]:
    wrong = list(_open_to_others(folder))
    if wrong:
        names = ", ".join(f"{path} (mode {mode:o})" for path, mode in wrong)
        paths = " ".join(str(path) for path, _ in wrong)
        yield attention("modes", f"open to other users: {names}", f"chmod go= {paths}")
    else:
        yield ok("modes", f"{folder} is closed to other users")
    strangers = [path for path in (folder, *_files(folder)) if not os.access(path, os.R_OK)]
    if strangers:
        names = ", ".join(str(path) for path in strangers)
        yield attention(
            "owner", f"not readable by this user: {names}", "Run as the user of the server."
        )


def _open_to_others(folder: Path) -> Iterator[tuple[Path, int]]:
    """The folder, when others may look into it, and secrets that they could read there."""
    for path in (folder, *(folder / name for name in _SECRETS)):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # Not there, which other checks speak of where it matters.
        if mode & _OTHERS:
            yield path, mode


def _files(folder: Path) -> Iterable[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []


def _disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    found = f"{_size(usage.free)} free of {_size(usage.total)}"
    if usage.free < DISK_BYTES_MIN:
        return attention(
            "disk",
            found,
            f"Free at least {_size(DISK_BYTES_MIN)}: on a full disk appends are refused.",
        )
    return ok("disk", found)


def _writable(folder: Path) -> Check:
    """Whether what is written arrives: permissions, read-only mounts, quotas and full disks."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return attention(
            "writing",
            f"{folder} cannot be written: {error.strerror}",
            "Check the mount, the owner, quotas and free space of this folder.",
        )
    return ok("writing", f"{folder} can be written")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


# --- the stores ----------------------------------------------------------------------------------


def _stores(settings: Settings, clock: Clock) -> Iterator[Check]:
    state: StateFindings | None = None
    try:
        state = examine_state(settings, now_ms=clock.now_ms())
    except EverturnError as error:
        yield attention("state", " ".join(error.message.split()), _todo_of_state(settings, error))
    else:
        yield _schema(state)
        if state is not None and state.schema == "current":
            yield from _state(settings, state)
    streams = examine_streams(settings)
    yield _server(streams)
    yield _streams(streams)
    if streams is not None and not streams.damaged:
        newest_ms = streams.newest_ms
        if state is not None and state.schema == "current":
            newest_ms = max(newest_ms, state.newest_ms)
            yield from _together(state, streams)
        yield _clock(newest_ms, clock.now_ms())


def _todo_of_state(settings: Settings, error: EverturnError) -> str:
    """What to do about a state database that cannot be looked at at all."""
    if isinstance(error, ConfigurationError):
        return "Mend EVERTURN_DATABASE_URL."
    if isinstance(error, Unavailable) and not settings.database.startswith("sqlite:"):
        return "Start it, or mend EVERTURN_DATABASE_URL: host, port, name, user or password."
    return "Check the database, or restore it together with the streams."


def _schema(state: StateFindings | None) -> Check:
    if state is None:
        return skipped("schema", "state is kept in memory")
    match state.schema:
        case "ahead":
            return attention(
                "schema",
                "the database was made by a newer everturn",
                "Upgrade everturn on this machine; schemas are never taken back.",
            )
        case "behind":
            return attention("schema", "the schema is behind", "Run `everturn migrate`.")
        case "empty":
            return skipped("schema", "there is no state yet")
    return ok("schema", "the schema is current")


def _state(settings: Settings, state: StateFindings) -> Iterator[Check]:
    if state.damage:
        yield attention(
            "state",
            "; ".join(state.damage),
            "Stop the server, keep a copy, and restore a backup of the whole data directory.",
        )
    lost = state.lost_runs + state.lost_sessions
    if lost:
        yield attention(
            "orphans",
            f"{state.lost_runs} sessions name a run that is not there, "
            f"{state.lost_sessions} runs a session that is not there",
            "The state was changed by hand or restored in part: restore it whole.",
        )
    elif not state.damage:
        yield ok(
            "state", f"{state.sessions} sessions, {state.unchecked} to be looked at by a sweep"
        )
    yield _keys(settings, state)
    yield _workers(state)


def _keys(settings: Settings, state: StateFindings) -> Check:
    working = [key for key in state.keys if key.revoked_at_ms is None]
    if not working:
        return attention(
            "keys", "no environment has a secret key", "Make one: `everturn keys create`."
        )
    try:
        closed = closed_keys(settings, working)
    except ConfigurationError as error:
        return attention(
            "keys",
            error.message,
            "Restore master.key from the backup of this directory, or set EVERTURN_MASTER_KEY.",
        )
    if closed:
        return attention(
            "keys",
            f"{closed} of {len(working)} secret keys do not open under this master key",
            "Restore the master.key they were stored with; without it, revoke them and make new ones.",
        )
    return ok("keys", f"{len(working)} secret keys open under the master key")


def _workers(state: StateFindings) -> Check:
    if not state.workers:
        return ok("workers", "no worker is connected")
    versions = sorted({worker.version for worker in state.workers})
    return ok("workers", f"{len(state.workers)} connected, serving {', '.join(versions)}")


def _server(streams: StreamFindings | None) -> Check:
    if streams is None:
        return skipped("server", "there is no stream store on this machine")
    if not streams.in_use:
        return ok("server", "no server is running")
    by = "" if streams.holder is None else f" (process {streams.holder})"
    return ok("server", f"a server has the stores open{by}")


def port(host: str, number: int) -> Check:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            return attention(
                "port",
                f"port {number} on {host} cannot be listened on: {error.strerror}",
                f"Stop what listens there, or serve on another: --port {number + 1}.",
            )
    return ok("port", f"port {number} on {host} is free")


def _streams(streams: StreamFindings | None) -> Check:
    if streams is None:
        return skipped("streams", "there is no stream store on this machine")
    if streams.damaged:
        more = streams.damaged - len(streams.damage)
        named = "; ".join(streams.damage) + (f"; and {more} more" if more > 0 else "")
        return attention(
            "streams",
            named,
            "Stop the server, keep a copy, and restore a backup of the whole data directory. "
            "The disk that did this may do it again.",
        )
    return ok("streams", f"{streams.records} records in {len(streams.tails)} channels are whole")


def _together(state: StateFindings, streams: StreamFindings) -> Iterator[Check]:
    """Two files that were written together: one restored without the other shows here."""
    behind = [
        committed
        for committed in state.committed
        if streams.tails.get(committed.channel, 0) <= committed.seq_num
    ]
    if behind:
        yield attention(
            "restored",
            f"{len(behind)} sessions have answered more than their channel holds: "
            "the streams are older than the state",
            "Restore state and streams from one backup.",
        )
    free = [
        name
        for name in streams.tails
        if (name.environment, name.session) not in state.owners
        and not name.session.startswith(_STREAMS_OF_RUNS)
    ]
    yield ok("channels", f"{len(free)} channels belong to no session")


def _clock(newest_ms: int, now_ms: int) -> Check:
    ahead_ms = newest_ms - now_ms
    if ahead_ms > CLOCK_MS_MAX:
        return attention(
            "clock",
            f"the newest record was written {ahead_ms // 1000} s from now",
            "The clock of this machine went back: set it, or leases and tokens live too long.",
        )
    return ok("clock", "the clock is not behind what was written")
