"""Conversations on the chat page: sent, streamed, stopped, branched, continued, kept."""

from __future__ import annotations

import json
from pathlib import Path

from serve.page.chat_page import ChatPage
from serve.page.stub import Stub, text


def test_a_conversation(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("Hello "), text("**there**."))
    chat.send("Hi\nyou")
    assert chat.answers == ["Hello there."]
    assert chat.questions == ["Hi\nyou"]
    body = chat.asked
    assert body["model"] == "smollm2:135m"
    assert body["messages"] == [{"role": "user", "content": "Hi\nyou"}]
    assert [body[name] for name in ("stream", "return_progress", "report")] == [True] * 3
    assert body["stream_options"] == {"include_usage": True}
    assert not {"temperature", "max_tokens", "stop", "tools", "response_format", "enable_thinking"} & set(body)
    stub.will(text("Fine."))
    chat.send("How are you?")
    assert [message["role"] for message in chat.asked["messages"]] == ["user", "assistant", "user"]
    assert chat.asked["messages"][1] == {"role": "assistant", "content": "Hello **there**."}
    assert chat.titles == ["Hi"]


def test_an_answer_is_seen_as_it_comes(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("One "), "wait", text("two."))
    chat.start("Count")
    chat.wait_for_answer("One")
    assert chat.page.locator("article.assistant").get_attribute("aria-busy") == "true"
    stub.release()
    chat.done()
    assert chat.answers == ["One two."]


def test_what_changes_not_is_not_drawn_again(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("First.\n\nSec"), "wait", text("ond."))
    chat.start("Go")
    chat.wait_for_answer("Sec")
    chat.page.evaluate("document.querySelector('.text p').dataset.same = 'yes'")
    stub.release()
    chat.done()
    assert chat.answers == ["First.\n\nSecond."]
    assert chat.page.locator(".text p").first.get_attribute("data-same") == "yes"


