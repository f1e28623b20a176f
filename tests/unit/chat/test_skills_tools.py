"""Skills and the tools a model uses them with (§4.8; R-191, R-192)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from everturn import chat, skills
from everturn.chat.skill_tools import BashInput, LoadSkillInput, ReadFileInput, run_command
from everturn.chat.skills import contribution, parse_skill
from everturn.chat.tools import ToolContext
from everturn.clock import SystemClock
from everturn.errors import ConfigurationError, Unprocessable
from everturn.rules import limits
from everturn.tasks.signals import Signal
from everturn.testing.clock import VirtualClock
from everturn.testing.harness import mock_chat_agent

pytestmark = pytest.mark.anyio

SKILL = """---
name: "pdf"
# a comment
description: 'Reads: PDF files'
---

# How to read

Use the script.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pdf-skill"
    made.mkdir()
    (made / "SKILL.md").write_text(SKILL)
    (made / "notes.txt").write_text("hello")
    (tmp_path / "secret.txt").write_text("secret")
    return made


async def tools_of(folder: Path) -> dict[str, Any]:
    return dict(skills.build_tools([await skills.Skill("pdf", str(folder), folder).local()]))


async def call(tools: dict[str, Any], name: str, given: Any, stop: Signal | None = None) -> Any:
    context = ToolContext(chat_id=None, tool_call_id="c", signal=stop or Signal())
    return await tools[name].call(given, context)


class TestReading:
    async def test_a_skill_is_read_with_its_front_matter(self, folder: Path) -> None:
        made = await skills.define("test-pdf", str(folder)).local()

        assert (made.id, made.version, made.labels) == ("test-pdf", "local", ("local",))
        assert made.frontmatter == {"name": "pdf", "description": "Reads: PDF files"}
        assert made.body == "# How to read\n\nUse the script."
        assert made.skill_md == SKILL
        assert made.path == str(folder.resolve())

    async def test_a_bundled_folder_is_taken_before_the_declared_one(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundled = tmp_path / ".trigger" / "skills" / "test-bundled"
        bundled.mkdir(parents=True)
        (bundled / "SKILL.md").write_text(SKILL.replace("pdf", "bundled"))
        monkeypatch.chdir(tmp_path)

        made = await skills.define("test-bundled", str(folder)).local()

        assert made.name == "bundled"
        assert made.path == str(bundled)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("no front matter", "does not begin"),
            ("---\nname: a\n", "no closing"),
            ("---\nname: a\n---\n", "no description"),
            ("---\ndescription: a\n---\n", "no name"),
            ("---\nname: ''\ndescription: a\n---\n", "no name"),
        ],
    )
    def test_a_skill_without_name_or_description_is_refused(self, text: str, problem: str) -> None:
        """R-192."""
        with pytest.raises(ConfigurationError, match=f"x/SKILL.md.*{problem}"):
            parse_skill(text, "x/SKILL.md")

    async def test_a_file_that_is_no_text_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "SKILL.md").write_bytes(b"---\nname: caf\xe9\ndescription: x\n---\n")
        with pytest.raises(ConfigurationError, match=r"SKILL\.md is not UTF-8"):
            await skills.define("not-utf-8", str(tmp_path)).local()

    async def test_a_missing_folder_and_the_server_are_clear_errors(self, tmp_path: Path) -> None:
        skill = skills.define("test-missing", str(tmp_path / "nothing"))

        with pytest.raises(ConfigurationError, match=r"has no SKILL.md; looked in"):
            await skill.local()
        with pytest.raises(Unprocessable):
            await skill.resolve()
        with pytest.raises(ConfigurationError):
            skills.define("../up", ".")


class TestLoadingAndFiles:
    async def test_load_skill_gives_the_instructions_or_names_the_known_ones(
        self, folder: Path
    ) -> None:
        tools = await tools_of(folder)

        assert await call(tools, "loadSkill", LoadSkillInput("pdf")) == {
            "name": "pdf",
            "description": "Reads: PDF files",
            "body": "# How to read\n\nUse the script.",
            "path": str(folder.resolve()),
        }
        unknown = await call(tools, "loadSkill", LoadSkillInput("doc"))
        assert unknown == {"error": "there is no skill 'doc'; there are: pdf"}

    async def test_read_file_reads_inside_the_folder(self, folder: Path) -> None:
        tools = await tools_of(folder)
        (folder / "link.txt").symlink_to(folder / "notes.txt")

        for path in ("notes.txt", "./notes.txt", "link.txt"):
            assert await call(tools, "readFile", ReadFileInput("pdf", path)) == {"content": "hello"}

    async def test_read_file_refuses_every_way_out_of_the_folder(self, folder: Path) -> None:
        """R-191."""
        tools = await tools_of(folder)
        (folder / "out.txt").symlink_to(folder.parent / "secret.txt")
        (folder / "up").symlink_to(folder.parent)
        os.mkfifo(folder / "pipe")
        (folder / "sub").mkdir()
        outside = ("../secret.txt", str(folder / "notes.txt"), "sub/../notes.txt")

        for path in (*outside, "out.txt", "up/secret.txt"):
            answer = await call(tools, "readFile", ReadFileInput("pdf", path))
            assert answer == {"error": f"{path!r} is not inside the skill's folder"}
        for path in ("", "nothing.txt", "pipe", "a\0b", "up" * 5000):
            assert list(await call(tools, "readFile", ReadFileInput("pdf", path))) == ["error"]
        assert list(await call(tools, "readFile", ReadFileInput("doc", "a"))) == ["error"]

    async def test_read_file_cuts_at_1_mib_and_says_so(self, folder: Path) -> None:
        """R-191."""
        tools = await tools_of(folder)
        (folder / "big.txt").write_bytes(b"x" * (limits.SKILL_FILE_BYTES_MAX + 7))

        content = (await call(tools, "readFile", ReadFileInput("pdf", "big.txt")))["content"]

        assert content.count("x") == limits.SKILL_FILE_BYTES_MAX
        assert content.endswith("[cut: 7 of 1048583 bytes are left out]")


