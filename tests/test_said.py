"""The tokens of a conversation's next prompt: those of the whole text, but for what the model produced."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from tiny_onnx import write_decoder
from tiny_vocabularies import KINDS, ONNX, tokenizer_json, vocabulary

import edgellm
from edgellm.backends.base import Tokenizer
from edgellm.backends.echo import IM_END, EchoTokenizer
from edgellm.engine.seam import alone, continued, spelled
from edgellm.model import Model
from edgellm.said import Answer, Said, packed, unpacked

TEMPLATES: dict[str, Callable[[str, str], str]] = {
    "plain": lambda role, content: f"{role.upper()}:{content}\n",
    "control": lambda role, content: f"<s>{role}\n{content}</s>\n",
    "trimmed": lambda role, content: f"{role.upper()}:{content.rstrip()} </s>",
}
STARTS = {"plain": "ASSISTANT:", "control": "<s>assistant\n", "trimmed": "ASSISTANT:"}
WORDS = ["hello", "hell", " world", " the", "\n", "  ", "12", "345", ".", "é", "🙂", "x"]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5)
templates = st.sampled_from(sorted(TEMPLATES))
often = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    with vocabulary(request.param, tmp_path_factory.mktemp("vocabulary")) as opened:
        yield opened


class Talk:
    """A conversation whose answers are made up: `Said` beside the messages and the template."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.said = Said(tokenizer)
        self.messages: list[dict[str, str]] = []

    def prompt(self) -> str:
        shown = (TEMPLATES[self.template](message["role"], message["content"]) for message in self.messages)
        return "".join(shown) + STARTS[self.template]

    def tokens(self) -> list[int]:
        return self.said.tokens(self.prompt(), self.messages, bos=False)

    def whole(self) -> list[int]:
        return self.tokenizer.encode(self.prompt(), special=True)

    def ask(self, content: str) -> None:
        self.messages.append({"role": "user", "content": content})

    def answer(self, content: str, produced: list[int]) -> Answer:
        asked = self.tokens()
        answer = Answer(len(self.messages), self.prompt(), content, asked + produced, len(asked))
        self.said.add(answer)
        self.messages.append({"role": "assistant", "content": content})
        return answer


