"""One page of the React example, in the words of its visitor.

Every wait is for a condition of the page and has a deadline. What a page showed in between is
recorded inside of it, at each change of its content, so that a word which is doubled for a moment
only is seen too.
"""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Response

DEADLINE_MS = 20_000

#: Runs in the page before its own code: notes each text that the newest answer has had.
RECORDER = """
window.texts = [];
const read = () => {
  const answers = document.querySelectorAll("li.assistant");
  const answer = answers[answers.length - 1];
  if (!answer) return;
  const text = [...answer.querySelectorAll("p:not(.injected)")].map((p) => p.textContent).join("");
  if (window.texts.at(-1) !== text) window.texts.push(text);
};
new MutationObserver(read).observe(document, {
  subtree: true, childList: true, characterData: true,
});
"""


class Visitor:
    """Somebody in front of one tab."""

    def __init__(self, context: BrowserContext, url: str, *, opens: str = "ready") -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.add_init_script(RECORDER)
        self.responses: list[Response] = []
        self.page.on("response", lambda response: self.responses.append(response))
        self.page.goto(url)
        self.until_status(opens)

    @property
    def url(self) -> str:
        return self.page.url

    # --- doing ----------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()

    def attach(self, name: str, media_type: str, data: bytes) -> None:
        file: Any = {"name": name, "mimeType": media_type, "buffer": data}
        self.page.get_by_label("Attachments").set_input_files(file)

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def ask(self, text: str) -> str:
        """Send, and wait for the whole answer."""
        before = self.answers.count()
        self.send(text)
        self.until_answers(before + 1)
        self.until_status("ready")
        return self.answer()

    def reload(self) -> None:
        self.page.reload()

    # --- seeing ---------------------------------------------------------------------------------

    @property
    def answers(self) -> Locator:
        return self.page.locator("li.assistant")

    def questions(self) -> list[str]:
        return self.page.locator("li.user:not(.pending)").all_inner_texts()

    def answer(self) -> str:
        """The text of the newest answer."""
        return "".join(self.answers.last.locator("p:not(.injected)").all_text_contents())

    def texts(self) -> list[str]:
        """Every text that the newest answer has had on this page since it was loaded."""
        found: list[str] = self.page.evaluate("window.texts")
        return found

    def status(self) -> str:
        return self.page.locator("main").get_attribute("data-status") or ""

    # --- waiting --------------------------------------------------------------------------------

    def until(
        self, condition: str, argument: Any = None, *, deadline_ms: int = DEADLINE_MS
    ) -> None:
        """Wait until a JavaScript function of the page says yes."""
        self.page.wait_for_function(condition, arg=argument, timeout=deadline_ms)

    def until_status(self, status: str, *, deadline_ms: int = DEADLINE_MS) -> None:
        self.until(
            "s => document.querySelector('main')?.dataset.status === s",
            status,
            deadline_ms=deadline_ms,
        )

    def until_says(self, text: str) -> None:
        """Wait until the newest answer holds a text."""
        self.until("t => (window.texts.at(-1) ?? '').includes(t)", text)

    def until_answers(self, number: int) -> None:
        """Wait until that many answers are shown."""
        self.until("n => document.querySelectorAll('li.assistant').length === n", number)

    def until_tool(self, name: str, state: str) -> Locator:
        card = self.page.locator(f"[data-tool={name}][data-state={state}]")
        card.last.wait_for()
        return card.last
