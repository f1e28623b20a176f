"""Runs scenarios of the Node scripts against a system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from everturn.testing.processes import System


class Driver:
    """Runs scenarios of a script (drive.mjs unless another is named) against a system."""

    def __init__(self, folder: Path, system: System, script: str = "drive.mjs") -> None:
        self._script = script
        self._folder = folder
        self._system = system

    def start(self, scenario: str, **arguments: Any) -> subprocess.Popen[str]:
        node = shutil.which("node")
        assert node, "node is missing: install Debian's package nodejs"
        return subprocess.Popen(
            [node, self._script, scenario, json.dumps(arguments)],
            cwd=self._folder,
            env={
                **os.environ,
                "TRIGGER_API_URL": self._system.url,
                "TRIGGER_SECRET_KEY": self._system.key,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, scenario: str, **arguments: Any) -> Any:
        return self.finish(self.start(scenario, **arguments))

    def finish(self, process: subprocess.Popen[str]) -> Any:
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, f"{errors}\n{self._system.logs()}"
        return json.loads(out.strip().splitlines()[-1])
