"""`everturn doctor`: each check, with the thing it looks for broken for real."""

from __future__ import annotations

import http.server
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from commands import Run

from everturn.clock import SystemClock
from everturn.protocol.records import ChannelName, NewRecord, data_body
from everturn.protocol.sessions import CreateSession
from everturn.server import doctor
from everturn.server.assembly import build
from everturn.server.settings import Settings
from everturn.storage.ports.rows import TaskVersion, Worker
from everturn.testing.processes import System, free_port

pytestmark = pytest.mark.processes

SESSION = {
    "type": "chat.agent",
    "taskIdentifier": "agent",
    "externalId": "chat-1",
    "triggerConfig": {"basePayload": {}},
}
APP = Path(__file__).parent.parent / "apps" / "conversations.py"


@pytest.fixture
def data(folder: Path) -> Path:
    """A data directory with a session and thirty records, whose server has ended."""
    anyio.run(_fill, folder / ".everturn", SystemClock())
    return folder / ".everturn"


async def _fill(path: Path, clock: SystemClock) -> None:
    async with build(Settings(data_dir=str(path)), clock=clock) as system:
        services, environment = system.services, system.environment
        now_ms = services.clock.now_ms()
        worker = Worker(
            id="worker_1",
            environment_id=environment.id,
            version="v7",
            server_id=services.server_id,
            lease_until_ms=now_ms + 600_000,
            registered_at_ms=now_ms,
        )
        tasks = [TaskVersion(task_id="agent", kind="agent")]
        await services.state.register_worker(worker, tasks, {}, now_ms=now_ms)
        await services.sessions.create(environment.id, msgspec.convert(SESSION, CreateSession))
        for io in ("in", "out"):
            channel = ChannelName(environment.id, "chat-1", io)  # type: ignore[arg-type]  # a literal
            for n in range(15):
                body = data_body(b'"%d"' % n, f"p{n}")
                await services.streams.append(channel, [NewRecord(body, (), f"p{n}")])


def check(data: Path, name: str) -> doctor.Check:
    """The one answer of a check."""
    found = doctor.examine(Settings(data_dir=str(data)), SystemClock())
    (one,) = [each for each in found if each.name == name]
    return one


def change(database: Path, *statements: str) -> None:
    with sqlite3.connect(database) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0
    connection.close()


def needs_attention(found: doctor.Check, *words: str) -> None:
    assert found.status == "attention"
    assert found.todo
    for word in words:
        assert word in found.found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".db-shm"
    }


def test_a_sound_directory_needs_nothing_and_is_left_as_it_was(data: Path, everturn: Run) -> None:
    before = bytes_of(data)
    run = everturn("doctor")
    assert (run.returncode, "✗" in run.stdout) == (0, False), run.stdout
    assert "30 records in 2 channels are whole" in run.stdout
    assert "1 connected, serving v7" in run.stdout
    for path, content in before.items():
        assert Path(path).read_bytes() == content, path


def test_it_prints_json_and_leaves_with_1_when_something_needs_attention(
    data: Path, everturn: Run
) -> None:
    (data / "master.key").chmod(0o644)
    run = everturn("doctor", "--json")
    assert run.returncode == 1
    wrong = [one for one in json.loads(run.stdout) if one["status"] == "attention"]
    assert [one["name"] for one in wrong] == ["modes"]
    assert wrong[0]["todo"].startswith("chmod go= ")


def test_a_directory_that_is_not_there_is_named_and_not_made(folder: Path, everturn: Run) -> None:
    run = everturn("doctor", "--data-dir", "elsewhere")
    assert run.returncode == 1
    assert "there is no data directory elsewhere" in run.stdout
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("name", [".", "master.key"])
def test_a_mode_that_lets_others_in_is_named(data: Path, name: str) -> None:
    (data / name).chmod(0o755)
    needs_attention(check(data, "modes"), str(data / name), "755")


def test_a_flipped_byte_in_a_log_row_is_found_and_the_row_is_named(data: Path) -> None:
    flip(data / "streams.db", "log", "id")
    needs_attention(check(data, "streams"), "log row", "checksum")


def test_a_flipped_byte_in_a_segment_is_found_and_the_segment_is_named(data: Path) -> None:
    from everturn.protocol.records import Record
    from everturn.storage.sqlite.frames import checksum, encode_segment

    with sqlite3.connect(data / "streams.db") as connection:
        body = encode_segment([Record(0, 1, (), b"{}", 0, -1)])
        connection.execute("INSERT INTO segments VALUES (77, 0, 1, ?, ?)", (checksum(body), body))
    connection.close()
    assert check(data, "streams").status == "ok"
    flip(data / "streams.db", "segments", "channel")
    needs_attention(check(data, "streams"), "segment 0 of channel 77", "checksum")


