"""What the tests do on the chat page, and what they watch for."""

from __future__ import annotations

from typing import Any

from serve.page.stub import Stub

INSTRUMENT = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Watch:
    """Notes errors, dialogs, requests to elsewhere and breaches of the policy; refusals of the server aside."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[str] = []

    def over(self, context: Any) -> None:
        context.add_init_script(INSTRUMENT)
        context.on("page", self._page)

    def _page(self, page: Any) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.seen.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.seen.append(f"request: {request.url}")

    def gather(self, context: Any) -> None:
        for page in context.pages:
            if page.url.startswith(self.address):
                self.seen += page.evaluate("window.__violations")
                if page.evaluate("'__pwned' in window"):
                    self.seen.append("a script of an answer ran")


class ChatPage:
    """The chat page as a user sees it."""

    def __init__(self, page: Any, stub: Stub) -> None:
        self.page = page
        self.stub = stub

    def open(self) -> None:
        self.page.goto(self.stub.address)
        self.page.wait_for_selector("select.model, .notice")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("select.model, .notice")

    def type(self, message: str) -> None:
        self.page.fill("#message", message)

    def send(self, message: str) -> None:
        """Sends a message and waits until the answer is whole, or is none."""
        self.start(message)
        self.done()

    def start(self, message: str) -> None:
        self.type(message)
        self.page.press("#message", "Control+Enter")
        self.page.wait_for_selector("article.assistant")

    def done(self) -> None:
        self.page.wait_for_selector("article.assistant[aria-busy=false]:last-of-type")
        self.page.wait_for_selector("button[aria-label=Send]")

    @property
    def answers(self) -> list[str]:
        """The texts of the answers that are seen."""
        return [each.strip() for each in self.page.locator("article.assistant .text").all_inner_texts()]

    @property
    def questions(self) -> list[str]:
        return self.page.locator("article.user .typed").all_inner_texts()

    @property
    def titles(self) -> list[str]:
        return self.page.locator(".entry .title").all_inner_texts()

    @property
    def asked(self) -> dict[str, Any]:
        """The last request."""
        return self.stub.requests[-1]

    def button(self, name: str) -> Any:
        """The last button of this name that is seen."""
        return self.page.get_by_role("button", name=name, exact=True).last

    def see(self, words: str) -> None:
        """Waits until the words are seen."""
        self.page.get_by_text(words).last.wait_for()

    def wait_for_answer(self, text: str) -> None:
        self.page.locator("article.assistant .text", has_text=text).last.wait_for()
