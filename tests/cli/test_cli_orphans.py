"""Workers that a supervising process started do not outlive it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from commands import APP, Dev, Run

from everturn.testing.processes import EverturnProcess, free_port

pytestmark = pytest.mark.processes


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def runs(pid: int) -> bool:
    """Whether a process is there and not just waiting to be reaped by whoever inherited it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while runs(pid):
        assert time.monotonic() < deadline, f"{pid} outlives the process that started it"
        time.sleep(0.05)


def test_the_worker_of_a_killed_dev_leaves_too(dev: Dev, everturn: Run) -> None:
    dev.start()
    assert dev.process is not None
    [worker] = children(dev.process.pid)
    dev.process.kill()
    until_gone(worker)
    dev.start()
    assert everturn("chat", "echo", "-m", "hello").stdout.strip() == "one: hello"


def test_the_workers_of_a_killed_supervisor_leave_too(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP.format(answer="one"))
    supervisor = EverturnProcess(
        ["worker", str(app), "--processes", "2"],
        tmp_path / "supervisor.log",
        {
            "EVERTURN_SECRET_KEY": "tr_dev_key",
            "EVERTURN_API_URL": f"http://127.0.0.1:{free_port()}",
        },
    )
    try:
        supervisor.until_logged("link.lost", 2)  # both are there, and look for their server
        workers = children(supervisor.pid)
    finally:
        supervisor.kill()
    assert len(workers) == 2
    for worker in workers:
        until_gone(worker)
