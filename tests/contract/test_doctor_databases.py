"""`everturn doctor` where the state is in a database of its own: away, misspelled, not let in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from everturn.testing.processes import free_port

pytestmark = pytest.mark.processes

WORD = "hush-hush"


def state_check(folder: Path, url: str) -> dict[str, Any]:
    """What is said of the state; the command ends as it does for any finding."""
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    settings = {"EVERTURN_DATABASE_URL": url, "EVERTURN_MASTER_KEY": "0" * 64}
    run = subprocess.run(
        [sys.executable, "-m", "everturn", "doctor", "--json", "--data-dir", str(data)],
        env={k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")} | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1, run
    assert run.stderr == ""
    assert WORD not in run.stdout
    (found,) = [one for one in json.loads(run.stdout) if one["name"] == "state"]
    assert found["status"] == "attention"
    assert "\n" not in found["found"]
    return dict(found)


def test_a_database_that_is_not_there_is_named_with_what_to_mend(tmp_path: Path) -> None:
    found = state_check(tmp_path, f"postgresql://me:{WORD}@127.0.0.1:{free_port()}/chats")
    assert "refused" in found["found"].lower()
    assert found["todo"].startswith("Start it, or mend EVERTURN_DATABASE_URL")


@pytest.mark.parametrize("change", ["password", "database"])
def test_a_database_that_does_not_let_us_in_is_told_from_one_that_is_away(
    tmp_path: Path, postgres_url: str, change: str
) -> None:
    url = make_url(postgres_url)
    wrong = (
        url.set(username="nobody-here", password=WORD)
        if change == "password"
        else url.set(database="no_such_database")
    )
    found = state_check(tmp_path, wrong.render_as_string(hide_password=False))
    assert ("nobody-here" if change == "password" else "no_such_database") in found["found"]
    assert "user or password" in found["todo"]


@pytest.mark.parametrize(
    "url",
    ["nonsense", "postgresql://a:b:c/d", "postgresql://h:port/d", "mysql://h/d", "sqlite:///"],
)
def test_an_address_that_is_none_is_said_to_be_one(tmp_path: Path, url: str) -> None:
    assert state_check(tmp_path, url)["todo"] == "Mend EVERTURN_DATABASE_URL."
