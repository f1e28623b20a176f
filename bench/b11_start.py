"""B-11: how long until something is up, against `python -c "import pydantic_ai"`.

Targets: --help <= 0.3x, server ready <= 1x, worker ready <= 1.5x, `everturn dev` ready <= 2x.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from everturn.testing.processes import System

APP = Path(__file__).parent.parent / "examples" / "assistant.py"
ROUNDS = 3


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def python(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL
    )


def server_and_worker() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder), APP)
        try:
            return timed(system.start_server), timed(system.start_worker)
        finally:
            system.close()


def dev() -> float:
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder), APP)  # for its port and key
        command = ["dev", str(APP), "--port", str(system.port), "--data-dir", folder]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "everturn", *command, "--no-reload"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "EVERTURN_SECRET_KEY": system.key},
        )
        try:
            while time.perf_counter() - started < 60:
                try:
                    urllib.request.urlopen(system.url + "/readyz", timeout=1).close()
                    return time.perf_counter() - started
                except (OSError, urllib.error.URLError):
                    time.sleep(0.01)
            raise SystemExit("everturn dev was not ready within 60 s")
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    median = statistics.median
    limit = median(timed(python("-c", "import pydantic_ai")) for _ in range(ROUNDS))
    print(f"{'what':<22}{'seconds':>9}{'ratio':>8}{'target':>8}")
    print(f"{'import pydantic_ai':<22}{limit:>9.2f}{1:>8.2f}")
    helped = median(timed(python("-m", "everturn", "--help")) for _ in range(ROUNDS))
    pairs = [server_and_worker() for _ in range(ROUNDS)]
    rows = [
        ("everturn --help", helped, 0.3),
        ("server ready", median(a for a, _ in pairs), 1.0),
        ("worker ready", median(b for _, b in pairs), 1.5),
        ("everturn dev ready", median(dev() for _ in range(ROUNDS)), 2.0),
    ]
    for name, seconds, target in rows:
        print(f"{name:<22}{seconds:>9.2f}{seconds / limit:>8.2f}{target:>8.2f}")


if __name__ == "__main__":
    main()
