"""The tests that docs/testing.md shows pass in a project of somebody who has everturn installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "testing.md"
BLOCK = re.compile(r"<!-- test: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


def test_the_examples_of_the_page_pass(tmp_path: Path) -> None:
    """R-257: with the plugin loaded as its entry point loads it, and no server."""
    blocks = BLOCK.findall(PAGE.read_text())
    assert [name for name, _ in blocks] == ["greeting", "signature"]
    for name, code in blocks:
        (tmp_path / f"test_{name}.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error"]
    if "everturn.testing.plugin" not in _entry_points():
        command += ["-p", "everturn.testing.plugin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "4 passed" in done.stdout, done.stdout


def _entry_points() -> set[str]:
    """What the installed package registers; an older editable install has none yet."""
    from importlib.metadata import entry_points

    return {point.value for point in entry_points(group="pytest11")}