@often
@given(template=templates, turns=st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_plainly_spelled_answers_keep_the_whole_texts_tokens(
    tokenizer: Tokenizer, template: str, turns: list[tuple[list[str], list[str]]]
) -> None:
    talk = Talk(tokenizer, template)
    for question, reply in turns:
        talk.ask("".join(question))
        assert talk.tokens() == talk.whole()
        content, begin = "".join(reply), talk.prompt()
        seen = [tokenizer.encode(text, special=True) for text in (begin, begin + content)]
        assume(seen[1][: len(seen[0])] == seen[0])  # no token reaches over the seams on both sides of the answer
        talk.answer(content, seen[1][len(seen[0]) :])
        talk.ask("and")
        whole = talk.whole()
        assume(template == "trimmed" or whole[: len(seen[1])] == seen[1])
        assert talk.tokens() == whole
        talk.messages.pop()


@often
@given(template=templates, turns=st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_what_was_produced_stays_and_the_rest_goes_on(
    tokenizer: Tokenizer, template: str, turns: list[tuple[list[str], list[str]]]
) -> None:
    """Answers of words that are tokenized one by one, which no tokenizer does."""
    talk = Talk(tokenizer, template)
    for question, reply in turns:
        talk.ask("".join(question))
        content = "".join(reply)
        answer = talk.answer(content, [token for word in reply for token in alone(tokenizer, word)])
        talk.ask("and")
        found = talk.tokens()
        if template != "trimmed" or content.rstrip() == content:
            assert found[: len(answer.tokens)] == answer.tokens
            assert found[len(answer.tokens) :] == continued(tokenizer, talk.prompt(), len(answer.prompt) + len(content))
        assert found[: answer.n_prompt] == answer.tokens[: answer.n_prompt]
        # The same text, but for the spaces that begin a text behind a control token.
        assert spelled(tokenizer, found).replace(b" ", b"") == talk.prompt().encode().replace(b" ", b"")
        talk.messages.pop()


@often
@given(template=templates, first=words, second=words, data=st.data())
def test_what_was_edited_has_the_tokens_of_the_whole_text(
    tokenizer: Tokenizer, template: str, first: list[str], second: list[str], data: st.DataObject
) -> None:
    talk = Talk(tokenizer, template)
    talk.ask("".join(first))
    talk.answer("".join(second), [token for word in second for token in alone(tokenizer, word)])
    talk.ask("and")
    at = data.draw(st.integers(0, 1))
    edited = talk.messages[at]["content"] + data.draw(st.sampled_from(["o world", "x", "6"]))
    talk.messages[at] = {**talk.messages[at], "content": edited}
    assert talk.tokens() == talk.whole()


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    with vocabulary("spm-space", tmp_path_factory.mktemp("vocabulary")) as opened:
        yield opened


def test_a_stop_string_leaves_the_tokens_before_the_cut(spaces: Tokenizer) -> None:
    talk = Talk(spaces, "plain")
    talk.ask("the")
    hello, world, end = alone(spaces, "hell"), alone(spaces, "o world"), alone(spaces, "\nUSER: x")
    cut = talk.answer("hello w", [*hello, *world, *end])  # the stop string was "orld"
    talk.ask("the")
    assert talk.tokens()[: cut.n_prompt + len(hello) + 1] == cut.tokens[: cut.n_prompt + len(hello) + 1]
    assert spelled(spaces, talk.tokens()) == b" " + talk.prompt().encode()
    for _ in range(2):
        talk.messages.pop()
    whole = talk.answer("hello world", [*hello, *world, *end])
    talk.ask("again")
    assert talk.tokens()[: len(whole.tokens) - len(end)] == whole.tokens[: -len(end)]
    assert spelled(spaces, talk.tokens()) == b" " + talk.prompt().encode()


def test_half_a_character_and_control_tokens_in_an_answer(spaces: Tokenizer) -> None:
    talk = Talk(spaces, "plain")
    talk.ask("x")
    half = alone(spaces, "é")[:1]
    answer = talk.answer("x\ufffd", [*alone(spaces, "x"), *half])
    talk.ask("y")
    assert talk.tokens()[: len(answer.tokens)] == answer.tokens
    echo = Talk(EchoTokenizer(512), "plain")
    echo.ask("x")
    kept = echo.answer("ab", [IM_END, ord("a"), IM_END, ord("b"), IM_END])
    echo.ask("y")
    assert echo.tokens()[: len(kept.tokens)] == [*kept.tokens[:-1], ord("\n")]  # what ended it is no part of it


def test_a_rewritten_answer_has_the_whole_texts_tokens(spaces: Tokenizer) -> None:
    """As those do that leave out the thinking of earlier turns; what stood before is kept."""
    talk = Talk(spaces, "plain")
    talk.ask("x")
    first = talk.answer("hello", alone(spaces, "he") + alone(spaces, "llo"))
    talk.ask("y")
    talk.answer("hell</think>hello", alone(spaces, "hell</think>hello"))
    talk.ask("z")
    text = talk.prompt().replace("hell</think>", "")
    tokens = talk.said.tokens(text, talk.messages, bos=False)
    assert tokens == first.tokens + continued(spaces, text, len(first.prompt) + len("hello"))


def test_a_moved_answer_has_the_whole_texts_tokens(spaces: Tokenizer) -> None:
    """Vicuna's template puts a space before every answer, and none at the end of a prompt."""
    talk = Talk(spaces, "plain")
    talk.ask("x")
    talk.answer("hello", alone(spaces, "he") + alone(spaces, "llo"))
    talk.ask("y")
    text = talk.prompt().replace(":hello", ": hello")
    assert talk.said.tokens(text, talk.messages, bos=False) == spaces.encode(text, special=True)


def test_the_answer_that_is_there_counts(spaces: Tokenizer) -> None:
    """Of several to one prompt: regenerated ones, one that begins like another, the same text in other tokens."""
    talk = Talk(spaces, "plain")
    talk.ask("x")
    answers = []
    for content, parts in (("hell", ["hell"]), ("hello", ["he", "llo"]), ("hello", ["hell", "o"])):
        del talk.messages[1:]
        answers.append(talk.answer(content, [token for part in parts for token in alone(spaces, part)]))
    talk.ask("y")
    assert talk.tokens()[: len(answers[2].tokens)] == answers[2].tokens
    talk.messages[1] = {"role": "assistant", "content": "hell"}
    assert talk.tokens()[: len(answers[0].tokens)] == answers[0].tokens
    talk.messages[1] = {"role": "user", "content": "hell"}
    assert talk.tokens() == talk.whole()


class Interrupting(str):
    """A text that does something else when it is compared, as the collector may at any time."""

    __slots__ = ("do",)

    def startswith(self, *args: Any) -> bool:
        self.do()
        return super().startswith(*args)


def test_an_answer_comes_in_the_midst_of_another() -> None:
    said = Said(EchoTokenizer(512))

    def answer(prompt: str, text: str) -> Answer:
        return Answer(1, prompt, text, list((str(prompt) + text).encode()), len(prompt))

    def run() -> None:
        said.add(answer("a:", "one"))
        for name in ("b", "c"):
            text = Interrupting("a:one d:")
            text.do = lambda name=name: said.add(answer(f"{name}:", "hi"))
            if name == "b":
                said.add(dataclasses.replace(answer("a:one d:", "two"), prompt=text))
            else:
                said.answers(text, [])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    for prompt, text in {"a:": "one", "b:": "hi", "c:": "hi"}.items():
        assert [each.text for each in said.answers(prompt, [{}, {"role": "assistant", "content": text}])] == [text]
    assert len(said) == 4


@given(st.lists(st.tuples(st.text("ab"), st.text("ab"), st.booleans()), max_size=5))
def test_packed_answers_come_back(turns: list[tuple[str, str, bool]]) -> None:
    prompt, tokens, answers = "", list[int](), list[Answer]()
    for place, (question, reply, goes_on) in enumerate(turns):
        if not goes_on:
            prompt, tokens = "", []
        prompt, tokens = prompt + question, tokens + [ord(char) for char in question]
        answers.append(Answer(place, prompt, reply, tokens + [ord(char) for char in reply], len(tokens)))
        prompt, tokens = prompt + reply, answers[-1].tokens
    stored = json.loads(json.dumps(packed(answers)))
    assert unpacked(stored, 256) == answers
    if answers:
        assert len(json.dumps(stored)) < 600 + sum(len(json.dumps(dataclasses.asdict(each))) for each in answers)


@pytest.mark.parametrize(
    "value",
    [5, "abc", {"a": 1}, [5], [["", [], "", 0]], [["", [1], "", 2, 0]], [["", ["x"], "", 0, 0]], [["", [1], 5, 0, 0]],
     [["", [1], "", 0, -1]], [["", [1], "", 0, 0], ["x", None, "", 0, 0]], [["", {}, "", 0, 0]]],
)  # fmt: skip
def test_damaged_answers_are_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
        unpacked(value, 256)
    assert unpacked([["", [1, 300], "", 0, 0]], 256) == []


# The same through a chat, on both engines

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }}\n"
    "{% else %}{{ m['role'] | upper }}:{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def gguf(folder: Path) -> Path:
    model = tiny("gemma2")
    model.metadata |= {"tokenizer.ggml.add_space_prefix": True, "tokenizer.chat_template": TEMPLATE}
    return model.write(folder / "m.gguf")


