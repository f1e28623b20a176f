"""The code in docs/ loads, and defines what the page says it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everturn.worker.loading import load_app

DOCS = Path(__file__).parent.parent.parent / "docs"
BLOCK = re.compile(r"<!-- app: (\w+) -->\n```python\n(.*?)```", re.DOTALL)
BLOCKS = [
    (page.name, *found) for page in DOCS.glob("*.md") for found in BLOCK.findall(page.read_text())
]
DEFINES = {
    "streaming": ["plain"],
    "model": ["assistant"],
    "hooks": ["support"],
    "tasks": ["report"],
}


@pytest.mark.parametrize(("page", "name", "code"), BLOCKS, ids=[f"{b[0]}:{b[1]}" for b in BLOCKS])
def test_an_app_of_the_documentation_loads(page: str, name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(code)
    app = load_app(str(tmp_path / "app.py"))
    assert [definition.task_id for definition in app.registry.definitions.values()] == DEFINES[name]


def test_every_app_of_the_documentation_is_checked() -> None:
    assert {name for _, name, _ in BLOCKS} == set(DEFINES)


def test_every_page_that_is_linked_exists() -> None:
    missing = [
        f"{page.name}: {target}"
        for page in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert missing == []
