"""Virtual environments with other releases of model libraries, and the suite run inside them.

One environment per set of requirements and per what everturn itself requires, kept in `.cache/`
between runs. Everturn is installed from the tree, editable: a kept environment always runs the
code as it is now.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache" / "libraries"
#: What the chosen test files need beside everturn.
TOOLS = ("pytest>=9", "pytest-timeout>=2.4", "hypothesis>=6.150", "opentelemetry-sdk>=1.40")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
BUILD_S = 500
RUN_S = 600


def floor_of(package: str) -> str:
    """The oldest release of a package that everturn says it works with."""
    extras = _project()["optional-dependencies"].values()
    for requirement in [*_project()["dependencies"], *itertools.chain(*extras)]:
        if found := re.fullmatch(rf"{re.escape(package)}>=([\d.]+)", requirement):
            parts = found[1].split(".")
            return ".".join([*parts, "0"][:3])
    raise LookupError(f"everturn does not require {package}")


def newest_of(package: str) -> str:
    """The newest release of a package that the index offers; without a network, the last known."""
    known = CACHE / f"{package}.newest"
    try:
        asked = _run(*PIP, "index", "versions", package, "--retries", "1", seconds=120)
    except AssertionError:
        if not known.exists():
            raise
        return known.read_text()
    found = re.search(rf"^{re.escape(package)} \(([^)]+)\)", asked, re.MULTILINE)
    if found is None:
        raise LookupError(f"the index says nothing about {package}:\n{asked}")
    CACHE.mkdir(parents=True, exist_ok=True)
    known.write_text(found[1])
    return found[1]


def environment(name: str, *requirements: str) -> Path:
    """The interpreter of an environment with everturn, the test tools and `requirements`."""
    wanted = [*_project()["dependencies"], *TOOLS, *requirements, sys.version]
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{key}"
    python = folder / "bin" / "python"
    with _locked(name):
        if not (folder / ".ready").exists():
            for outdated in CACHE.glob(f"{name}-*"):
                shutil.rmtree(outdated)
            _run(sys.executable, "-m", "venv", str(folder), seconds=BUILD_S)
            install = (str(python), *PIP[1:], "install", "--quiet", "--editable", str(ROOT))
            _run(*install, *TOOLS, *requirements, seconds=BUILD_S)
            (folder / ".ready").touch()
    return python


def run_tests(python: Path, files: Sequence[Path]) -> str:
    """Run test files in an environment. Returns pytest's last line; fails with its output."""
    assert files, "no test files were chosen"
    command = (str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files))
    return _run(*command, seconds=RUN_S).strip().splitlines()[-1]


def code_of_page(name: str) -> str:
    """A block of docs/models.md that needs one of these environments."""
    page = (ROOT / "docs" / "models.md").read_text()
    found = re.search(rf"<!-- inside: {name} -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found is not None, name
    return found[1]


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def _run(*command: str, seconds: float) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command[:6])} …\n{done.stdout[-8000:]}"
    return done.stdout


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One builder at a time: test files run beside each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
