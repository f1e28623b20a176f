"""A disk that cannot be written, at the start of a server and under a running one."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from everturn.testing.processes import System, free_port

pytestmark = pytest.mark.processes

#: From the kernel's headers: what lets root write wherever it likes, and what takes it away.
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
APP = Path(__file__).parent.parent / "apps" / "conversations.py"


def start(folder: Path, prepare: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """`everturn server` in circumstances that `prepare` makes for it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")}
    return subprocess.run(
        [
            *(sys.executable, "-m", "everturn", "server"),
            *("--port", str(free_port()), "--data-dir", str(folder / "data")),
        ],
        cwd="/",
        env=environment | {"COLUMNS": "300", "NO_COLOR": "1", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=prepare,
    )


def one_clear_line(run: subprocess.CompletedProcess[str], *words: str) -> None:
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    for word in words:
        assert word in line


def without_override() -> None:
    """Let root be refused what its mode refuses, as anybody else is."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_data_directory_that_cannot_be_written_gives_one_clear_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o555)
    run = start(tmp_path, without_override)
    one_clear_line(run, "data")
    assert list(data.iterdir()) == []


@pytest.mark.parametrize("file_bytes", [0, 4096, 40_000])
def test_a_disk_that_is_full_at_the_start_gives_one_clear_line(
    tmp_path: Path, file_bytes: int
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    one_clear_line(start(tmp_path, limit))


def test_a_disk_that_fills_up_refuses_appends_and_loses_none_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    """P-1: what was answered is there after the restart; what was not is refused, and says so."""
    with System(tmp_path / "data", APP) as system, ExitStack() as stack:
        assert system.server is not None
        headers = {"authorization": f"Bearer {system.key}"}
        client = stack.enter_context(
            httpx2.Client(base_url=system.url, headers=headers, timeout=20)
        )
        body = {
            "type": "inbox",
            "taskIdentifier": "inbox",
            "externalId": "full",
            "triggerConfig": {"basePayload": {}},
        }
        assert client.post("/api/v1/sessions", json=body).status_code == 201
        kept = [n for n in range(5) if append(client, n) == 200]
        resource.prlimit(system.server.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        refused = [append(client, n) for n in range(5, 8)]
        assert (kept, refused) == ([0, 1, 2, 3, 4], [503, 503, 503])
        assert client.get("/healthz").status_code == 200
        assert_restarts(system, client, kept)


def append(client: httpx2.Client, number: int) -> int:
    """Append record `number`; the status."""
    path = "/realtime/v1/sessions/full/in/append"
    headers = {"x-part-id": f"p{number}"}
    return client.post(path, content=b"x" * 50_000, headers=headers).status_code


def assert_restarts(system: System, client: httpx2.Client, kept: list[int]) -> None:
    system.kill_server()
    assert system.start_server().running
    found: list[int] = []
    after = ""
    while True:
        page = client.get(f"/realtime/v1/sessions/full/in/records{after}").json()["records"]
        if not page:
            break
        found += [record.get("seqNum", record.get("seq_num")) for record in page]
        after = f"?afterEventId={found[-1]}"
    assert set(kept) <= set(found)
