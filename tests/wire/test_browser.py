"""The React example in Chromium, with the official transport, against a real server and worker.

The page is on another origin than the server, as it is in production: everything here crosses
origins. Wire-protocol §1.4, §5.3, §8.5, §18.3.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser.site import CLIENTS, ROOT, Site, built_page
from browser.visitor import Visitor
from playwright.sync_api import Browser, BrowserContext, sync_playwright

# Packages are installed and the page is built within the first test's time.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

FAILURES = Path(os.environ.get("BROWSER_FAILURES", ROOT / ".cache" / "browser-failures"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's browser. The scope is a module's: Playwright keeps an event loop while it lives."""
    path = shutil.which("chromium")
    assert path, "chromium is missing: install Debian's package chromium"
    with sync_playwright() as playwright:
        # Root may not use the sandbox, and the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=sorted(CLIENTS))
def page_folder(request: pytest.FixtureRequest) -> Path:
    """The page, built with one and the other version of the official client."""
    return built_page(request.param)


@pytest.fixture(scope="module")
def site(page_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), page_folder) as running:
        yield running


@pytest.fixture
def device(
    chromium: Browser, request: pytest.FixtureRequest
) -> Iterator[Callable[[], BrowserContext]]:
    """Makes browsers that share nothing. What they showed and said is kept when the test fails."""
    failed_before = request.session.testsfailed
    contexts: list[BrowserContext] = []
    said: list[str] = []
    with ExitStack() as stack:

        def make() -> BrowserContext:
            context = chromium.new_context()
            stack.callback(context.close)
            context.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
            context.on("weberror", lambda problem: said.append(f"thrown: {problem.error}"))
            context.on("response", lambda r: said.append(f"{r.request.method} {r.url} {r.status}"))
            contexts.append(context)
            return context

        yield make
        if request.session.testsfailed > failed_before:
            keep(request.node.name, contexts, said)


def keep(name: str, contexts: list[BrowserContext], said: list[str]) -> None:
    """One picture of each page, and one text with what all of them said and asked for."""
    FAILURES.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.\[\]-]", "_", name)
    (FAILURES / f"{stem}.log").write_text("\n".join(said))
    pages = [page for context in contexts for page in context.pages]
    for number, page in enumerate(pages):
        page.screenshot(path=FAILURES / f"{stem}-{number}.png", full_page=True)


def counted(last: int) -> str:
    return "".join(f"{number} " for number in range(1, last + 1))


def assert_only_grew(texts: list[str], whole: str) -> None:
    """No text on the way was anything but a beginning of the whole one."""
    assert [text for text in texts if not whole.startswith(text)] == []
    assert texts[-1] == whole


