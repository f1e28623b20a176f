"""A folder with an app, the command, and `everturn dev` running in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import APP, Dev, Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP.format(answer="one"))
    return tmp_path


@pytest.fixture
def everturn(folder: Path) -> Run:
    """Runs one command to its end and returns what it printed."""

    def run(
        *arguments: str, stdin: str | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")}
        return subprocess.run(
            [sys.executable, "-m", "everturn", *arguments],
            cwd=folder,
            env={**environment, "COLUMNS": "200", "NO_COLOR": "1", **settings},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def dev(folder: Path) -> Iterator[Dev]:
    running = Dev(folder)
    yield running
    if running.process is not None and running.process.running:
        running.stop()
