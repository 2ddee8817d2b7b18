"""How the page is seen and reached: by keys, by screen readers, on phones, in the dark."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from serve.page.chat_page import ChatPage
from serve.page.stub import Stub, text

AXE = "axe-core@4.14.1"
PHONE = {"viewport": {"width": 375, "height": 720}, "has_touch": True, "is_mobile": True}
RICH = """# A title

With `code`, a [link](https://example.com/a) and $x^2$.

```python
def f(): return "a very long line of code" + "that goes on and on and on and on and on and on and on and on and on"
```

| one | two | three | four | five | six | seven |
| --- | --- | --- | --- | --- | --- | --- |
| a cell | another | another | another | another | another | another |

$$a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q + r + s + t + u + v + w + x + y + z = 0$$

Averyveryveryverylongwordwithoutanyplacetobreakitthatwouldmakethepagewiderthanthephone_and_it_still_goes_on.

> A quotation.
"""
WITH_KEYS = {
    *("Skip to the message", "New conversation", "Search conversations", "Rename One", "Delete One"),
    *("Import conversations", "Model", "Server", "Settings", "Edit this message", "Answer again", "Message"),
    "Attach files",
}


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once per machine."""
    npm = shutil.which("npm")
    folder = Path(platformdirs.user_cache_dir("edgellm-tests", appauthor=False)) / "npm" / AXE
    if not folder.is_dir():
        if npm is None:
            pytest.skip("there is no npm here to fetch axe-core with")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        subprocess.run(
            [npm, "pack", AXE, "--silent", "--pack-destination", str(partial)], check=True, stdout=subprocess.DEVNULL
        )
        partial.rename(folder)
    [file] = folder.iterdir()
    with tarfile.open(file) as package:
        source = package.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


def _rich(chat: ChatPage, stub: Stub) -> None:
    """A conversation with something of everything."""
    stub.will({"reasoning_content": "Hm, *well*."}, text(RICH))
    chat.send("Show me everything, please")
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    stub.will({"tool_calls": [call]}, finish="tool_calls")
    chat.send("And the weather")
    chat.page.locator(".results textarea").fill("rain")
    stub.scripts.append([text("It"), "drop"])
    chat.button("Send the result").click()
    chat.page.locator(".notice").wait_for()
    chat.page.locator(".report summary").first.click()
    chat.page.locator(".reasoning summary").first.click()


def _troubles(chat: ChatPage, axe: str) -> Iterator[str]:
    chat.page.evaluate("document.getAnimations().forEach((each) => each.finish())")
    if not chat.page.evaluate("'axe' in window"):
        chat.page.evaluate(axe)
    for each in chat.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
        if each["impact"] in ("serious", "critical"):
            yield from (f"{each['id']}: {node['html'][:120]} {node['failureSummary']}" for node in each["nodes"])


@pytest.mark.parametrize(
    "view",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", **PHONE},
        {"color_scheme": "dark", **PHONE},
    ],
    ids=["light", "dark", "phone", "dark phone"],
)
def test_axe_finds_nothing(chat: ChatPage, stub: Stub, axe: str, view: dict[str, Any]) -> None:
    assert list(_troubles(chat, axe)) == []
    _rich(chat, stub)
    assert list(_troubles(chat, axe)) == []
    for name in ("Settings", "Server"):
        chat.button(name).click()
        chat.page.get_by_role("dialog", name=name).wait_for()
        assert list(_troubles(chat, axe)) == []
        chat.page.keyboard.press("Escape")
    if "is_mobile" in view:
        chat.button("Conversations").click()
        chat.page.locator(".sidebar.open").wait_for()
        assert list(_troubles(chat, axe)) == []


@pytest.mark.parametrize("view", [PHONE], ids=["phone"])
def test_nothing_is_wider_than_a_phone(chat: ChatPage, stub: Stub) -> None:
    def fits() -> bool:
        return bool(
            chat.page.evaluate(
                "[document.scrollingElement, ...document.querySelectorAll('main, .column, .drawer, .sidebar, form')]"
                ".every((node) => node.scrollWidth <= Math.max(node.clientWidth, 0) && node.clientWidth <= 375)"
            )
        )

    assert fits()
    _rich(chat, stub)
    assert fits()
    for name in ("Settings", "Server"):
        chat.button(name).click()
        assert fits()
        chat.button("Close").click()
    chat.button("Conversations").click()
    chat.page.locator(".sidebar.open").wait_for()
    assert fits()
    chat.page.keyboard.press("Escape")
    assert chat.page.evaluate("document.activeElement.id") == "sidebar-button"
    chat.button("Conversations").click()
    chat.button("New conversation").click()
    chat.see("What would you like to know?")


@pytest.mark.parametrize("view", [PHONE], ids=["phone"])
def test_enter_is_a_new_line_on_a_phone(chat: ChatPage) -> None:
    chat.page.locator("#message").focus()
    chat.page.keyboard.type("One")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.type("two")
    assert chat.page.input_value("#message") == "One\ntwo"
    chat.button("Send").click()
    chat.wait_for_answer("Yes.")


