"""The command as a person runs it: a process of its own, in a folder of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from everturn.testing.processes import EverturnProcess, free_port

Run = Callable[..., subprocess.CompletedProcess[str]]

APP = """
from everturn import chat

@chat.agent("echo")
async def echo(turn):
    return "{answer}: " + chat.text_of(turn.ui_messages[-1])
"""


class Dev:
    """`everturn dev app.py` in a folder, started and stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: EverturnProcess | None = None

    def start(self, *arguments: str) -> None:
        self.process = EverturnProcess(
            ["dev", "app.py", "--port", str(self.port), *arguments],
            self.folder / "dev.log",
            {"NO_COLOR": "1"},
            cwd=self.folder,
        )
        self.until("everturn chat ")  # the last line it greets with

    def until(self, text: str) -> None:
        assert self.process is not None
        self.process.until_logged(text)

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()

    def log_text(self) -> str:
        return (self.folder / "dev.log").read_text()
