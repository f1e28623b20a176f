"""Skills: folders of instructions that a model reads when it needs them (chat-agent §4.8).

A skill is a folder with a `SKILL.md`: front matter that says what it is called and what it is
for, then the instructions; beside it whatever these refer to. The model is told name and
description of each skill in its instructions, and has three tools to go on with: `loadSkill`,
`readFile` and `bash` (`skill_tools`).

`define` declares a skill; `local` reads it from disk. `chat.skills.set([...])` gives skills to a
run, and `chat.run_options` takes them from there, through `contribution`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio.to_thread
import msgspec

from everturn.chat.catalog import Catalog
from everturn.chat.state import current_run, current_run_or_none
from everturn.errors import ConfigurationError, Unprocessable
from everturn.rules import limits

LOCAL_VERSION: Final = "local"
SKILL_FILE: Final = "SKILL.md"
#: Where a build puts the folders of the skills an app defines, under the working directory.
BUNDLED: Final = Path(".trigger", "skills")
_declared: Final = Catalog("skill")


class ResolvedSkill(msgspec.Struct, frozen=True, kw_only=True):
    """A skill as it was read.

    Attributes:
        version, labels: `local`: read from this machine's disk.
        skill_md: the whole `SKILL.md`.
        frontmatter: what it says of itself; `name` and `description` are there.
        body: the instructions, without the front matter.
        path: the folder, absolute and without symbolic links.
    """

    id: str
    skill_md: str
    frontmatter: dict[str, str]
    body: str
    path: str
    version: str = LOCAL_VERSION
    labels: tuple[str, ...] = ("local",)

    @property
    def name(self) -> str:
        """What the model calls it by."""
        return self.frontmatter["name"]

    @property
    def description(self) -> str:
        """What it is for, as the model is told."""
        return self.frontmatter["description"]


class Skill:
    """A declared skill. Made by `skills.define`."""

    def __init__(self, id: str, path: str, declared_in: Path) -> None:
        self.id = id
        self.path = path
        self._declared_in = declared_in

    async def local(self) -> ResolvedSkill:
        """Read the skill from disk.

        From `.trigger/skills/<id>` under the working directory when a build put it there, else
        from the path it was defined with: relative to the file that defines it, else to the
        working directory.

        Raises ConfigurationError when there is no `SKILL.md`, or one that is no skill's.
        """
        return await anyio.to_thread.run_sync(self._read)

    async def resolve(self) -> NoReturn:
        """Not available: skills are not stored on a server. Raises Unprocessable."""
        raise Unprocessable(f"skill {self.id!r}: skills are read from disk, use .local()")

    def _read(self) -> ResolvedSkill:
        places = (BUNDLED / self.id, self._declared_in / self.path, Path(self.path))
        folder = next((place for place in places if (place / SKILL_FILE).is_file()), None)
        if folder is None:
            looked = ", ".join(str(place) for place in places)
            raise ConfigurationError(f"skill {self.id!r} has no {SKILL_FILE}; looked in {looked}")
        file = folder / SKILL_FILE
        if file.stat().st_size > limits.SKILL_MD_BYTES_MAX:
            raise ConfigurationError(
                f"{file} is {file.stat().st_size} bytes, at most {limits.SKILL_MD_BYTES_MAX}"
            )
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{file} is not UTF-8 text") from error
        frontmatter, body = parse_skill(text, str(file))
        return ResolvedSkill(
            id=self.id,
            skill_md=text,
            frontmatter=frontmatter,
            body=body,
            path=str(folder.resolve()),
        )

    def __repr__(self) -> str:
        return f"<skill {self.id!r}>"


def define(id: str, path: str) -> Skill:
    """Declare a skill: a folder with a `SKILL.md`.

    Args:
        id: unique in the project; one name of a folder.
        path: the folder.

    Raises ConfigurationError when another line declares the id.
    """
    if Path(id).name != id or id in (".", ".."):
        raise ConfigurationError(f"a skill id is the name of a folder, not {id!r}")
    place = _declared.declare(id)
    return Skill(id, path, Path(place.rpartition(":")[0]).parent)


def parse_skill(text: str, place: str) -> tuple[dict[str, str], str]:
    """Front matter and body of a `SKILL.md`.

    The front matter stands between two `---` lines at the top: flat `key: value` pairs, quotes
    around a value taken off, lines that begin with `#` ignored.

    Raises ConfigurationError, naming `place`: no front matter, or no name or description in it.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        raise ConfigurationError(f"{place} does not begin with front matter between --- lines")
    end = next((n for n, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        raise ConfigurationError(f"{place}: the front matter has no closing --- line")
    fields = dict(filter(None, map(_field, lines[1:end])))
    for needed in ("name", "description"):
        if not fields.get(needed):
            raise ConfigurationError(f"{place}: the front matter has no {needed}")
    return fields, "\n".join(lines[end + 1 :]).strip()


def _field(line: str) -> tuple[str, str] | None:
    if line.lstrip().startswith("#"):
        return None
    key, colon, value = line.partition(":")
    if not colon or not key.strip():
        return None
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return key.strip(), value


# --- the skills of a chat -------------------------------------------------------------------------


class ChatSkills:
    """`chat.skills`: the skills of the run this is called in."""

    def __call__(self) -> list[ResolvedSkill] | None:
        """The skills that were set; None before. Raises ChatContextError outside of a run."""
        stored = current_run().skills
        return None if stored is None else list(stored)

    def set(self, skills: Iterable[ResolvedSkill]) -> None:
        """Give the run these skills, in place of those it had.

        Raises:
            TypeError: something else than a resolved skill.
            ValueError: two skills of one name; the model could not tell them apart.
        """
        current_run().skills = checked(skills)


skills: Final = ChatSkills()


def checked(given: Iterable[ResolvedSkill]) -> tuple[ResolvedSkill, ...]:
    """Resolved skills of different names. Raises TypeError and ValueError."""
    found = tuple(given)
    names: set[str] = set()
    for skill in found:
        if not isinstance(skill, ResolvedSkill):
            raise TypeError(f"expected a resolved skill (`await skill.local()`), not {skill!r}")
        if skill.name in names:
            raise ValueError(f"there are two skills named {skill.name!r}")
        names.add(skill.name)
    return found


def contribution() -> dict[str, Any]:
    """What the run's skills give to a call of the model, as plain data for `chat.run_options`.

    Keys: `instructions` (text, may be empty) and `tools` (declared tools by name).
    """
    run = current_run_or_none()
    stored = run.skills if run is not None else None
    if not stored:
        return {"instructions": "", "tools": {}}
    from everturn.chat.skill_tools import build_tools

    return {"instructions": preamble(stored), "tools": build_tools(stored)}


def preamble(skills: Iterable[ResolvedSkill]) -> str:
    """What the model's instructions say about its skills: one line for each."""
    lines = [f"- {skill.name}: {skill.description}" for skill in skills]
    return "\n".join(
        [
            "You have skills: instructions for particular tasks, with files and scripts. When a "
            "task matches one, call `loadSkill` with its name and read it before you go on.",
            "",
            "Available skills:",
            *lines,
        ]
    )
