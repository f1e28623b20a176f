"""The code in docs/ does what its page says: apps are asked, clients talk to an agent."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from inspect import iscoroutine
from pathlib import Path

import pytest
from example_apps import EXAMPLES, serving

from everturn import chat
from everturn.chat.definition import ChatAgent
from everturn.testing.harness import mock_chat_agent
from everturn.testing.processes import System
from everturn.worker.loading import load_app

ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
BLOCK = re.compile(r"<!-- (app|talk): (\w+) -->\n```python\n(.*?)```", re.DOTALL)
SCRIPT = re.compile(r"<!-- script: (\w+) -->\n```python\n(.*?)```", re.DOTALL)
BLOCKS = [(page, *found) for page, text in PAGES.items() for found in BLOCK.findall(text)]
APPS = [(page, name, code) for page, kind, name, code in BLOCKS if kind == "app"]
TALKS = [(page, name, code) for page, kind, name, code in BLOCKS if kind == "talk"]
#: Pages for authors: all their code is run. `testing.md` has a test of its own.
FOR_AUTHORS = (
    "agents.md",
    "clients.md",
    "failures.md",
    "history.md",
    "hooks.md",
    "loops.md",
    "messages.md",
    "output.md",
    "prompts.md",
    "tasks.md",
    "tools.md",
)


def named(blocks: list[tuple[str, str, str]]) -> list[str]:
    return [f"{page}:{name}" for page, name, _ in blocks]


@pytest.mark.anyio
@pytest.mark.parametrize(("page", "name", "code"), APPS, ids=named(APPS))
async def test_the_agents_of_a_page_answer(
    page: str, name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERTURN_OFFLINE_DELAY_MS", "0")
    shutil.copytree(EXAMPLES / "skills", tmp_path / "skills")
    (tmp_path / "app.py").write_text(code)
    definitions = load_app(str(tmp_path / "app.py")).registry.definitions
    assert definitions
    for definition in definitions.values():
        if isinstance(definition, ChatAgent):
            async with mock_chat_agent(definition) as h:
                turn = await h.send_message("hello")
                assert (turn.errors, turn.text != "") == ([], True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with serving(tmp_path_factory.mktemp("docs"), "assistant") as system:
        yield system


@pytest.mark.anyio
@pytest.mark.processes
@pytest.mark.parametrize(("page", "name", "code"), TALKS, ids=named(TALKS))
async def test_the_clients_of_a_page_get_their_answers(
    running: System, page: str, name: str, code: str
) -> None:
    """Each block is the body of an asynchronous function, with everything it needs in it."""
    compiled = compile(code, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    coroutine = eval(compiled, {"__name__": name})
    assert iscoroutine(coroutine)
    await coroutine


@pytest.mark.processes
def test_the_tasks_page_starts_and_follows_a_run(tmp_path: Path) -> None:
    """Its fortnight of waiting is made a second; the rest is as printed."""
    (code,) = (code for page, _, name, code in BLOCKS if (page, name) == ("tasks.md", "invoices"))
    ((_, script),) = SCRIPT.findall(PAGES["tasks.md"])
    (tmp_path / "app.py").write_text(code.replace("days=14", "seconds=1"))
    (tmp_path / "follow.py").write_text(script)
    with System(tmp_path, tmp_path / "app.py") as system:
        found = subprocess.run(
            [sys.executable, tmp_path / "follow.py"],
            env={"EVERTURN_API_URL": system.url, "EVERTURN_SECRET_KEY": system.key},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert found.stdout.splitlines()[-1] == "COMPLETED {'number': 7}"


@pytest.mark.parametrize("page", FOR_AUTHORS)
def test_no_python_of_a_page_for_authors_is_left_untried(page: str) -> None:
    tried = len(BLOCK.findall(PAGES[page])) + len(SCRIPT.findall(PAGES[page]))
    assert PAGES[page].count("```python") == tried


def test_every_page_and_every_example_is_listed() -> None:
    index = PAGES["README.md"]
    assert [name for name in PAGES if name not in index and name != "README.md"] == []
    listed = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in listed] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it_and_is_read_in_a_minute(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    commands = re.findall(r"(?:everturn dev|python) (examples/\w+\.py)", said)
    assert path.name == "demo.py" or commands
    assert [command for command in commands if not (ROOT / command).exists()] == []
    assert len(path.read_text().splitlines()) <= (120 if path.name == "demo.py" else 100)


def test_every_public_name_for_authors_is_on_a_page() -> None:
    pages = "\n".join(PAGES.values())
    missing = [n for n in chat.__all__ if not re.search(rf"\bchat\.{n}\b", pages)]
    assert missing == []
    also = ("AgentChat", "Compaction", "PendingMessages", "ai", "auth", "configure", "prompts")
    assert [name for name in also if not re.search(rf"\b{name}\b", pages)] == []


def test_every_page_that_is_linked_exists() -> None:
    pages = [*DOCS.glob("*.md"), *ROOT.glob("*.md"), EXAMPLES / "README.md"]
    missing = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert missing == []


def test_every_section_that_is_linked_exists() -> None:
    missing = []
    for name, text in PAGES.items():
        for target, section in re.findall(r"\]\((\w*(?:\.md)?)#([\w-]+)\)", text):
            headings = re.findall(r"^#+ (.*)$", PAGES[target or name], re.MULTILINE)
            slugs = [
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
            ]
            if section not in slugs:
                missing.append(f"{name}: {target}#{section}")
    assert missing == []