def flip(database: Path, table: str, key: str) -> None:
    with sqlite3.connect(database) as connection:
        row, body = connection.execute(f"SELECT {key}, body FROM {table} LIMIT 1").fetchone()
        flipped = body[:-3] + bytes([body[-3] ^ 1]) + body[-2:]
        connection.execute(f"UPDATE {table} SET body = ? WHERE {key} = ?", (flipped, row))
    connection.close()


def test_a_segment_that_was_cut_short_is_found_and_named(data: Path) -> None:
    from everturn.protocol.records import Record
    from everturn.storage.sqlite.frames import checksum, encode_segment

    body = encode_segment([Record(n, 1, (), b"{}", 0, -1) for n in range(3)])
    with sqlite3.connect(data / "streams.db") as connection:
        # Its checksum fits, so it was written like that; the count beside it tells.
        short = encode_segment([Record(0, 1, (), b"{}", 0, -1)])
        connection.execute("INSERT INTO segments VALUES (77, 0, 3, ?, ?)", (checksum(short), short))
        connection.execute(
            "INSERT INTO segments VALUES (78, 0, 3, ?, ?)", (checksum(body), body[:-4])
        )
    connection.close()
    found = check(data, "streams")
    needs_attention(found, "segment 0 of channel 77", "holds 1 records, expected 3")
    needs_attention(found, "segment 0 of channel 78", "checksum")