def onnx(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tokenizer = tokenizer_json(ONNX[kind])
        with patch("tiny_onnx.N_VOCAB", len(tokenizer["model"]["vocab"])):
            path = write_decoder(folder)
        config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module", params=[gguf, *map(onnx, ONNX)], ids=["gguf", *ONNX])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = request.param(tmp_path_factory.mktemp("model"))
    with edgellm.load(path, ctx=512, cache=edgellm.CacheParams(disk=0)) as opened:
        yield opened


@pytest.mark.parametrize("bytes_too", [False, True])
def test_turns_of_a_chat(model: Model, bytes_too: bool) -> None:
    """Every prompt begins with all that was computed before, and the rest of it are the whole text's tokens."""
    tokenizer = model._engine.backend.tokenizer
    forbidden = {} if bytes_too else dict.fromkeys(range(259), -np.inf)
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 2.0, "seed": 3, "logit_bias": forbidden}
    chat = model.chat()
    known: list[int] = []
    for question in ("hello world", "the end", " hello", "\n"):
        done = chat.send(question, **options)
        answer = chat._answers()[-1]
        assert answer.tokens[: len(known)] == known
        assert done.usage.prompt_tokens == answer.n_prompt
        seam = len(answer.prompt) - len(f"\nUSER: {question}\nASSISTANT:")
        if known:
            assert answer.tokens[len(known) : answer.n_prompt] == continued(tokenizer, answer.prompt, seam)
            assert done.cache.computed < answer.n_prompt - len(known) + 12
        else:
            assert answer.tokens[: answer.n_prompt] == tokenizer.encode(answer.prompt, special=True)
        known = answer.tokens
    again = chat.regenerate(**options)
    assert chat._answers()[-1].tokens[: again.usage.prompt_tokens] == answer.tokens[: answer.n_prompt]


def test_a_question_that_begins_like_another_keeps_nothing(model: Model) -> None:
    """An edited message, in the chat or in a fork, that ends where a word of the new one goes on."""
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
    chat = model.chat()
    chat.send("hel", **options)
    for told, done in (
        (chat, chat.edit(0, "hello", **options)),
        (twin := chat.fork(), twin.edit(0, "hell", **options)),
    ):
        answer = told._answers()[-1]
        assert answer.tokens[: answer.n_prompt] == model.encode(answer.prompt, bos=False)
        assert done.usage.prompt_tokens == answer.n_prompt
    chat.messages[0]["content"] = "hello wor"
    chat.send("x", **options)
    answer = chat._answers()[-1]
    assert answer.tokens[: answer.n_prompt] == model.encode(answer.prompt, bos=False)
