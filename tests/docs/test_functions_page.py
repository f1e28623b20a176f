"""`docs/functions.md`: every export of the official packages has a row, every row tests or a reason."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from function_rows import FILES, ROWS, SECTIONS, Row, page

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests"


def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_"
    }


def covers(row: Row, name: str) -> bool:
    return any(
        name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1]))
        for pattern in row.names.split()
    )


@pytest.mark.parametrize("row", ROWS, ids=[row.names.split()[0] for row in ROWS])
def test_a_row_has_tests_that_exist_or_a_reason(row: Row) -> None:
    assert row.tests or row.reason
    for test in row.tests.split():
        file, _, name = test.partition(":")
        assert name in names_in(FILES[file]), test


def test_the_page_is_made_from_the_rows() -> None:
    """`python tests/docs/function_rows.py` writes it."""
    assert (ROOT / "docs" / "functions.md").read_text() == page()


def test_the_newer_packages_run_the_same_tests() -> None:
    """Files that name no packages themselves are run again by one that names the newer ones."""
    for newer, older in (
        ("test_newest_runs.py", "test_official_runs"),
        ("test_newest_client.py", "test_official_client"),
    ):
        assert older in (TESTS / "wire" / newer).read_text()


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("folder", ["node-react", "node-react-newest"])
def test_every_export_of_the_packages_has_exactly_one_row(folder: str) -> None:
    exports = exported(folder)
    assert len(exports) > 100
    rows = {
        (entry, name): sum(covers(row, name) for row in ROWS if row.entry == entry)
        for entry, name in exports
    }
    assert {export: count for export, count in rows.items() if count != 1} == {}
    assert {entry for entry, _ in exports} == set(SECTIONS)


def exported(folder: str) -> list[tuple[str, str]]:
    """`(entry point, name)` of what the packages of a folder export, methods of objects included."""
    # The wire tests are no package; their driver installs by lock file.
    spec = importlib.util.spec_from_file_location("wire_driver", TESTS / "wire" / "driver.py")
    assert spec is not None
    assert spec.loader is not None
    driver = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = driver
    spec.loader.exec_module(driver)
    node = shutil.which("node")
    assert node, "node is missing: install Debian's package nodejs"
    done = subprocess.run(
        [node, "drive_exports.mjs", "hooks"],
        cwd=driver.installed(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return [(entry, name) for entry, names in found.items() for name in names]
