"""docs/start.md, followed from an empty folder to a backup, and its page opened in a browser."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import stand_ins
from playwright.sync_api import sync_playwright
from road import Reader, Step, steps

from everturn.testing.processes import free_port

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "start.md").read_text()

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def node_packages() -> Path:
    """Where the packages of the React example are installed."""
    sys.path.insert(0, str(ROOT / "tests" / "wire"))
    try:
        from browser.site import built_page  # type: ignore[import-not-found]  # the path above
    finally:
        sys.path.pop(0)
    return Path(built_page("4.5.0")).parent / "node_modules"


@pytest.fixture
def reader(tmp_path: Path, node_packages: Path) -> Iterator[Reader]:
    folder, machine = tmp_path / "desk", tmp_path / "machine"
    units = machine / "etc" / "systemd" / "system"
    for path in (folder, units, machine / "var" / "backups"):
        path.mkdir(parents=True)
    stand_ins.put_on_path(tmp_path / "bin")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVERTURN_")}
    env = {
        **environment,
        "PATH": f"{tmp_path}/bin:{folder}/.venv/bin:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "EVERTURN_OFFLINE_DELAY_MS": "0",
        "UNITS": str(units),
        "REAL_NPM": shutil.which("npm") or "",
        "NODE_PACKAGES": str(node_packages),
    }
    server, web = free_port(), free_port()
    instead = {
        "everturn dev app.py": f"everturn dev app.py --port {server}",
        "everturn server ": f"everturn server --port {server} ",
        "8030": str(server),
        "8040": str(web),
        **{f"{top}/": f"{machine}{top}/" for top in ("/opt", "/etc", "/var")},
    }
    with ExitStack() as stopped:
        stopped.callback(stand_ins.stop_all, units)
        follower = Reader(folder, env, instead)
        stopped.callback(follower.close)
        yield follower


def visit(url: str) -> None:
    """What section 5 has its reader do in the browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(url)

        def say(text: str) -> None:
            page.get_by_label("Message").fill(text)
            page.get_by_role("button", name="Send").click()

        say("Hello!")
        page.get_by_text("turn 1 of our conversation").wait_for()
        page.locator("main[data-status=ready]").wait_for()
        say("refund order 7")
        page.get_by_role("button", name="Approve").wait_for()
        page.reload()
        page.get_by_role("button", name="Approve").click()
        page.get_by_text("order 7 is paid back. (Turn 2").wait_for()
        page.reload()
        page.get_by_text("order 7 is paid back. (Turn 2").wait_for()
        browser.close()


def test_the_page_leads_from_an_empty_folder_to_production(reader: Reader) -> None:
    for step in steps(PAGE):
        reader.do(step)
        if step.how == "stays web":
            reader.terminals["web"].until("Application startup complete")
            visit(reader.here("http://localhost:8040"))
        if "keys create" in step.text:
            reader.instead["tr_prod_…"] = reader.printed.split()[-1]


def test_every_block_of_the_page_is_followed() -> None:
    """But one, which needs a journal."""
    followed = sum(bool(step.text) for step in steps(PAGE))
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == followed + 1


def test_a_line_that_is_not_printed_is_missed(tmp_path: Path) -> None:
    reader = Reader(tmp_path, os.environ, {})
    reader.do(Step(1, "sh", "", "echo one two three"))
    reader.do(Step(2, "prints", "", "one … three\n"))
    with pytest.raises(AssertionError, match="line 3, prints"):
        reader.do(Step(3, "prints", "", "four\n"))