class TestBash:
    async def test_a_command_runs_in_the_folder_of_the_skill(self, folder: Path) -> None:
        """R-191."""
        tools = await tools_of(folder)

        answer = await call(tools, "bash", BashInput("pdf", "cat notes.txt; pwd >&2; exit 3"))

        assert answer == {"exitCode": 3, "stdout": "hello", "stderr": f"{folder.resolve()}\n"}
        assert list(await call(tools, "bash", BashInput("doc", "true"))) == ["error"]
        assert list(await call(tools, "bash", BashInput("pdf", "a\0b"))) == ["error"]

    async def test_a_command_sees_none_of_the_workers_settings(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EVERTURN_SECRET_KEY", "tr_dev_secret")
        tools = await tools_of(folder)

        answer = await call(tools, "bash", BashInput("pdf", "env"))

        assert "PATH=" in answer["stdout"]
        assert "EVERTURN" not in answer["stdout"]

    async def test_each_stream_is_cut_at_64_kib(self, folder: Path) -> None:
        """R-191."""
        tools = await tools_of(folder)
        command = "head -c 70000 /dev/zero | tr '\\0' x; head -c 70000 /dev/zero | tr '\\0' z >&2"

        answer = await call(tools, "bash", BashInput("pdf", command))

        assert answer["stdout"] == "x" * 65536 + "\n[cut: 4464 bytes are left out]"
        assert answer["stderr"].count("z") == 65536

    async def test_a_stop_kills_the_command_and_what_it_started(self, folder: Path) -> None:
        """R-191."""
        tools = await tools_of(folder)
        stop = Signal()
        os.mkfifo(folder / "begun")
        answers: list[Any] = []
        command = "sleep 60 & echo $! > begun; wait"

        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                answers.append(await call(tools, "bash", BashInput("pdf", command), stop))

            tasks.start_soon(work)
            pid = int(await anyio.Path(folder / "begun").read_text())
            stop.abort("enough")
        assert answers == [{"error": "the command was stopped: enough"}]
        await gone(pid)

    async def test_what_a_command_leaves_running_neither_holds_it_up_nor_stays(
        self, folder: Path
    ) -> None:
        answer = await run_command("sleep 60 & echo $!", str(folder), Signal(), SystemClock())

        assert answer["exitCode"] == 0
        await gone(int(answer["stdout"]))

    async def test_something_that_left_the_group_does_not_hold_the_answer_up(
        self, folder: Path
    ) -> None:
        command = "setsid sleep 60 & echo $!"

        answer = await run_command(command, str(folder), Signal(), VirtualClock())

        assert answer["exitCode"] == 0
        os.kill(int(answer["stdout"]), 9)

    async def test_a_cancelled_call_kills_its_command(self, folder: Path) -> None:
        os.mkfifo(folder / "begun")
        async with anyio.create_task_group() as tasks:
            command = "echo $$ > begun; exec sleep 60"
            tasks.start_soon(run_command, command, str(folder), Signal(), SystemClock())
            pid = int(await anyio.Path(folder / "begun").read_text())
            tasks.cancel_scope.cancel()
        await gone(pid)

    async def test_a_command_that_nobody_stops_ends_after_10_minutes(self, folder: Path) -> None:
        clock = VirtualClock()
        answers: list[Any] = []
        os.mkfifo(folder / "begun")
        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                command = "echo > begun; exec sleep 60"
                answers.append(await run_command(command, str(folder), Signal(), clock))

            tasks.start_soon(work)
            await anyio.Path(folder / "begun").read_text()
            await clock.advance(limits.SKILL_COMMAND_S_MAX)
        assert answers == [{"error": "the command did not end within 600 s"}]


async def gone(pid: int) -> None:
    """Return when no process has the id, or only a dead one that nobody waited for yet."""
    with anyio.fail_after(5):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "ZX":
                return
            await anyio.sleep(0.01)


class TestChatSkills:
    async def test_skills_of_a_chat_give_it_instructions_and_tools(self, folder: Path) -> None:
        made = await skills.Skill("pdf", str(folder), folder).local()
        seen: list[Any] = []

        @chat.agent("skilled")
        async def agent(turn: Any) -> str:
            seen.append((chat.skills(), contribution()))
            chat.skills.set([made])
            seen.append((chat.skills(), contribution()))
            return "done"

        async with mock_chat_agent(agent) as h:
            assert (await h.send_message("go")).errors == []
        assert seen[0] == (None, {"instructions": "", "tools": {}})
        found, given = seen[1]
        assert found == [made]
        assert "- pdf: Reads: PDF files" in given["instructions"]
        assert "loadSkill" in given["instructions"]
        assert sorted(given["tools"]) == ["bash", "loadSkill", "readFile"]

    async def test_what_is_no_resolved_skill_and_a_name_taken_twice_are_refused(
        self, folder: Path
    ) -> None:
        skill = skills.Skill("pdf", str(folder), folder)
        made = await skill.local()

        with pytest.raises(TypeError, match="local"):
            skills.build_tools([skill])  # type: ignore[list-item]  # the mistake this is about
        with pytest.raises(ValueError, match="two skills named 'pdf'"):
            skills.build_tools([made, made])
