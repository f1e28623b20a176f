"""Follows a page word for word: writes its files, runs its commands, compares what they print.

A comment of Markdown before a block says what a reader does with it:

    <!-- file: NAME -->               save the block under that name
    <!-- sh -->                       run it to its end, which is a good one
    <!-- sh: stays NAME -->           run it in a terminal of its own
    <!-- sh: while NAME says TEXT --> run it as soon as that terminal shows the text
    <!-- sh: wait NAME TEXT -->       read on when that terminal shows the text; has no block
    <!-- sh: stop NAME -->            Ctrl-C in that terminal; has no block
    <!-- prints -->                   the command before printed these lines, `…` being anything
    <!-- prints: NAME -->             that terminal shows them, in time

What a suite may not do for real is done by stand-ins that come first on the path (`stand_ins.py`):
the registries' `pip` and `npm`, and the system's users and services.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

DEADLINE_S: Final = 60.0
_STEP: Final = re.compile(
    r"<!-- (?P<what>file|sh|prints)(?:: (?P<how>[^>]+?))? -->\n(?:```\w*\n(?P<text>.*?)```\n)?",
    re.DOTALL,
)


class Step(NamedTuple):
    """One thing a reader does."""

    line: int
    what: str
    how: str
    text: str


def steps(page: str) -> Iterator[Step]:
    """What a page has its reader do, in its order."""
    for found in _STEP.finditer(page):
        line = page.count("\n", 0, found.start()) + 1
        yield Step(line, found["what"], found["how"] or "", found["text"] or "")


class Terminal:
    """A command that goes on while others are typed. Its output, in a file, is read once."""

    def __init__(self, command: str, folder: Path, env: Mapping[str, str], output: Path) -> None:
        self._output = output
        self._read = 0
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,
            )

    def shown(self) -> str:
        return self._output.read_text(errors="replace")

    def until(self, text: str) -> None:
        """Return when, behind what was waited for before, a text is shown."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.compile(pattern(text)).search(self.shown(), self._read)):
            assert time.monotonic() < deadline, f"never showed {text!r}:\n{self.shown()}"
            time.sleep(0.02)
        self._read = found.end()

    def interrupt(self) -> None:
        """Ctrl-C, which reaches everything the command started; return when all of it has ended."""
        deadline = time.monotonic() + DEADLINE_S
        number: int = signal.SIGINT
        while self._process.poll() is None or _lives(self._process.pid):
            with suppress(ProcessLookupError):
                if number:
                    os.killpg(self._process.pid, number)
            number = signal.SIGKILL if time.monotonic() > deadline else 0
            time.sleep(0.02)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def pattern(text: str) -> str:
    """A text as an expression, in which `…` stands for anything on its line."""
    return re.escape(text).replace("…", ".*")


class Reader:
    """Somebody who does what a page says.

    Args:
        folder: the empty folder the page begins in.
        env: the environment of every command.
        instead: texts of the page, and what stands for them here: ports and folders.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], instead: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = env
        self.instead = dict(instead)
        self.terminals: dict[str, Terminal] = {}
        self.printed = ""

    def here(self, text: str) -> str:
        """A text of the page, as it is on this machine."""
        for written, meant in self.instead.items():
            text = text.replace(written, meant)
        return text

    def do(self, step: Step) -> None:
        """Take one step. What goes wrong names the line of the page."""
        try:
            getattr(self, f"_{step.what}")(self.here(step.how), self.here(step.text))
        except AssertionError as error:
            raise AssertionError(f"line {step.line}, {step.what} {step.how}: {error}") from error

    def close(self) -> None:
        """End what is still running."""
        for terminal in self.terminals.values():
            terminal.interrupt()

    def _file(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _sh(self, how: str, text: str) -> None:
        match how.split(maxsplit=3):
            case []:
                self._run(text)
            case ["while", name, "says", shown]:
                self.terminals[name].until(shown)
                self._run(text)
            case ["stays", name]:
                if name in self.terminals:
                    self.terminals.pop(name).interrupt()
                output = self._folder / f".{name}.terminal"
                self.terminals[name] = Terminal(text, self._folder, self._env, output)
            case ["wait", name, shown, *more]:
                self.terminals[name].until(" ".join([shown, *more]))
            case ["stop", name]:
                self.terminals.pop(name).interrupt()
            case _:
                raise AssertionError(f"nobody knows how to {how!r}")

    def _run(self, text: str) -> None:
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * DEADLINE_S,
            check=False,
        )
        self.printed = done.stdout
        assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}"

    def _prints(self, name: str, text: str) -> None:
        for line in text.splitlines():
            if name:
                self.terminals[name].until(line)
            else:
                assert re.search(pattern(line), self.printed), f"{line!r} not in:\n{self.printed}"
