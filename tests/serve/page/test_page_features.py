"""What shapes an answer and what is told of it: settings, forms, tools, files, progress, reports, the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serve.page.chat_page import ChatPage
from serve.page.stub import Stub, text

WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def _set(chat: ChatPage, **values: str) -> None:
    chat.button("Settings").click()
    for label, value in values.items():
        chat.page.locator(f"#set-{label}").fill(value)
    chat.page.keyboard.press("Escape")


def test_settings_are_sent_and_kept(chat: ChatPage, stub: Stub) -> None:
    _set(
        chat,
        system="Be brief.",
        temperature="0.5",
        top_p="0.9",
        top_k="40",
        min_p="0.05",
        max_tokens="64",
        seed="7",
        stop="END\n\n###",
    )
    chat.button("Settings").click()
    chat.page.locator("#set-thinking").select_option("off")
    chat.page.keyboard.press("Escape")
    chat.send("Hi")
    body = chat.asked
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 64, "seed": 7}
    assert {name: body[name] for name in sampling} == sampling
    assert body["stop"] == ["END", "###"]
    assert body["enable_thinking"] is False
    chat.reload()
    chat.send("And again")
    assert {name: chat.asked[name] for name in sampling} == sampling
    chat.button("New conversation").click()
    chat.send("Elsewhere")
    assert "temperature" not in chat.asked  # settings belong to a conversation


def test_settings_for_new_conversations(chat: ChatPage) -> None:
    chat.button("Settings").click()
    chat.page.locator("#set-temperature").fill("0.1")
    chat.button("Use for new conversations").click()
    chat.page.keyboard.press("Escape")
    chat.send("One")
    chat.button("New conversation").click()
    chat.send("Two")
    assert chat.asked["temperature"] == 0.1


def test_numbers_that_are_none_are_said(chat: ChatPage) -> None:
    chat.button("Settings").click()
    for name, value in {"temperature": "warm", "top_p": "1.5", "top_k": "1.5", "seed": "-1"}.items():
        field = chat.page.locator(f"#set-{name}")
        assert field.get_attribute("aria-invalid") == "false"
        field.fill(value)
        assert field.get_attribute("aria-invalid") == "true"
        assert "number" in chat.page.locator(f"#about-{name}").inner_text()


def test_a_schema_forces_the_answer(chat: ChatPage, stub: Stub) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    _set(chat, schema=json.dumps(schema))
    stub.will(text('{"city": "Oslo"}'))
    chat.send("Where?")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert chat.asked["response_format"] == form
    assert json.loads(chat.page.locator(".code code").inner_text()) == {"city": "Oslo"}
    chat.page.locator(".hljs-string").wait_for()
    chat.button("JSON schema").click()  # the mark in the composer leads to the settings
    assert json.loads(chat.page.locator("#set-schema").input_value()) == schema


def test_tools_are_called_and_answered(chat: ChatPage, stub: Stub) -> None:
    _set(chat, tools=json.dumps([WEATHER]))
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
    second = {"index": 1, "id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    stub.will(
        {"tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}, second]},
        finish="tool_calls",
    )
    chat.send("Weather?")
    assert chat.asked["tools"] == [{"type": "function", "function": WEATHER}]
    assert chat.asked["tool_choice"] == "auto"
    card = chat.page.locator(".card").first
    assert card.locator("pre").is_hidden()
    card.locator("summary").click()
    assert json.loads(card.locator("pre").inner_text()) == {"city": "Oslo"}
    chat.page.locator(".results textarea").nth(0).fill("rain")
    chat.reload()
    assert chat.page.locator(".results textarea").nth(0).input_value() == "rain"
    chat.page.locator(".results textarea").nth(1).fill("noon")
    stub.will(text("It rains at noon."))
    chat.button("Send the results").click()
    chat.wait_for_answer("It rains at noon.")
    assistant, *results = chat.asked["messages"][1:]
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == ['{"city": "Oslo"}', "{}"]
    assert results == [
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]


def test_other_results_are_a_branch(chat: ChatPage, stub: Stub) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    stub.will({"tool_calls": [call]}, finish="tool_calls")
    chat.send("Weather?")
    chat.page.locator(".results textarea").fill("rain")
    chat.button("Send the result").click()
    chat.wait_for_answer("Yes.")
    chat.done()
    chat.page.locator("article.tool").hover()
    chat.button("Send other results").click()
    chat.page.locator(".results textarea").fill("sun")
    stub.will(text("Bright."))
    chat.button("Send the result").click()
    chat.wait_for_answer("Bright.")
    assert chat.asked["messages"][-1]["content"] == "sun"
    assert chat.page.locator("article.tool .branches").inner_text().strip() == "2/2"


def test_reasoning_is_folded(chat: ChatPage, stub: Stub) -> None:
    stub.will({"reasoning_content": "Let me "}, "wait", {"reasoning_content": "see."}, text("Done."))
    chat.start("Think")
    chat.page.locator(".reasoning summary", has_text="Thinking").wait_for()
    stub.release()
    chat.done()
    assert chat.page.locator(".reasoning summary").inner_text() == "Thoughts"
    assert not chat.page.get_by_text("Let me see.").is_visible()
    chat.page.locator(".reasoning summary").click()
    chat.see("Let me see.")
    assert chat.answers == ["Let me see.", "Done."]
    chat.send("And?")
    assert chat.asked["messages"][1] == {"role": "assistant", "content": "Done.", "reasoning_content": "Let me see."}


def test_another_model(chat: ChatPage) -> None:
    options = chat.page.locator("select.model option").all_inner_texts()
    assert options == ["smollm2:135m", "gemma3:270m"]  # the one for embeddings answers nothing
    chat.page.select_option("select.model", "gemma3:270m")
    chat.send("Hi")
    assert chat.asked["model"] == "gemma3:270m"
    chat.reload()
    assert chat.page.input_value("select.model") == "gemma3:270m"


def test_text_files_are_put_in_front(chat: ChatPage, stub: Stub, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("See:\n```\ncode\n```\n", encoding="utf-8")
    wide = tmp_path / "wide.txt"
    wide.write_bytes("größer".encode("utf-16"))
    chat.page.set_input_files("[aria-label=Files]", [notes, wide])
    chat.page.locator(".chips li").nth(1).wait_for()
    chat.reload()  # what is attached is kept like what is typed
    assert chat.page.locator(".chips li").count() == 2
    chat.send("Explain")
    want = "````notes.md\nSee:\n```\ncode\n```\n````\n\n```wide.txt\ngrößer\n```\n\nExplain"
    assert chat.asked["messages"] == [{"role": "user", "content": want}]
    assert chat.page.locator(".chips").count() == 0
    chat.page.locator("article.user .card summary").first.click()
    chat.see("code")


def test_files_that_are_refused(chat: ChatPage, tmp_path: Path) -> None:
    cases = {
        "data.bin": (b"\x00\x01\x02\xff", "data.bin is not a text file."),
        "large.txt": (b"a" * 1_000_001, "large.txt is larger than 1 MB."),
        "photo.png": (PIXEL, "photo.png is a picture, and this model reads text only."),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        chat.page.set_input_files("[aria-label=Files]", tmp_path / name)
        chat.see(words)
    assert chat.page.locator(".chips").count() == 0


def test_pictures_for_models_that_see(chat: ChatPage, stub: Stub, tmp_path: Path) -> None:
    stub.models[0]["capabilities"].append("vision")
    chat.reload()
    (tmp_path / "photo.png").write_bytes(PIXEL)
    chat.page.set_input_files("[aria-label=Files]", tmp_path / "photo.png")
    chat.page.locator(".chips li").wait_for()
    chat.send("What is this?")
    said, picture = chat.asked["messages"][0]["content"]
    assert said == {"type": "text", "text": "What is this?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert chat.page.locator("article.user img").get_attribute("alt") == "photo.png"


def test_progress_while_the_prompt_is_read(chat: ChatPage, stub: Stub) -> None:
    progress = {"total": 4096, "cache": 1024, "processed": 2048, "time_ms": 900}
    stub.will({"prompt_progress": progress}, "wait", text("Read."))
    chat.start("A long one")
    chat.see("Reading the prompt: 2,048 of 4,096 tokens, 1,024 of them known already")
    bar = chat.page.get_by_role("progressbar", name="Reading the prompt")
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("2048", "4096")
    stub.release()
    chat.done()
    assert chat.answers == ["Read."]
    assert bar.count() == 0


def test_what_an_answer_took(chat: ChatPage) -> None:
    chat.send("Hi")
    summary = chat.page.locator(".report summary")
    line = "31.2 tokens/s · first token after 412 ms · prompt: 900 live, 100 memory, 24 disk, 180 computed"
    assert summary.inner_text() == line
    assert summary.get_attribute("title") == "The conversation went on where it was."
    summary.click()
    chat.see("The conversation went on where it was.")
    chat.see("24 tokens read from disk")


def test_the_state_of_the_server(chat: ChatPage, stub: Stub) -> None:
    chat.button("Server").click()
    drawer = chat.page.get_by_role("dialog", name="Server")
    words = drawer.inner_text()
    for part in ("smollm2:135m", "reads 8,192 tokens", "412 MB", "1,280", "9.4 GB", "AMD Ryzen 7 7840U", "avx512f"):
        assert part in words
    stub.models[1]["loaded"] = True
    drawer.locator(".dot.on").nth(1).wait_for()  # it is asked again while it is open


def test_a_server_that_says_little(chat: ChatPage, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    little = {
        "version": "1",
        "models": [{"id": "smollm2:135m", "bytes": None}],
        "cache": None,
        "memory": {"total": None},
    }
    monkeypatch.setattr(stub, "status", lambda: little)
    chat.reload()
    chat.button("Server").click()
    drawer = chat.page.get_by_role("dialog", name="Server")
    drawer.get_by_text("not loaded").wait_for()
    assert "null" not in drawer.inner_text()
    assert "NaN" not in drawer.inner_text()


def test_code_formulas_and_tables(chat: ChatPage, stub: Stub) -> None:
    parts = [
        "```python\ndef f():\n    return 1\n```",
        "It is $x^2$, costs $5 or $10.",
        "$$\\frac{a}{b}$$",
        "\\(y\\) and \\[z\\]",
        "| a | b |\n| - | - |\n| 1<br>2 | `c` |",
    ]
    stub.will(text("\n\n".join(parts)))
    chat.send("Show")
    chat.page.locator(".hljs-keyword").first.wait_for()
    assert chat.page.locator(".code code").inner_text() == "def f():\n    return 1\n"
    assert chat.page.locator("math").count() == 4
    assert chat.page.locator("math[display=block]").count() == 2
    assert "costs $5 or $10." in chat.answers[0]
    assert chat.page.locator("td br").count() == 1
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.page.get_by_role("button", name="Copy this code").click()
    chat.page.get_by_text("Copied").wait_for()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "def f():\n    return 1\n"