def test_escape_stops_and_continue_goes_on(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("Once upon"), "wait", text(" a time."))
    chat.start("A story")
    chat.wait_for_answer("Once upon")
    chat.page.keyboard.press("Escape")
    chat.see("Stopped.")
    assert stub.left.wait(10)  # the connection was closed
    stub.will(text(" a hill."))
    chat.button("Continue").click()
    chat.wait_for_answer("Once upon a hill.")
    chat.done()
    assert chat.asked["continue_final_message"] is True
    assert chat.asked["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert chat.page.get_by_text("Stopped.").count() == 0


def test_an_answer_that_was_cut_goes_on(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("A long"), finish="length")
    chat.send("Go")
    chat.see("The answer reached the most tokens it may have.")
    stub.will(text(" answer."))
    chat.button("Continue").click()
    chat.wait_for_answer("A long answer.")


def test_the_stop_button(chat: ChatPage, stub: Stub) -> None:
    stub.will("wait", text("Never"))
    chat.start("Go")
    chat.button("Stop").click()
    chat.see("Stopped.")
    assert chat.answers == []


def test_answers_and_edits_are_branches(chat: ChatPage, stub: Stub) -> None:
    for answer in ("One", "Two"):
        stub.will(text(answer))
    chat.send("First")
    chat.button("Answer again").click()
    chat.wait_for_answer("Two")
    chat.done()
    assert chat.page.locator(".branches").inner_text().strip() == "2/2"
    chat.button("Earlier version").click()
    chat.wait_for_answer("One")
    stub.will(text("Three"))
    chat.send("Second")  # behind the earlier version
    assert [message["content"] for message in chat.asked["messages"]] == ["First", "One", "Second"]
    chat.page.locator("article.user").first.hover()
    chat.page.get_by_role("button", name="Edit this message").first.click()
    stub.will(text("Four"))
    chat.page.fill(".edit textarea", "Other")
    chat.page.press(".edit textarea", "Control+Enter")
    chat.wait_for_answer("Four")
    chat.done()
    assert (chat.questions, chat.answers) == (["Other"], ["Four"])
    assert [message["content"] for message in chat.asked["messages"]] == ["Other"]
    chat.button("Earlier version").click()
    chat.wait_for_answer("Three")
    assert (chat.questions, chat.answers) == (["First", "Second"], ["One", "Three"])
    chat.reload()
    chat.wait_for_answer("Three")
    chat.page.get_by_role("button", name="Later version").nth(1).click()
    chat.wait_for_answer("Two")
    assert chat.questions == ["First"]


def test_an_answer_is_edited(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("It is 41."))
    chat.send("What is it?")
    chat.button("Edit this answer").click()
    chat.page.fill(".edit textarea", "It is 42.")
    chat.button("Save").click()
    chat.see("Edited by you.")
    chat.send("Sure?")
    assert chat.asked["messages"][1] == {"role": "assistant", "content": "It is 42."}


def test_all_is_there_after_a_reload(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("Kept."))
    chat.send("Keep this")
    stub.will(text("Half an"), "wait")
    chat.start("And this")
    chat.wait_for_answer("Half an")
    chat.type("typed, not sent")
    chat.reload()
    chat.wait_for_answer("Half an")
    assert chat.answers == ["Kept.", "Half an"]
    chat.see("The page was closed before the answer was whole.")
    assert chat.page.input_value("#message") == "typed, not sent"
    stub.will(text(" answer."))
    chat.button("Continue").click()
    chat.wait_for_answer("Half an answer.")


def test_nothing_is_lost_that_was_not_written_yet(chat: ChatPage, stub: Stub) -> None:
    """The page is closed while the browser's database has confirmed nothing."""
    stub.will(text("Kept."))
    chat.send("Before")
    chat.page.evaluate("IDBObjectStore.prototype.put = () => ({})")
    stub.will(text("Half an"), "wait")
    chat.start("And then")
    chat.wait_for_answer("Half an")
    for _ in range(2):  # now it is written, or will be found again
        chat.reload()
        chat.wait_for_answer("Half an")
        assert (chat.questions, chat.answers) == (["Before", "And then"], ["Kept.", "Half an"])
    assert chat.page.evaluate("localStorage.getItem('edgellm.rescued')") is None


def test_drafts_belong_to_their_conversation(chat: ChatPage) -> None:
    chat.send("One")
    chat.type("about one")
    chat.button("New conversation").click()
    assert chat.page.input_value("#message") == ""
    chat.type("a new one")
    chat.page.locator(".entry").click()
    assert chat.page.input_value("#message") == "about one"
    chat.button("New conversation").click()
    assert chat.page.input_value("#message") == "a new one"


def test_an_edit_is_kept_over_a_reload(chat: ChatPage) -> None:
    chat.send("One")
    chat.page.locator("article.user").hover()
    chat.button("Edit this message").click()
    chat.page.fill(".edit textarea", "Two, almost")
    chat.reload()
    chat.page.locator("article.user").hover()
    chat.button("Edit this message").click()
    assert chat.page.input_value(".edit textarea") == "Two, almost"


def test_search_rename_delete(chat: ChatPage, stub: Stub) -> None:
    for question, answer in (("Cats", "They purr loudly."), ("Dogs", "They bark.")):
        chat.button("New conversation").click()
        stub.will(text(answer))
        chat.send(question)
    assert chat.titles == ["Dogs", "Cats"]
    chat.page.keyboard.press("Control+k")
    chat.page.keyboard.type("PURR")
    assert chat.titles == ["Cats"]
    assert "They purr loudly." in chat.page.locator(".entry .words").inner_text()
    chat.page.keyboard.press("Escape")
    assert len(chat.titles) == 2
    chat.page.locator(".sidebar li").first.hover()
    chat.button("Rename Dogs").click()
    chat.page.keyboard.type("Hounds")
    chat.page.keyboard.press("Enter")
    chat.page.locator(".title", has_text="Hounds").wait_for()
    chat.page.locator(".sidebar li").first.hover()
    chat.button("Delete Hounds").click()
    chat.page.locator(".title", has_text="Hounds").wait_for(state="detached")
    chat.button("Undo").click()
    chat.page.locator(".title", has_text="Hounds").click()
    chat.wait_for_answer("They bark.")
    chat.reload()
    assert sorted(chat.titles) == ["Cats", "Hounds"]


def test_export_and_import(chat: ChatPage, stub: Stub, tmp_path: Path) -> None:
    stub.will({"reasoning_content": "Hm."}, text("An **answer**."))
    chat.send("Export me")
    with chat.page.expect_download() as download:
        chat.button("Export all conversations").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["format"], written["version"]) == ("edgellm-conversations", 1)
    chat.page.locator(".sidebar li").hover()
    chat.button("Delete Export me").click()
    chat.page.locator(".entry").wait_for(state="detached")
    chat.page.set_input_files("[aria-label='File to import']", file)
    chat.page.locator(".entry").click()
    assert chat.answers == ["An answer."]
    assert chat.page.locator(".reasoning").count() == 1
    chat.reload()
    assert chat.titles == ["Export me"]
    with chat.page.expect_download() as download:
        chat.button("Export all conversations").click()
    again = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert again["conversations"][0]["settings"] == written["conversations"][0]["settings"]
    assert [t["content"] for t in again["conversations"][0]["turns"].values()] == ["Export me", "An **answer**."]


