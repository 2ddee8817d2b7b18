"""What goes wrong is said where it happens, with a way on, and nothing is lost by it."""

from __future__ import annotations

import re

import pytest
from serve.page.chat_page import ChatPage
from serve.page.stub import Stub, text


def test_a_busy_server(chat: ChatPage, stub: Stub) -> None:
    stub.refuses(429, "Too many requests wait.")
    chat.send("Hi")
    chat.see("The server is busy with other requests.")
    chat.see("Too many requests wait.")
    assert chat.questions == ["Hi"]
    stub.will(text("Now."))
    chat.button("Try again").click()
    chat.wait_for_answer("Now.")
    chat.done()
    assert chat.page.locator(".notice").count() == 0
    assert chat.page.locator(".branches").count() == 0  # nothing came the first time, so nothing is kept of it


def test_a_key(chat: ChatPage, stub: Stub) -> None:
    stub.key = "secret"
    chat.send("Hi")
    chat.see("This server asks for a key.")
    stub.will(text("Welcome."))
    chat.page.get_by_label("Key").fill("wrong")
    chat.button("Use this key").click()
    chat.see("The server does not accept this key.")
    chat.page.get_by_label("Key").fill("secret")
    chat.button("Use this key").click()
    chat.wait_for_answer("Welcome.")
    chat.done()
    chat.reload()
    stub.will(text("Again."))
    chat.send("Still here?")
    assert chat.answers == ["Welcome.", "Again."]
    assert "secret" not in chat.page.evaluate("JSON.stringify({...localStorage})")
    assert "secret" in chat.page.evaluate("JSON.stringify({...sessionStorage})")


def test_a_key_from_the_start(chat: ChatPage, stub: Stub) -> None:
    stub.key = "secret"
    chat.reload()
    chat.see("This server asks for a key.")
    chat.page.get_by_label("Key").fill("secret")
    chat.page.keyboard.press("Enter")
    chat.page.wait_for_selector("select.model")
    assert chat.page.locator(".notice").count() == 0


def test_a_conversation_that_is_too_long(chat: ChatPage, stub: Stub) -> None:
    for question in ("One", "Two", "Three"):
        chat.send(question)
    stub.refuses(400, "The prompt has 9000 tokens, the model reads 8192.", "context_length_exceeded")
    chat.send("Four")
    chat.see("The conversation is longer than this model can read.")
    chat.see("The prompt has 9000 tokens")
    chat.button("Leave out the earlier half and try again").click()
    chat.wait_for_answer("Yes.")
    chat.done()
    assert [m["content"] for m in chat.asked["messages"] if m["role"] == "user"] == ["Three", "Four"]
    assert chat.questions == ["One", "Two", "Three", "Four"]
    chat.see("What is above is not sent.")
    chat.button("Send it again").click()
    chat.send("Five")
    assert [m["content"] for m in chat.asked["messages"] if m["role"] == "user"] == [
        "One",
        "Two",
        "Three",
        "Four",
        "Five",
    ]


def test_one_message_that_is_too_long(chat: ChatPage, stub: Stub) -> None:
    stub.refuses(400, "Too long.", "context_length_exceeded")
    chat.send("word " * 50)
    assert chat.page.get_by_role("button", name="Leave out the earlier half and try again").count() == 0
    chat.button("Shorten the message").click()
    assert chat.page.input_value(".edit textarea").startswith("word word")


@pytest.mark.parametrize("how", ["drop", "end"])
def test_a_lost_connection(chat: ChatPage, stub: Stub, how: str) -> None:
    stub.scripts.append([text("Half an"), how])
    chat.send("Go")
    chat.see("The connection to the server was lost.")
    assert chat.answers == ["Half an"]
    chat.reload()
    assert chat.answers == ["Half an"]
    stub.will(text(" answer."))
    chat.button("Continue").click()
    chat.wait_for_answer("Half an answer.")
    chat.done()
    assert chat.asked["continue_final_message"] is True
    assert chat.page.locator(".notice").count() == 0


def test_nobody_is_there(chat: ChatPage, stub: Stub) -> None:
    chat.page.route(re.compile("/v1/"), lambda route: route.abort())
    chat.send("Hello?")
    chat.see("Nobody answers at its address.")
    chat.page.unroute(re.compile("/v1/"))
    stub.will(text("Here I am."))
    chat.button("Try again").click()
    chat.wait_for_answer("Here I am.")


def test_an_error_in_the_midst_of_an_answer(chat: ChatPage, stub: Stub) -> None:
    stub.scripts.append(
        [text("So far"), {"error": {"message": "Out of memory.", "type": "server_error", "code": None}}]
    )
    chat.send("Go")
    chat.see("The server could not finish the answer.")
    chat.see("Out of memory.")
    assert chat.answers == ["So far"]
    stub.will(text("Whole."))
    chat.button("Try again").click()
    chat.wait_for_answer("Whole.")
    chat.done()
    assert chat.page.locator(".branches").inner_text().strip() == "2/2"  # what came of the first stays reachable


def test_a_model_that_is_gone(chat: ChatPage, stub: Stub) -> None:
    stub.refuses(404, "There is no model smollm2:135m.", "model_not_found")
    chat.send("Hi")
    chat.see("The server does not have this model.")
    del stub.models[0]
    stub.will(text("Another one."))
    chat.button("Look for models and try again").click()
    chat.wait_for_answer("Another one.")
    assert chat.asked["model"] == "gemma3:270m"


def test_an_error_of_the_settings(chat: ChatPage, stub: Stub) -> None:
    chat.button("Settings").click()
    chat.page.get_by_label("JSON schema").fill("{not json")
    chat.see("The schema is no JSON")
    chat.page.keyboard.press("Escape")
    chat.send("Hi")
    chat.see("The settings of this conversation cannot be sent.")
    assert stub.requests == []
    chat.button("Open the settings").click()
    chat.page.get_by_label("JSON schema").fill("")
    chat.page.keyboard.press("Escape")
    chat.button("Try again").click()
    chat.wait_for_answer("Yes.")
