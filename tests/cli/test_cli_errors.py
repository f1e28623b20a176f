"""Every mistake gets one clear line on standard error, and an exit status that says so."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from commands import Run

COMMANDS = ["dev", "server", "worker", "migrate", "keys", "chat", "sessions", "runs"]
SUBCOMMANDS = [
    ("sessions", "list"),
    ("sessions", "show"),
    ("sessions", "follow"),
    ("sessions", "close"),
    ("runs", "list"),
    ("runs", "show"),
    ("runs", "cancel"),
    ("keys", "create"),
    ("keys", "list"),
    ("keys", "revoke"),
]


def test_help_names_every_command_with_what_it_does(everturn: Run) -> None:
    shown = everturn("--help")

    assert shown.returncode == 0
    lines = {line.split()[1]: line for line in shown.stdout.splitlines() if line.startswith("│ ")}
    for command in COMMANDS:
        assert len(lines[command].split()) > 4, f"{command} is not explained"


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), *SUBCOMMANDS], ids=" ".join)
def test_each_command_explains_itself(everturn: Run, command: tuple[str, ...]) -> None:
    shown = everturn(*command, "--help")

    assert shown.returncode == 0
    assert "Usage: everturn " + " ".join(command) in shown.stdout
    assert shown.stderr == ""


def one_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("error:")]
    assert "Traceback" not in text
    return line


def test_a_wrong_command_suggests_the_right_one(everturn: Run) -> None:
    shown = everturn("sesions")

    assert shown.returncode != 0
    assert 'Did you mean "sessions"?' in shown.stdout + shown.stderr


def test_a_missing_app_file_is_named(everturn: Run) -> None:
    shown = everturn("dev", "nowhere.py", "--port", "0")

    assert shown.returncode == 1
    assert one_line(shown.stderr) == "error: there is no file nowhere.py"


def test_a_syntax_error_is_named_with_its_line(everturn: Run, folder: Path) -> None:
    (folder / "app.py").write_text("x = 1\ndef broken(:\n    pass\n")
    shown = everturn("dev", "app.py", "--port", "0")

    assert shown.returncode == 1
    assert one_line(shown.stderr) == "error: app.py, line 2: invalid syntax"


def test_an_app_without_agents_is_named(everturn: Run, folder: Path) -> None:
    (folder / "app.py").write_text("x = 1\n")
    shown = everturn("dev", "app.py", "--port", "0")

    assert shown.returncode == 1
    assert one_line(shown.stderr) == "error: app.py defines no agents and no tasks"


def test_an_app_that_fails_to_import_names_cause_and_line(everturn: Run, folder: Path) -> None:
    (folder / "app.py").write_text("import nothing_of_that_name\n")
    shown = everturn("dev", "app.py", "--port", "0")

    assert shown.returncode == 1
    line = one_line(shown.stderr)
    assert "app.py:1" in line
    assert "No module named 'nothing_of_that_name'" in line


@pytest.mark.parametrize("command", [("dev", "app.py"), ("server",)], ids=["dev", "server"])
def test_a_taken_port_is_named_with_what_to_do(everturn: Run, command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shown = everturn(*command, "--port", str(port))

    assert shown.returncode == 1
    assert one_line(shown.stderr) == f"error: port {port} on 127.0.0.1 is taken"
    assert f"--port {port + 1}" in shown.stderr


def test_a_worker_without_a_key_says_where_one_comes_from(everturn: Run) -> None:
    shown = everturn("worker", "app.py")

    assert shown.returncode == 1
    assert one_line(shown.stderr) == "error: no secret key: a worker signs in with one"
    assert "EVERTURN_SECRET_KEY" in shown.stderr


def test_a_data_directory_that_another_server_has_open_is_named(
    everturn: Run, folder: Path
) -> None:
    import fcntl

    (folder / ".everturn").mkdir()
    with (folder / ".everturn" / "streams.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = everturn("server", "--port", "0")

    assert shown.returncode == 1
    assert "streams.db" in one_line(shown.stderr)


def test_keys_are_shown_once_listed_by_hint_and_revoked(everturn: Run) -> None:
    secret = everturn("keys", "create", "--env", "prod").stdout.strip()
    assert secret.startswith("tr_prod_")
    listed = everturn("keys", "list", "--env", "prod")
    assert secret not in listed.stdout
    key_id = listed.stdout.splitlines()[1].split()[0]
    assert everturn("keys", "revoke", key_id, "--env", "prod").returncode == 0
    assert "revoked" in everturn("keys", "list", "--env", "prod").stdout
    missing = everturn("keys", "revoke", "key_nothing", "--env", "prod")
    assert missing.returncode == 1
    assert one_line(missing.stderr) == "error: there is no key key_nothing in prod"


def test_migrate_creates_the_schema_once_and_then_says_up_to_date(everturn: Run) -> None:
    assert everturn("migrate", "--check").returncode == 1
    assert everturn("migrate").stdout.strip() == "created"
    assert everturn("migrate").stdout.strip() == "up to date"
    assert everturn("migrate", "--check").returncode == 0


@pytest.mark.parametrize(
    "command",
    [("chat", "support"), ("chat", "support", "-m", "hi"), ("sessions", "list"), ("runs", "list")],
    ids=" ".join,
)
def test_a_client_without_a_key_says_where_one_comes_from(
    everturn: Run, command: tuple[str, ...]
) -> None:
    said = everturn(*command, stdin="hello\n")

    assert said.returncode == 1
    assert "no secret key" in one_line(said.stderr)


@pytest.mark.parametrize(
    "command",
    [("chat", "support"), ("sessions", "list"), ("runs", "show", "run_1")],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_named(everturn: Run, command: tuple[str, ...]) -> None:
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        said = everturn(
            *command, stdin="hi\n", EVERTURN_API_URL=url, EVERTURN_SECRET_KEY="tr_dev_x"
        )

    assert said.returncode == 1
    assert f"cannot reach the server at {url}" in one_line(said.stderr)