def test_files_that_are_no_conversations(chat: ChatPage, tmp_path: Path) -> None:
    turn = {"id": "a", "parent": "a", "role": "user", "content": "x"}
    circle = {"format": "edgellm-conversations", "version": 1, "conversations": [{"id": "1", "turns": {"a": turn}}]}
    named = {**circle, "conversations": [{"id": "__proto__", "turns": {}}]}
    cases = {
        "[}": "it is no JSON",
        "{}": "it holds no conversations",
        json.dumps(circle): "damaged",
        json.dumps(named): "damaged",
    }
    for content, words in cases.items():
        file = tmp_path / "import.json"
        file.write_text(content, encoding="utf-8")
        chat.page.set_input_files("[aria-label='File to import']", file)
        chat.page.locator(".toast", has_text=words).wait_for()
    assert chat.titles == []


def test_two_windows_lose_nothing_of_each_other(chat: ChatPage, stub: Stub) -> None:
    chat.send("From the first")
    other = ChatPage(chat.page.context.new_page(), stub)
    other.open()
    other.wait_for_answer("Yes.")
    other.send("From the second")
    chat.page.locator("article.user", has_text="From the second").wait_for()
    chat.send("And on")
    other.page.locator("article.user", has_text="And on").wait_for()
    other.reload()
    assert other.questions == ["From the first", "From the second", "And on"]


def test_windows_that_do_not_hear_of_each_other(chat: ChatPage, stub: Stub) -> None:
    chat.send("Both know this")
    other = ChatPage(chat.page.context.new_page(), stub)
    other.page.add_init_script("delete window.BroadcastChannel")
    other.open()
    other.wait_for_answer("Yes.")
    chat.send("From the first")
    other.send("From the second")
    chat.reload()
    assert chat.page.locator(".branches").first.inner_text().strip() == "2/2"
    seen = chat.questions[-1]
    chat.page.locator("article.user").last.hover()
    chat.page.get_by_role("button", name="Earlier version" if seen == "From the second" else "Later version").click()
    chat.page.locator("article.user", has_text="From the").wait_for()
    assert {seen, chat.questions[-1]} == {"From the first", "From the second"}


def test_asking_twice_in_haste_asks_once(chat: ChatPage, stub: Stub) -> None:
    chat.send("Hi")
    chat.button("Answer again").evaluate("button => { button.click(); button.click(); }")
    chat.done()
    assert chat.page.locator(".branches").inner_text().strip() == "2/2"
    assert len(stub.requests) == 2


def test_another_conversation_meanwhile(chat: ChatPage, stub: Stub) -> None:
    stub.will(text("Slow"), "wait", text(" answer."))
    chat.start("One")
    chat.wait_for_answer("Slow")
    chat.button("New conversation").click()
    chat.page.get_by_label("Being answered").wait_for()
    stub.will(text("Quick."))
    chat.send("Two")
    assert chat.answers == ["Quick."]
    stub.release()
    chat.page.get_by_label("Being answered").wait_for(state="detached")
    chat.page.locator(".entry", has_text="One").click()
    assert chat.answers == ["Slow answer."]
