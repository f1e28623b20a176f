"""`everturn dev` with its companions, as a person uses them."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from commands import APP, Dev, Run

pytestmark = pytest.mark.processes


def test_dev_prints_address_and_key_and_leaves_them_for_the_other_commands(
    dev: Dev, everturn: Run, folder: Path
) -> None:
    dev.start("--no-reload")
    said = dev.log_text()
    found = json.loads((folder / ".everturn" / "dev.json").read_text())

    assert f"http://127.0.0.1:{dev.port}" in said
    assert found["key"] in said
    assert "everturn chat echo" in said
    assert stat.S_IMODE((folder / ".everturn" / "dev.json").stat().st_mode) == 0o600
    answer = everturn("chat", "echo", "-m", "hello")
    assert answer.stdout.strip() == "one: hello", answer.stderr
    assert dev.stop() == 0


def test_stopping_and_starting_dev_in_between_loses_nothing(dev: Dev, everturn: Run) -> None:
    dev.start("--no-reload")
    first = json.loads(everturn("chat", "echo", "--id", "c1", "-m", "a", "--json").stdout)
    dev.stop()
    dev.start("--no-reload")
    second = json.loads(everturn("chat", "echo", "--id", "c1", "-m", "b", "--json").stdout)

    assert (first["text"], second["text"]) == ("one: a", "one: b")
    assert int(second["lastEventId"]) > int(first["lastEventId"])
    shown = json.loads(everturn("sessions", "show", "c1", "--json").stdout)
    assert shown["externalId"] == "c1"


def test_another_app_on_the_same_store_is_greeted_with_its_own_agents_once_they_serve(
    dev: Dev, everturn: Run, folder: Path
) -> None:
    dev.start("--no-reload")
    dev.stop()
    (folder / "app.py").write_text(APP.format(answer="two").replace("echo", "other"))
    dev.start("--no-reload")
    dev.until("everturn chat other")

    greeting = dev.log_text().split("everturn is up on ")[-1]
    assert "agents      other\n" in greeting
    assert everturn("chat", "other", "-m", "a").stdout.strip() == "two: a"


def test_saving_the_app_takes_the_new_code_and_hands_idle_sessions_over(
    dev: Dev, everturn: Run, folder: Path
) -> None:
    dev.start()
    assert everturn("chat", "echo", "--id", "c1", "-m", "a").stdout.strip() == "one: a"
    (folder / "app.py").write_text(APP.format(answer="two"))
    dev.until("running the new code")
    assert everturn("chat", "echo", "--id", "c1", "-m", "b").stdout.strip() == "two: b"


def test_saving_broken_code_keeps_the_old_code_running(
    dev: Dev, everturn: Run, folder: Path
) -> None:
    dev.start()
    (folder / "app.py").write_text("def broken(:\n")
    dev.until("not reloaded")
    assert everturn("chat", "echo", "-m", "a").stdout.strip() == "one: a"


def test_a_killed_worker_is_started_again(dev: Dev, everturn: Run, folder: Path) -> None:
    dev.start("--no-reload")
    assert dev.process is not None
    os.kill(child_of(dev.process.pid), signal.SIGKILL)
    dev.until("was killed by signal 9")
    assert everturn("chat", "echo", "-m", "a").stdout.strip() == "one: a"


def child_of(pid: int) -> int:
    """The worker process below `everturn dev`."""
    import psutil

    for child in psutil.Process(pid).children():
        if "worker" in child.cmdline():
            return child.pid
    raise AssertionError("dev has no worker")


def test_chat_takes_lines_from_standard_input(dev: Dev, everturn: Run) -> None:
    dev.start("--no-reload")
    shown = everturn("chat", "echo", stdin="hello\nagain\n/quit\n")

    assert shown.stdout.split("\n")[:2] == ["one: hello", "one: again"]
    assert shown.returncode == 0


def test_sessions_and_runs_are_listed_shown_closed_and_cancelled(dev: Dev, everturn: Run) -> None:
    dev.start("--no-reload")
    everturn("chat", "echo", "--id", "c1", "-m", "a")
    (session,) = json.loads(everturn("sessions", "list", "--json").stdout)
    run_id = session["currentRunId"]

    assert "c1" in everturn("sessions", "list").stdout
    assert run_id in everturn("runs", "list", "--task", "echo").stdout
    assert json.loads(everturn("runs", "show", run_id, "--json").stdout)["taskIdentifier"] == "echo"
    assert everturn("sessions", "close", "c1", "--reason", "done").stdout.strip() == "closed c1"
    assert json.loads(everturn("sessions", "list", "--status", "CLOSED", "--json").stdout)
    assert everturn("runs", "cancel", run_id).returncode == 0
    assert everturn("sessions", "show", "nobody").returncode == 1
    assert everturn("runs", "show", "run_nothing").returncode == 1
    refused = everturn("chat", "echo", "--id", "c1", "-m", "b")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    unknown = everturn("chat", "nobody", "-m", "b")
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr
    assert "Agents that are known there: echo" in unknown.stderr
