"""Examples as modules, for the tests that run them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from everturn.client.config import configure
from everturn.tasks import registry
from everturn.testing.processes import System

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def load(name: str) -> ModuleType:
    """An example as a module of its own, with its agents in a registry of their own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with registry.collecting(registry.Registry()):
        spec.loader.exec_module(module)
    return module


@contextmanager
def serving(folder: Path, example: str) -> Iterator[System]:
    """A server, and a worker with the example's app; calls of this process go there."""
    with System(folder, EXAMPLES / f"{example}.py") as system:
        configure(url=system.url, secret_key=system.key)
        try:
            yield system
        finally:
            configure()


def run_script(system: System, example: str) -> list[str]:
    """Run an example as its docstring says; the lines it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py")],
        env={**os.environ, "EVERTURN_API_URL": system.url, "EVERTURN_SECRET_KEY": system.key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stderr}\n{system.logs()}"
    return done.stdout.splitlines()


def user(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}
