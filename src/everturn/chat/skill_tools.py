"""The three tools a model uses skills with: `loadSkill`, `readFile`, `bash` (R-191).

What a model asks for is not trusted. A file must lie inside its skill's folder after every
symbolic link was followed; a command runs in that folder, with an environment that holds none of
this process's settings, since they include keys. It is not a sandbox: a command can do what the
worker's user can do, and whoever gives a model `bash` decides that.

Every answer is bounded, and mistakes are answers (`{"error": …}`) which the model can act on. A
command runs as its own process group; when it ends, is stopped or runs out of time, the whole
group is killed, so that nothing it started stays behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal as signals
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final

import anyio
from anyio.abc import ByteReceiveStream, Process

from everturn.chat.skills import ResolvedSkill, checked
from everturn.chat.tools import Tool, ToolContext, tool
from everturn.clock import Clock, SystemClock
from everturn.rules import limits
from everturn.tasks import runtime
from everturn.tasks.racing import within
from everturn.tasks.signals import Signal

Answer = dict[str, Any]
#: How long the output of a command that has ended is read.
DRAIN_S_MAX: Final = 1.0
#: What of the worker's environment a command sees.
_ENVIRONMENT: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "TMPDIR", "TZ", "USER")


@dataclass
class LoadSkillInput:
    """Which skill to read."""

    name: str


@dataclass
class ReadFileInput:
    """A file of a skill; `path` is relative to the skill's folder."""

    skill: str
    path: str


@dataclass
class BashInput:
    """A command, run in the skill's folder."""

    skill: str
    command: str


def build_tools(skills: Iterable[ResolvedSkill]) -> dict[str, Tool]:
    """The tools for these skills, by name.

    Raises TypeError for what is no resolved skill, ValueError for two of one name.
    """
    known = {skill.name: skill for skill in checked(skills)}

    async def load_skill(given: LoadSkillInput) -> Answer:
        return _loaded(known, given.name)

    async def read_file(given: ReadFileInput) -> Answer:
        skill = known.get(given.skill)
        if skill is None:
            return _unknown(known, given.skill)
        return await anyio.to_thread.run_sync(_read, Path(skill.path), given.path)

    async def bash(given: BashInput, context: ToolContext) -> Answer:
        skill = known.get(given.skill)
        if skill is None:
            return _unknown(known, given.skill)
        return await run_command(given.command, skill.path, context.signal, _clock())

    return {
        "loadSkill": tool(
            load_skill,
            name="loadSkill",
            description="Read the instructions of a skill. Do so before you use it.",
        ),
        "readFile": tool(
            read_file,
            name="readFile",
            description="Read a file of a skill, by its path relative to the skill's folder.",
        ),
        "bash": tool(
            bash,
            name="bash",
            description="Run a shell command in the folder of a skill.",
        ),
    }


def _unknown(known: Mapping[str, ResolvedSkill], name: str) -> Answer:
    return {"error": f"there is no skill {name!r}; there are: {', '.join(known) or 'none'}"}


def _loaded(known: Mapping[str, ResolvedSkill], name: str) -> Answer:
    skill = known.get(name)
    if skill is None:
        return _unknown(known, name)
    return {
        "name": skill.name,
        "description": skill.description,
        "body": skill.body,
        "path": skill.path,
    }


# --- files ----------------------------------------------------------------------------------------


def _read(folder: Path, path: str) -> Answer:
    """A file of a folder as text, cut at limits.SKILL_FILE_BYTES_MAX."""
    try:
        file = _inside(folder, path)
        if file is None:
            return {"error": f"{path!r} is not inside the skill's folder"}
        # Not what is at the end of a pipe or of a device: reading it could take for ever.
        if not file.is_file():
            return {"error": f"there is no file {path!r}"}
        with file.open("rb") as opened:
            data = opened.read(limits.SKILL_FILE_BYTES_MAX)
            size = os.fstat(opened.fileno()).st_size
    except (OSError, ValueError) as error:
        return {"error": f"{path!r} cannot be read: {_said(error)}"}
    text = data.decode("utf-8", "replace")
    if size > len(data):
        text += f"\n[cut: {size - len(data)} of {size} bytes are left out]"
    return {"content": text}


def _inside(folder: Path, path: str) -> Path | None:
    """The file a relative path leads to, links followed; None when that is outside."""
    asked = Path(path)
    if asked.is_absolute() or ".." in asked.parts:
        return None
    found = (folder / asked).resolve()
    return found if found.is_relative_to(folder.resolve()) else None


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- commands -------------------------------------------------------------------------------------


class _Kept:
    """The first bytes of a stream, and how many there were."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._bytes = 0

    async def read(self, stream: ByteReceiveStream) -> None:
        """Read to the end, also what is not kept: a full pipe would hold the command up."""
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for piece in stream:
                self._bytes += len(piece)
                room = limits.SKILL_STREAM_BYTES_MAX - len(self._data)
                self._data += piece[: max(0, room)]

    def text(self) -> str:
        dropped = self._bytes - len(self._data)
        text = self._data.decode("utf-8", "replace")
        return f"{text}\n[cut: {dropped} bytes are left out]" if dropped else text


async def run_command(command: str, folder: str, stop: Signal, clock: Clock) -> Answer:
    """Run a shell command in a folder; `{exitCode, stdout, stderr}`, or `{error}`.

    It is killed when `stop` is aborted, when whoever awaits this is cancelled, and after
    limits.SKILL_COMMAND_S_MAX seconds.
    """
    try:
        process = await anyio.open_process(
            [shutil.which("bash") or "/bin/sh", "-c", command],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            cwd=folder,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return {"error": f"the command cannot be run: {_said(error)}"}
    out, err = _Kept(), _Kept()
    undo = stop.on_abort(lambda _: _kill(process))
    try:
        in_time = await within(
            clock, limits.SKILL_COMMAND_S_MAX, lambda: _finished(process, out, err)
        )
    finally:
        undo()
        _kill(process)
        with anyio.CancelScope(shield=True):
            # Bounded by the kill: nothing can ignore it.
            await process.aclose()
    if stop.aborted:
        return {"error": f"the command was stopped: {stop.reason}"}
    if not in_time:
        return {"error": f"the command did not end within {limits.SKILL_COMMAND_S_MAX:.0f} s"}
    return {"exitCode": process.returncode, "stdout": out.text(), "stderr": err.text()}


async def _finished(process: Process, out: _Kept, err: _Kept) -> None:
    assert process.stdout is not None, "opened with pipes"
    assert process.stderr is not None, "opened with pipes"
    async with anyio.create_task_group() as readers:
        readers.start_soon(out.read, process.stdout)
        readers.start_soon(err.read, process.stderr)
        await process.wait()
        # What it left running holds the pipes open, and would never be waited for by anybody.
        _kill(process)
        # Something may have left the group: what the pipes hold by now is read, no more.
        readers.cancel_scope.deadline = anyio.current_time() + DRAIN_S_MAX


def _kill(process: Process) -> None:
    """Kill the command and everything it started that did not leave its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signals.SIGKILL)


def _clock() -> Clock:
    current = runtime.current_or_none()
    return current.clock if current is not None else SystemClock()