def _ground(chat: ChatPage) -> int:
    """How light the page's ground is, 0 to 255."""
    return int(chat.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))


def test_light_and_dark(chat: ChatPage) -> None:
    assert _ground(chat) > 200
    chat.page.emulate_media(color_scheme="dark")
    assert _ground(chat) < 60
    chat.button("Light or dark").click()  # light, whatever the system has
    assert _ground(chat) > 200
    chat.reload()
    assert _ground(chat) > 200
    chat.button("Light or dark").click()
    chat.page.emulate_media(color_scheme="light")
    assert _ground(chat) < 60
    chat.button("Light or dark").click()
    assert _ground(chat) > 200


def test_by_keys_alone(chat: ChatPage, stub: Stub) -> None:
    keys = chat.page.keyboard
    assert chat.page.evaluate("document.activeElement.id") == "message"
    keys.type("One")
    keys.press("Shift+Enter")
    keys.type("two")
    assert chat.page.input_value("#message") == "One\ntwo"
    keys.press("Control+Enter")
    chat.wait_for_answer("Yes.")
    chat.done()
    assert chat.asked["messages"][0]["content"] == "One\ntwo"
    assert chat.page.evaluate("document.activeElement.id") == "message"
    keys.press("Control+k")
    assert chat.page.evaluate("document.activeElement.id") == "search"
    chat.page.evaluate("document.querySelector('.skip').focus()")
    assert chat.page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    keys.press("Enter")
    assert chat.page.evaluate("document.activeElement.id") == "message"
    names = _reached_by_tab(chat)
    assert WITH_KEYS - set(names) == set()
    assert names.index("New conversation") < names.index("Model") < names.index("Answer again") < names.index("Message")


def _reached_by_tab(chat: ChatPage) -> list[str]:
    """The names of what the Tab key reaches, from the top, each of them with an outline or a border that says so."""
    chat.page.evaluate("document.querySelector('.skip').focus()")
    names = []
    for _ in range(60):
        name, shown = chat.page.evaluate(
            """() => {
              const node = document.activeElement;
              if (node === document.body) return ['', true];
              const style = getComputedStyle(node);
              const box = getComputedStyle(node.closest('.composer') ?? node);
              const shown = style.outlineStyle !== 'none' || box.boxShadow.includes(' 0px 0px 0px 1px');
              return [node.getAttribute('aria-label') ?? node.textContent.trim(), shown];
            }"""
        )
        if names and name == names[0]:
            break
        names.append(name)
        assert shown, f"{name} does not show that it has the focus"
        chat.page.keyboard.press("Tab")
    return names


def test_a_drawer_gives_the_focus_back(chat: ChatPage) -> None:
    chat.button("Settings").focus()
    chat.page.keyboard.press("Enter")
    chat.page.get_by_role("dialog", name="Settings").wait_for()
    assert chat.page.evaluate("document.activeElement.closest('dialog') !== null")
    chat.page.keyboard.press("Escape")
    assert chat.page.evaluate("document.activeElement.ariaLabel") == "Settings"


def test_what_is_said_to_screen_readers(chat: ChatPage, stub: Stub) -> None:
    """The answer once it is whole, and not each of its pieces."""
    chat.page.evaluate(
        """() => {
          window.said = [];
          const region = document.querySelector('[aria-live]');
          new MutationObserver(() => window.said.push(region.textContent)).observe(
            region, {childList: true, characterData: true, subtree: true});
        }"""
    )
    stub.will(*(text(f"word{n} ") for n in range(30)))
    chat.send("Go")
    chat.page.wait_for_function("window.said.some(Boolean)")
    [said] = set(chat.page.evaluate("window.said.filter(Boolean)"))
    assert said.startswith("The answer is here: word0 word1")
    assert chat.page.locator("main [aria-live], main [role=log], main [role=alert]").count() == 0


def test_reading_on_while_the_answer_comes(chat: ChatPage, stub: Stub) -> None:
    """The view goes along at the end, and stays where somebody reads."""
    stub.will(text("line\n\n" * 60), "wait", text("more\n\n" * 20), "wait", text("end"))
    chat.start("Go")
    chat.wait_for_answer("line")
    position = "document.querySelector('main').scrollTop"
    left = "((m) => m.scrollHeight - m.scrollTop - m.clientHeight)(document.querySelector('main'))"
    chat.page.wait_for_function(f"{left} < 5 && {position} > 100")
    chat.page.locator("main").hover()
    chat.page.mouse.wheel(0, -400)
    chat.button("To the end").wait_for()
    before = chat.page.evaluate(position)
    stub.release()
    chat.wait_for_answer("more")
    assert chat.page.evaluate(position) == before
    chat.button("To the end").click()
    stub.release()
    chat.done()
    chat.page.wait_for_function(f"{left} < 5")