def test_an_answer_is_seen_to_grow_word_by_word(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    """R-242."""
    visitor = Visitor(device(), site.url)
    visitor.send("count to 20")
    visitor.until_status("streaming")
    visitor.until_says("3 ")
    assert visitor.status() == "streaming"
    visitor.until_status("ready")

    assert visitor.questions() == ["count to 20"]
    assert len(visitor.texts()) >= 10
    assert_only_grew(visitor.texts(), counted(20))


def test_a_page_reloaded_in_mid_answer_continues_it_without_a_doubled_word(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    """R-242."""
    visitor = Visitor(device(), site.url)
    visitor.ask("count to 2")
    visitor.send("count to 40")
    visitor.until_says("8 ")
    visitor.reload()
    visitor.until_status("streaming")
    assert "40" not in visitor.answer()
    visitor.until_says("40 ")
    visitor.until_status("ready")

    assert visitor.questions() == ["count to 2", "count to 40"]
    assert visitor.answers.count() == 2
    texts = visitor.texts()
    assert_only_grew(texts[texts.index(counted(2)) + 1 :], counted(40))


def test_stop_after_a_reload_ends_the_answer_and_the_next_one_is_whole(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    """R-242."""
    visitor = Visitor(device(), site.url)
    visitor.send("count to 100")
    visitor.until_says("5 ")
    visitor.reload()
    visitor.until_says("5 ")
    visitor.press("Stop")
    visitor.until_status("ready")
    stopped = visitor.answer()

    assert visitor.ask("count to 3") == counted(3)
    visitor.reload()
    visitor.until_status("ready")
    kept = visitor.answers.first.inner_text()
    assert kept.startswith(stopped.strip()), "what was shown of the stopped answer is kept"
    assert "100" not in kept, "the agent stopped too"


def test_an_approved_call_runs_and_a_denied_one_does_not(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    """R-242."""
    visitor = Visitor(device(), site.url)
    visitor.send("send email")
    visitor.until_tool("send_email", "approval-requested")
    visitor.until_status("ready")
    visitor.press("Approve")
    visitor.until_tool("send_email", "output-available")
    visitor.until_says("from the offline model")
    visitor.until_status("ready")
    assert visitor.answers.count() == 1, "the answer went on in the same message"

    visitor.send("send email again")
    visitor.until_tool("send_email", "approval-requested")
    visitor.until_status("ready")
    visitor.press("Deny")
    visitor.until_tool("send_email", "output-denied")
    visitor.until_status("ready")
    assert visitor.answers.count() == 2


def test_a_page_reloaded_while_an_approved_call_goes_on_shows_call_and_answer(
    page_folder: Path, tmp_path: Path, device: Callable[[], BrowserContext]
) -> None:
    with Site(tmp_path, page_folder, {"EVERTURN_OFFLINE_DELAY_MS": "300"}) as site:
        visitor = Visitor(device(), site.url)
        visitor.send("send email")
        visitor.until_tool("send_email", "approval-requested")
        visitor.until_status("ready")
        visitor.press("Approve")
        visitor.until_tool("send_email", "output-available")
        visitor.until_says("send_email says")
        visitor.reload()
        visitor.until_says("from the offline model")
        visitor.until_status("ready")
        visitor.until_tool("send_email", "output-available")


def test_regenerate_puts_a_new_answer_in_the_place_of_the_old_one(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    visitor = Visitor(device(), site.url)
    visitor.ask("count to 3")
    old = visitor.answers.last.get_attribute("data-message")
    visitor.press("Regenerate")
    visitor.until("old => document.querySelector('li.assistant')?.dataset.message !== old", old)
    visitor.until_says(counted(3))
    visitor.until_status("ready")

    assert visitor.answers.count() == 1
    new = visitor.answers.last.get_attribute("data-message")
    visitor.reload()
    visitor.until_status("ready")
    assert visitor.questions() == ["count to 3"]
    assert visitor.answers.last.get_attribute("data-message") == new


def test_two_tabs_follow_one_answer_and_take_turns(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    browser = device()
    first = Visitor(browser, site.url)
    second = Visitor(browser, first.url)
    first.send("count to 30")
    second.until_says("5 ")
    assert first.status() == "streaming"
    second.page.locator("main[data-read-only=true]").wait_for()
    second.until_says(counted(30))
    first.until_status("ready")
    second.page.locator("main[data-read-only=false]").wait_for()

    assert second.ask("count to 4") == counted(4)
    first.until_answers(2)
    first.until_says(counted(4))
    assert first.questions() == second.questions() == ["count to 30", "count to 4"]


def test_a_second_device_that_comes_in_mid_answer_follows_it_to_its_end(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    first = Visitor(device(), site.url)
    first.send("count to 40")
    first.until_says("5 ")
    second = Visitor(device(), first.url, opens="streaming")
    second.until_says(counted(40))
    second.until_status("ready")
    first.until_status("ready")

    assert_only_grew(second.texts(), counted(40))
    assert_only_grew(first.texts(), counted(40))


def test_a_device_that_slept_through_a_turn_catches_up_when_it_is_looked_at(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    first = Visitor(device(), site.url)
    first.ask("count to 2")
    second = Visitor(device(), first.url)
    first.ask("count to 4")
    # The history is kept just after the turn: look until it is there.
    second.until(
        "() => { dispatchEvent(new Event('focus'));"
        " return document.querySelectorAll('li.assistant').length === 2 }"
    )
    assert second.answer() == counted(4)
    assert second.ask("count to 6") == counted(6)
    assert second.questions() == ["count to 2", "count to 4", "count to 6"]


def test_ten_seconds_offline_cost_no_word_and_double_none(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    browser = device()
    visitor = Visitor(browser, site.url)
    visitor.send("count to 130")
    visitor.until_says("5 ")
    site.relay.freeze()
    browser.set_offline(True)
    left_at = visitor.page.evaluate("performance.now()")
    visitor.until("left => performance.now() - left > 10_000", left_at)
    assert "40 " not in visitor.answer(), "nothing came while it was offline"
    assert visitor.status() == "streaming", "and that is no failure"
    site.relay.thaw()
    browser.set_offline(False)
    visitor.until_says("130 ")
    visitor.until_status("ready")

    assert_only_grew(visitor.texts(), counted(130))
    assert visitor.answers.count() == 1


def test_an_answer_whose_worker_is_killed_is_seen_whole_and_once(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    visitor = Visitor(device(), site.url)
    visitor.send("count to 30")
    visitor.until_says("8 ")
    site.system.kill_worker()
    site.system.start_worker(wait=False)
    visitor.until_says("30 ")
    visitor.until_status("ready")

    assert visitor.answer() == counted(30)
    assert visitor.answers.count() == 1
    visitor.reload()
    visitor.until_status("ready")
    assert visitor.answer() == counted(30)


def test_an_answer_survives_a_restart_of_the_server_without_a_doubled_word(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    visitor = Visitor(device(), site.url)
    visitor.send("count to 60")
    visitor.until_says("8 ")
    site.system.kill_server()
    site.system.start_server()
    visitor.until_says("60 ")
    visitor.until_status("ready")

    assert visitor.answer() == counted(60)
    assert visitor.answers.count() == 1


def test_a_token_that_expires_in_mid_conversation_is_renewed_unseen(
    page_folder: Path, tmp_path: Path, device: Callable[[], BrowserContext]
) -> None:
    with Site(tmp_path, page_folder, {"CHAT_TOKEN_TTL": "2s"}) as site:
        visitor = Visitor(device(), site.url)
        # The answer takes longer than its token lives, and so does the pause after it.
        assert visitor.ask("count to 30") == counted(30)
        now = visitor.page.evaluate("Date.now()")
        visitor.until("now => Date.now() - now > 3_000", now)
        assert visitor.ask("count to 3") == counted(3)

        paths = [re.sub(r".*/chats/[^/]*|.*/sessions/[^/]*", "", r.url) for r in visitor.responses]
        refused = [r.status for r in visitor.responses if r.status == 401]
        assert refused, "the expired token was refused, readable for the page"
        assert "/token" in paths
        assert visitor.page.get_by_role("alert").count() == 0


def test_a_token_that_expires_while_the_network_is_away_costs_no_word_of_the_answer(
    page_folder: Path, tmp_path: Path, device: Callable[[], BrowserContext]
) -> None:
    with Site(tmp_path, page_folder, {"CHAT_TOKEN_TTL": "3s"}) as site:
        visitor = Visitor(device(), site.url)
        visitor.send("count to 80")
        visitor.until_says("5 ")
        site.relay.freeze()
        left_at = visitor.page.evaluate("performance.now()")
        visitor.until("left => performance.now() - left > 3_500", left_at)
        assert "80 " not in visitor.answer(), "nothing came in the meantime"
        site.relay.thaw()
        visitor.until_says("80 ")
        visitor.until_status("ready")

        assert_only_grew(visitor.texts(), counted(80))
        refused = [r for r in visitor.responses if r.status == 401 and r.url.endswith("/out")]
        assert refused, "the stream came back with the token it began with"
        assert visitor.page.get_by_role("alert").count() == 0


def test_an_attached_file_reaches_the_agent(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    visitor = Visitor(device(), site.url)
    visitor.attach("notes.txt", "text/plain", b"remember the milk")
    assert visitor.ask("read this") == "You sent me notes.txt (text/plain)."
    visitor.reload()
    visitor.until_status("ready")
    assert visitor.page.get_by_role("link", name="notes.txt").count() == 1


def test_a_message_sent_in_mid_answer_joins_it_at_the_next_step(
    site: Site, device: Callable[[], BrowserContext]
) -> None:
    visitor = Visitor(device(), site.url)
    visitor.send("what is the weather in Oslo?")
    visitor.until_tool("weather", "output-available")
    visitor.send("in Fahrenheit please")
    visitor.page.locator("li.pending").wait_for()
    visitor.page.locator(".injected").wait_for()
    visitor.until_says("Turn 2")
    visitor.until_status("ready")

    assert visitor.questions() == ["what is the weather in Oslo?"]
    assert visitor.page.locator("li.pending").count() == 0


FAILING = """
from test_browser import chromium, device


def test_fails(device):
    page = device().new_page()
    page.set_content("<p>seen</p><script>console.log('said')</script>")
    assert page.get_by_text("never").count() == 1
"""


def test_what_a_page_showed_and_said_is_kept_when_its_test_fails(tmp_path: Path) -> None:
    failing, kept = tmp_path / "test_failing.py", tmp_path / "kept"
    failing.write_text(FAILING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", failing],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "BROWSER_FAILURES": str(kept)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert {file.name for file in kept.iterdir()} == {"test_fails.log", "test_fails-0.png"}
    assert (kept / "test_fails-0.png").read_bytes().startswith(b"\x89PNG")
    assert "log: said" in (kept / "test_fails.log").read_text()
