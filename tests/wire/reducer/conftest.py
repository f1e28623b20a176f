"""The AI SDK's reducer, as a process that answers one stream at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


class Oracle:
    """What the AI SDK makes of chunks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def reduce(self, chunks: list[dict[str, Any]], seed: dict[str, Any] | None = None) -> Any:
        """`(message, whether a chunk was refused)`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"seed": seed, "chunks": chunks}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the AI SDK's process ended"
        answer = json.loads(line)
        return answer["message"], answer["refused"]


@pytest.fixture(scope="session")
def reducer_folder() -> Path:
    """A folder with the script and its packages, by lock file. Fails where npm is missing."""
    npm = shutil.which("npm")
    assert npm, "npm is missing: install Debian's packages nodejs and npm"
    lock = (HERE / "package-lock.json").read_bytes()
    folder = ROOT / ".cache" / "npm-reducer" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "node_modules" / ".package-lock.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder / name)
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True
        )
    shutil.copy(HERE / "reduce.mjs", folder / "reduce.mjs")
    return folder


@pytest.fixture(scope="session")
def oracle(reducer_folder: Path) -> Iterator[Oracle]:
    node = shutil.which("node")
    assert node, "node is missing: install Debian's package nodejs"
    with subprocess.Popen(
        [node, "reduce.mjs"],
        cwd=reducer_folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Oracle(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0