@pytest.mark.parametrize("name", ["streams", "state"])
def test_a_file_that_lost_its_end_is_found(data: Path, name: str) -> None:
    whole = settled(data / f"{name}.db")
    os.truncate(whole, whole.stat().st_size // 2)
    needs_attention(check(data, name), f"{name}.db" if name == "streams" else "malformed")


@pytest.mark.parametrize("name", ["streams", "state"])
def test_any_page_that_was_overwritten_is_found_or_belongs_to_nobody(data: Path, name: str) -> None:
    """Zeros, and noise, over one page after the other: never a traceback, never unnoticed."""
    path = settled(data / f"{name}.db")
    good = path.read_bytes()
    noticed = {}
    for page in range(1, len(good) // 4096):
        for filling in (bytes(4096), os.urandom(4096)):
            path.write_bytes(good[: page * 4096] + filling + good[(page + 1) * 4096 :])
            found = [one for one in examine(data) if one.status == "attention"]
            noticed[page] = noticed.get(page, False) or bool(found)
            assert all(one.todo for one in found)
    path.write_bytes(good)
    with sqlite3.connect(path) as connection:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    connection.close()
    assert sum(not seen for seen in noticed.values()) <= free, noticed


def settled(path: Path) -> Path:
    """A database whose write-ahead log is in the file itself."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    return path


def test_a_log_row_that_is_missing_is_found_by_the_numbers_around_it(data: Path) -> None:
    change(data / "streams.db", "DELETE FROM log WHERE id = (SELECT min(id) + 3 FROM log)")
    needs_attention(check(data, "streams"), "expected")


def test_a_file_that_is_no_database_is_named(data: Path) -> None:
    for name in ("streams.db", "state.db"):
        for path in data.glob(f"{name}*"):
            path.unlink()
        (data / name).write_bytes(os.urandom(8192))
    needs_attention(check(data, "streams"), "streams.db")
    needs_attention(check(data, "state"), "not a database")


def test_a_schema_of_a_newer_release_is_told_apart(data: Path) -> None:
    change(data / "state.db", "UPDATE alembic_version SET version_num = '9999'")
    needs_attention(check(data, "schema"), "newer")


def test_a_schema_that_is_behind_is_told_apart(data: Path) -> None:
    change(data / "state.db", "UPDATE alembic_version SET version_num = '0001'")
    needs_attention(check(data, "schema"), "behind")


def test_rows_that_lost_what_they_refer_to_are_counted(data: Path) -> None:
    change(data / "state.db", "UPDATE sessions SET current_run_id = 'run_gone'")
    needs_attention(check(data, "orphans"), "1 sessions")
    change(data / "state.db", "UPDATE runs SET session_id = 'session_gone'")
    needs_attention(check(data, "orphans"), "1 sessions", "1 runs")


def test_streams_that_are_older_than_the_state_are_found(data: Path) -> None:
    change(data / "state.db", "UPDATE sessions SET cursor_seq = 14")
    assert {one.status for one in examine(data)} <= {"ok"}
    change(data / "state.db", "UPDATE sessions SET cursor_seq = 15")
    needs_attention(check(data, "restored"), "1 sessions")


def examine(data: Path) -> list[doctor.Check]:
    return doctor.examine(Settings(data_dir=str(data)), SystemClock())


def test_another_master_key_and_a_missing_one_are_found(data: Path) -> None:
    (data / "master.key").write_text("00" * 32)
    needs_attention(check(data, "keys"), "1 of 1 secret keys do not open")
    (data / "master.key").unlink()
    needs_attention(check(data, "keys"), "master.key")
    assert not (data / "master.key").exists()


def test_an_environment_without_any_key_is_pointed_out(data: Path) -> None:
    change(data / "state.db", "DELETE FROM api_keys")
    needs_attention(check(data, "keys"), "no environment has a secret key")


class LateClock(SystemClock):
    """An hour ahead of this machine: what it wrote makes this machine's clock go back."""

    def now_ms(self) -> int:
        return super().now_ms() + 3_600_000


def test_a_clock_that_went_back_is_seen_by_what_was_written_before(folder: Path) -> None:
    anyio.run(_fill, folder / "late", LateClock())
    needs_attention(check(folder / "late", "clock"), "s from now")


def limited(folder: Path, file_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where no file may grow past a size: what a full disk does to a write."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        [sys.executable, "-m", "everturn", *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )


def test_a_directory_that_takes_no_more_bytes_is_found(data: Path) -> None:
    run = limited(data.parent, 4096, "doctor", "--json")
    found = {one["name"]: one for one in json.loads(run.stdout)}
    assert run.returncode == 1
    assert found["writing"]["status"] == "attention"
    assert "File too large" in found["writing"]["found"]


def test_a_port_that_is_taken_is_named_and_a_free_one_is_not(data: Path, everturn: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        number = taken.getsockname()[1]
        run = everturn("doctor", "--port", str(number))
        assert run.returncode == 1
        assert f"port {number} on 127.0.0.1 cannot be listened on" in run.stdout
        assert "--port" in run.stdout
    assert everturn("doctor", "--port", str(free_port())).returncode == 0


def test_a_lock_that_a_killed_server_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    """The file stays, the lock does not: the system took it back with the process."""
    with System(tmp_path / "data", APP) as system:
        (tmp_path / "data").chmod(0o700)
        system.kill_server()
        assert (tmp_path / "data" / "streams.db.lock").exists()
        assert doctor_json(system)["server"]["found"] == "no server is running"
        assert system.start_server().running


def test_whoever_holds_the_lock_without_being_a_server_is_named(data: Path) -> None:
    """A process that hangs keeps the next server out; it is told which one to end."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data / "streams.db.lock")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert check(data, "server").found.endswith(f"(process {holder.pid})")
    finally:
        holder.kill()
        holder.communicate()
    assert check(data, "server").found == "no server is running"


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_little_free_space_is_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_BYTES_MIN", 2**60)
    needs_attention(check(data, "disk"), "free of")


def test_a_package_that_is_missing_or_of_the_wrong_version_is_named() -> None:
    assert doctor.package_problem("msgspec>=0.1") is None
    assert doctor.package_problem("nothing-such>=1; extra == 'x'") is None
    assert doctor.package_problem("nothing-such>=1") == "nothing-such is not installed"
    for text in ("msgspec>=99", "msgspec<0.1", "sqlalchemy[asyncio]>=99,<100"):
        assert "everturn requires" in str(doctor.package_problem(text)), text


def test_a_running_server_is_seen_and_goes_on_undisturbed(tmp_path: Path) -> None:
    with System(tmp_path / "data", APP) as system:
        (tmp_path / "data").chmod(0o700)
        found = doctor_json(system, "--url", system.url)
        assert system.server is not None
        by = f"(process {system.server.pid})"
        assert found["server"]["found"] == f"a server has the stores open {by}"
        assert found["url"]["status"] == found["ready"]["status"] == found["key"]["status"] == "ok"
        assert found["workers"]["found"].startswith("1 connected")
        assert [n for n, one in found.items() if one["status"] == "attention"] == []

        system.kill_worker()
        until_no_worker(system)
        found = doctor_json(system, "--url", system.url, key="tr_dev_" + "x" * 24)
        assert found["ready"]["found"] == "no worker is connected"
        assert found["key"]["status"] == "attention"


def until_no_worker(system: System) -> None:
    """The server gives a lost worker three seconds to come back."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(system.url + "/readyz", timeout=5).close()
        except urllib.error.HTTPError as refused:
            refused.close()
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there")


def doctor_json(system: System, *arguments: str, key: str | None = None) -> dict[str, Any]:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "everturn", "doctor", "--json"),
            *("--data-dir", str(system.data_dir)),
            *arguments,
        ],
        env=os.environ | {"EVERTURN_SECRET_KEY": key or system.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {one["name"]: one for one in json.loads(run.stdout)}


def test_an_address_where_nothing_or_something_else_answers_is_named(
    data: Path, everturn: Run, http_elsewhere: str
) -> None:
    nothing = everturn("doctor", "--url", f"http://127.0.0.1:{free_port()}")
    assert nothing.returncode == 1
    assert "nothing answers at" in nothing.stdout
    other = everturn("doctor", "--url", http_elsewhere)
    assert other.returncode == 1
    assert "not as an everturn server does" in other.stdout


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def http_elsewhere() -> Iterator[str]:
    """Some other web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), _Elsewhere) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()
        thread.join()
