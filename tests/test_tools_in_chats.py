"""Tools and reasoning in conversations, on the echo backend, whose model says what a script has."""

from __future__ import annotations

import asyncio
import enum
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgellm.backends.echo import EchoBackend
from edgellm.chat import Chat
from edgellm.engine.cancel import CancelToken
from edgellm.errors import ConstraintFailed, EdgeLLMError, InvalidParameter, Unsupported
from edgellm.events import Chunk, Completion, ToolCall
from edgellm.model import Model
from edgellm.params import GenerateParams
from edgellm.reply import complete

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
)
TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
THOUGHT = "<think>\nHm, <tool_call> no.\n</think>\n\n"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """The time."""
    return "noon"


class Saying(EchoBackend):
    """Its answers are `answers`, one after the other, by how often it was answered before."""

    def __init__(self, *answers: str, template: str = TOOLS + CHATML + END, **options: Any) -> None:
        super().__init__(script="", **options)
        self.info = replace(self.info, chat_template=template)
        self.answers = list(answers)

    def _forward(self, sequences: Any, steps: Any) -> Any:
        tokens = [*sequences[0].tokens, *steps[0].tokens]
        said = bytes(token for token in tokens if token < 256).decode("utf-8", "replace").count("assistant\n") - 1
        self._script = list(self.answers[min(max(said, 0), len(self.answers) - 1)].encode())
        return super()._forward(sequences, steps)


def chat_of(*answers: str, **options: Any) -> Chat:
    return Model(Saying(*answers, **options)).chat()


def joined(chunks: list[Chunk]) -> tuple[str, str, list[ToolCall], list[int]]:
    return (
        "".join(chunk.text for chunk in chunks),
        "".join(chunk.reasoning for chunk in chunks),
        complete(piece for chunk in chunks for piece in chunk.tool_calls),
        [token for chunk in chunks for token in chunk.tokens],
    )


def test_an_answer_is_told_into_text_reasoning_and_calls() -> None:
    chat = chat_of(f"{THOUGHT}I add.\n{CALL}")
    done = chat.send("1 + 2?", tools=[add, now], temperature=0)
    assert (done.text, done.reasoning, done.finish_reason) == ("I add.", "Hm, <tool_call> no.", "tool_calls")
    [call] = done.tool_calls
    assert (call.name, call.arguments) == ("add", {"a": 1, "b": 2})
    assert chat.messages[-1] == {
        "role": "assistant",
        "content": "I add.",
        "reasoning_content": "Hm, <tool_call> no.",
        "tool_calls": [call.to_dict()],
    }
    plain = done.to_dict()
    assert plain["tool_calls"] == [{"id": call.id, "name": "add", "arguments": {"a": 1, "b": 2}}]
    assert json.loads(json.dumps(plain))["reasoning"] == done.reasoning


@pytest.mark.parametrize(
    "answer", [f"{THOUGHT}I add.\n{CALL}\n{CALL}", f"{CALL[:-20]}", "No call.", THOUGHT, THOUGHT[:20]]
)
def test_a_stream_equals_the_whole_answer(answer: str) -> None:
    whole = chat_of(answer).send("Go", tools=[add], temperature=0)
    chunks = list(chat_of(answer).stream("Go", tools=[add], temperature=0))
    text, reasoning, calls, tokens = joined(chunks)
    assert (text, reasoning, tokens) == (whole.text, whole.reasoning, whole.tokens)
    done = chunks[-1].completion
    assert done is not None
    assert calls == done.tool_calls
    assert [(call.name, call.arguments) for call in calls] == [(c.name, c.arguments) for c in whole.tool_calls]
    assert done.finish_reason == whole.finish_reason

    async def read() -> list[Chunk]:
        return [chunk async for chunk in chat_of(answer).astream("Go", tools=[add], temperature=0)]

    assert joined(asyncio.run(read()))[:2] == (text, reasoning)


def test_a_call_comes_in_pieces() -> None:
    pieces = [p for chunk in chat_of(CALL).stream("Go", tools=[add], temperature=0) for p in chunk.tool_calls]
    assert [piece.name for piece in pieces if piece.name or piece.id] == ["add"]
    assert len([piece for piece in pieces if piece.arguments]) > 4
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"a": 1, "b": 2}
    assert [piece.complete for piece in pieces][-1:] == [True]


@pytest.mark.parametrize(
    "answer", [CALL[:-16], CALL.replace('"b": 2', '"b": '), CALL.replace("add", "a b"), "<tool_call>", "</tool_call>"]
)
def test_what_is_no_call_is_text(answer: str) -> None:
    done = chat_of(answer).send("Go", tools=[add], temperature=0)
    assert not done.tool_calls
    assert done.text == answer
    assert done.finish_reason == "stop"


def test_without_tools_nothing_is_called() -> None:
    done = chat_of(CALL).send("Go", temperature=0)
    assert (done.text, done.tool_calls) == (CALL, [])
    chat = chat_of(CALL)
    done = chat.send("Go", tools=[add], tool_choice="none", temperature=0)
    assert (done.text, done.tool_calls) == (CALL, [])
    assert done.usage.prompt_tokens == chat_of(CALL).send("Go", tools=[add], temperature=0).usage.prompt_tokens


def test_the_last_round_keeps_what_is_known() -> None:
    chat = chat_of(CALL, "Three.")
    before: list[int] = []
    original = chat.model.prompter.prepare

    def prepare(*arguments: Any, **options: Any) -> Any:
        turn = original(*arguments, **options)
        before.append(len(turn.tokens))
        return turn

    chat.model.prompter.prepare = prepare  # type: ignore[method-assign]
    done = chat.run("Go", tools=[add], rounds=1, temperature=0)
    assert (done.text, done.finish_reason) == ("Three.", "stop")
    assert done.usage.cached_tokens >= before[0]  # the first prompt, tools and all


@pytest.mark.parametrize("template", [TOOLS + CHATML + END, CHATML + END, EchoBackend().info.chat_template])
@pytest.mark.parametrize("thought", ["", THOUGHT])
def test_a_call_that_must_come_comes(template: str, thought: str) -> None:
    for seed in range(5):
        chat = chat_of(f"{thought}I would rather say this.", template=template)
        done = chat.send("Go", tools=[add, now], tool_choice="add", temperature=1.2, seed=seed, thinking_budget=9)
        assert done.finish_reason == "tool_calls", done
        [call] = done.tool_calls
        assert call.name == "add"
        assert set(call.arguments) == {"a", "b"}
        assert all(isinstance(each, int) for each in call.arguments.values())
        done = chat.send("Go", tools=[add, now], tool_choice="required", temperature=1.2, seed=seed, thinking_budget=9)
        assert {call.name for call in done.tool_calls} <= {"add", "now"}
        assert done.tool_calls


@pytest.mark.parametrize("name", ["turns", "inst", "zephyr", "parts", "deepseek", "granite", "phi", "headers"])
def test_a_call_comes_with_templates_as_they_are_published(name: str) -> None:
    template = (Path(__file__).parent / "prompts" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for seed in range(3):
        chat = chat_of("Never.", template=template)
        done = chat.send("Go", tools=[add, now], tool_choice="add", temperature=1.2, seed=seed, thinking_budget=9)
        assert [call.name for call in done.tool_calls] == ["add"], done
        assert set(done.tool_calls[0].arguments) == {"a", "b"}
        results = [{"role": "tool", "tool_call_id": done.tool_calls[0].id, "name": "add", "content": "result 31"}]
        turn = chat.model.prompter.read([*chat.messages, *results], tools=[add, now])
        assert "result 31" in turn.text


def test_reasoning_stays_free_before_a_form() -> None:
    answer = f'{THOUGHT}{{"n": 5}}'
    chat = chat_of(answer)
    done = chat.send("Go", schema=SCHEMA, temperature=0)
    assert (done.reasoning, done.text, done.parsed) == ("Hm, <tool_call> no.", '{"n": 5}', {"n": 5})
    turn = chat.model.prompter.prepare([{"role": "user", "content": "Go"}], GenerateParams())
    assert chat.model.generate(turn, schema=SCHEMA, temperature=0).parsed == {"n": 5}
    done = chat_of(f"{THOUGHT}yes").send("Go", choices=["yes", "no"], temperature=0)
    assert (done.reasoning, done.parsed) == ("Hm, <tool_call> no.", "yes")
    done = chat_of(f"{THOUGHT}12").send("Go", regex="[0-9]+", temperature=0)
    assert done.parsed == "12"


def test_a_model_with_tools_calls_or_answers_in_the_form() -> None:
    chat = chat_of(CALL, '{"n": 3}')
    done = chat.run("1 + 2?", tools=[add], schema=SCHEMA, temperature=0)
    assert done.parsed == {"n": 3}
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_tokens_of_reasoning_are_counted() -> None:
    done = chat_of(f"{THOUGHT}Yes.").send("Go", temperature=0)
    assert done.usage.reasoning_tokens == len("\nHm, <tool_call> no.\n</think>")
    assert done.to_dict()["usage"]["reasoning_tokens"] == done.usage.reasoning_tokens
    opened = CHATML + END.replace("assistant\n", "assistant\n<think>\n")
    done = chat_of("<think>\nHm.</think>Yes.", template=opened).send("Go", temperature=0)  # the first line is there
    assert (done.reasoning, done.usage.reasoning_tokens) == ("Hm.", len("Hm.</think>"))
    assert chat_of("<think>\nHm.", template=opened).send("Go", temperature=0).usage.reasoning_tokens == len("Hm.")
    done = chat_of("Yes.", template=opened).send("Go", temperature=0, thinking_budget=0, max_tokens=20)
    assert done.usage.reasoning_tokens == len("\n</think>")  # what is behind the mark is none
    assert chat_of("Yes.").send("Go", temperature=0).usage.reasoning_tokens == 0


def test_reasoning_ends_at_its_budget() -> None:
    long = "<think>\n" + "and so on " * 40 + "</think>\n\nYes."
    done = chat_of(long).send("Go", temperature=0, thinking_budget=30, max_tokens=60)
    assert len(done.reasoning) < 34
    assert long[8:].startswith(done.reasoning)
    assert done.text
    for budget in (0, 1, 30):
        done = chat_of(long).send("Go", temperature=0, thinking_budget=budget, schema=SCHEMA)
        assert set(done.parsed) == {"n"}
        assert len(done.reasoning) <= budget + 4
    opened = CHATML + END.replace("assistant\n", "assistant\n<think>\n")
    done = chat_of(long, template=opened).send("Go", temperature=0, thinking_budget=0, logprobs=1, max_tokens=40)
    assert (done.reasoning, len(done.logprobs or [])) == ("", len(done.tokens))
    assert not chat_of("Yes.").send("Go", temperature=0, thinking_budget=0).reasoning
    with pytest.raises(InvalidParameter, match="thinking_budget"):
        chat_of("Yes.").model.generate("Go", thinking_budget=3)


def test_thinking_is_switched_as_the_template_can() -> None:
    plain = EchoBackend().info.chat_template or ""
    assert chat_of("Yes.", template=plain).model.chat(thinking=False).send("Go", temperature=0).text == "Yes."
    with pytest.raises(Unsupported, match="thinking"):
        chat_of("Yes.", template=plain).model.chat(thinking=True).send("Go")
    with pytest.raises(Unsupported, match="no way to turn it off"):
        chat_of("Yes.").model.chat(thinking=False).send("Go")
    switch = END.replace(
        "{% endif %}", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    with chat_of("Yes.", template=CHATML + switch).model as model:
        off, on = (
            len(model.prompter.read([{"role": "user", "content": "x"}], thinking=t).tokens) for t in (False, True)
        )
        assert off > on


def test_the_loop_calls_and_answers() -> None:
    chat = chat_of(CALL, f"{THOUGHT}It is 3.")
    done = chat.run("1 + 2?", tools=[add, now], temperature=0)
    assert (done.text, done.reasoning, done.finish_reason) == ("It is 3.", "Hm, <tool_call> no.", "stop")
    call, result = chat.messages[1]["tool_calls"][0], chat.messages[2]
    assert result == {"role": "tool", "tool_call_id": call["id"], "name": "add", "content": "3"}

    async def later(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    later.__name__ = "add"
    chat = chat_of(CALL, "It is 3.")
    assert asyncio.run(chat.arun("1 + 2?", tools=[later], temperature=0)).text == "It is 3."
    assert chat.messages[2]["content"] == "3"


def test_results_are_handed_back_by_hand() -> None:
    chat = chat_of(f"{CALL}\n{CALL}", "It is 3.")
    described = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    done = chat.send("1 + 2?", tools=described, temperature=0)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in done.tool_calls]
    assert len(results) == 2
    assert chat.send(results, tools=described, temperature=0).text == "It is 3."
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    again = chat.regenerate(tools=described, temperature=0)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert len(again.tool_calls) == 2
    with pytest.raises(InvalidParameter, match="at=0"):
        chat.send(results, at=0)


def test_errors_of_tools_are_told_to_the_model() -> None:
    def add(a: int, b: int) -> int:
        raise KeyError("broken")

    chat = chat_of(CALL, "Sorry.")
    assert chat.run("Go", tools=[add], temperature=0).text == "Sorry."
    assert chat.messages[2]["content"] == "error: KeyError: 'broken'"
    for answer, told in (
        (CALL.replace("1", '"x"'), "a: 'x' is not valid"),
        (CALL.replace("add", "sub"), "no tool 'sub'"),
    ):
        chat = chat_of(answer, "Sorry.")
        assert chat.run("Go", tools=[add], temperature=0).text == "Sorry."
        assert told in chat.messages[2]["content"]
    chat = chat_of(CALL, "Sorry.")
    asked: list[ToolCall] = []
    chat.run("Go", tools=[add], approve=lambda call: asked.append(call) or "not today", temperature=0)
    assert chat.messages[2]["content"] == "error: this call was not approved: not today"
    assert [call.name for call in asked] == ["add"]


def test_the_loop_has_an_end() -> None:
    chat = chat_of(CALL)
    done = chat.run("Go", tools=[add], rounds=3, temperature=0)
    assert (done.text, done.finish_reason) == (CALL, "stop")  # the tools are taken away
    assert [message["role"] for message in chat.messages].count("tool") == 3
    cancel = CancelToken()
    chat = chat_of(CALL)

    def stop() -> str:
        cancel.cancel()
        return "stopped"

    stop.__name__ = "add"
    chat = chat_of(CALL.replace('"a": 1, "b": 2', ""))
    assert chat.run("Go", tools=[stop], cancel=cancel, temperature=0).finish_reason == "cancelled"
    assert chat.messages[-1]["role"] == "assistant"
    with pytest.raises(InvalidParameter, match="tools"):
        chat.run("Go")
    with pytest.raises(InvalidParameter, match="rounds"):
        chat.run("Go", tools=[add], rounds=0)


def test_a_cancelled_task_ends_the_tool_that_it_awaits() -> None:
    ended: list[str] = []

    async def add(a: int, b: int) -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("add")
        return a + b

    async def go(chat: Chat) -> None:
        task = asyncio.create_task(chat.arun("Go", tools=[add], temperature=0))
        while len(chat.messages) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    chat = chat_of(CALL)
    asyncio.run(asyncio.wait_for(go(chat), 20))
    assert ended == ["add"]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.send("And now?", temperature=0).text == CALL  # nobody holds the chat


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@dataclass
class Place:
    city: str
    near: list[int]


def test_arguments_arrive_as_their_types() -> None:
    seen: list[Any] = []

    def weather(place: Place, unit: Unit, days: int | None = None) -> str:
        seen.extend((place, unit, days))
        return "fine"

    call = {"name": "weather", "arguments": {"place": {"city": "Oslo", "near": [1]}, "unit": "C"}}
    chat = chat_of(f"<tool_call>\n{json.dumps(call)}\n</tool_call>", "Fine.")
    assert chat.run("Go", tools=[weather], temperature=0).text == "Fine."
    assert seen == [Place("Oslo", [1]), Unit.CELSIUS, None]
    done = chat_of("Fine.").send("Go", tools=[weather], tool_choice="weather", temperature=0, thinking_budget=9)
    [must] = done.tool_calls
    assert set(must.arguments["place"]) == {"city", "near"}


def test_arguments_arrive_as_pydantic_models() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Point(pydantic.BaseModel):  # type: ignore[misc]
        x: int

    seen: list[Any] = []

    def draw(point: Point) -> None:
        seen.append(point)

    draw.__annotations__ = {"point": Point}
    call = '<tool_call>{"name": "draw", "arguments": {"point": {"x": 1}}}</tool_call>'
    chat_of(call, "Done.").run("Go", tools=[draw], temperature=0)
    assert seen == [Point(x=1)]


def test_an_answer_is_known_again_by_its_raw_text() -> None:
    backend = Saving(f"{THOUGHT}I add.\n{CALL}", f"{THOUGHT}It is 3.", "Fine.", ctx=4096)
    with Model(backend) as model:
        chat = model.chat()
        first = chat.send("1 + 2?", tools=[add], temperature=0)
        results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in first.tool_calls]
        second = chat.send(results, tools=[add], temperature=0)
        known = first.usage.prompt_tokens + first.usage.completion_tokens
        assert second.usage.cached_tokens >= known - 4, second.cache
        third = chat.send("Thanks", tools=[add], temperature=0)
        assert third.usage.cached_tokens >= second.usage.prompt_tokens + second.usage.completion_tokens - 4, third.cache
        assert len(chat._answers()) == 3


class Saving(Saying):
    """With the context of a longer conversation."""

    def __init__(self, *answers: str, ctx: int, template: str = TOOLS + CHATML + END) -> None:
        super().__init__(*answers, n_ctx=ctx, template=template)


def test_rounds_go_on_with_a_template_as_they_are_published() -> None:
    """It keeps reasoning between calls, and drops it once the user has spoken."""
    template = (Path(__file__).parent / "prompts" / "templates" / "thinking.jinja").read_text(encoding="utf-8")
    answers = (f"{THOUGHT.replace('<tool_call>', 'x')}I add.\n{CALL}\n{CALL}", f"{THOUGHT}It is 3.", "Fine.")
    with Model(Saving(*answers, ctx=8192, template=template)) as model:
        chat = model.chat("Be brief.")
        done = chat.run("1 + 2?", tools=[add], temperature=0)
        assert (done.text, done.reasoning) == ("It is 3.", "Hm, <tool_call> no.")
        assert done.usage.cached_tokens > done.usage.prompt_tokens - 120, done.cache
        assert done.cache.broke_at is None, done.cache
        assert [message["role"] for message in chat.messages[1:]] == ["user", "assistant", "tool", "tool", "assistant"]
        on = chat.send("Thanks", tools=[add], temperature=0)
        text = model.prompter.read(chat.messages[:-1], tools=[add]).text
        assert "Hm, x no." not in text
        assert on.cache.broke_at is not None  # where the reasoning was


def test_saved_conversations_keep_calls_and_reasoning(tmp_path: Path) -> None:
    answers = (f"{THOUGHT}I add.\n{CALL}", "It is 3.")
    chat = chat_of(*answers)
    chat.run("1 + 2?", tools=[add], temperature=0)
    chat.save(tmp_path / "chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert len(saved["said"]) == 2
    with Model(Saying(*answers)) as other:
        again = other.load_chat(tmp_path / "chat.json")
        assert again.messages == chat.messages
        turn = other.prompter.read(again.messages, tools=[add])
        assert turn.tokens == chat.model.prompter.read(chat.messages, tools=[add]).tokens
        assert [answer.content for answer in other.prompter.answers(again.messages, tools=chat._tools)] == [
            "I add.",
            None,
        ]


def test_streams_that_are_left_keep_what_was_said() -> None:
    chat = chat_of(f"{THOUGHT}I add.\n{CALL}")
    stream = chat.stream("Go", tools=[add], temperature=0)
    for chunk in stream:
        if chunk.text:
            break
    stream.close()  # type: ignore[attr-defined]
    assert chat.messages[-1]["reasoning_content"] == "Hm, <tool_call> no."
    assert "I add.".startswith(chat.messages[-1]["content"])


HOSTILE: Mapping[str, tuple[list[Any], str]] = {
    "twice": ([add, add], "comes twice"),
    "no name": ([{"name": "a b"}], "is no name"),
    "no tool": ([3], "a function or a JSON object"),
    "no object": ([{"name": "f", "parameters": {"type": "string"}}], "JSON Schema of an object"),
    "many": ([{"name": f"f{i}"} for i in range(200)], "is the most"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_tools_that_are_none_are_refused(case: str) -> None:
    tools, why = HOSTILE[case]
    with pytest.raises(InvalidParameter, match=why):
        chat_of("x").send("Go", tools=tools)


def test_schemas_that_cannot_be_kept_are_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    wide = {f"p{i}": {"type": "string", "pattern": "a{1,400}b{1,400}"} for i in range(3000)}
    for properties in ({"a": {"minLenght": 3}}, {"a": deep}, wide):
        tool = {"name": "f", "parameters": {"type": "object", "properties": properties, "required": list(properties)}}
        with pytest.raises(EdgeLLMError):
            chat_of("x").send("Go", tools=[tool], tool_choice="f")
    for choice in ("g", "", 3):
        with pytest.raises(InvalidParameter, match="tool_choice"):
            chat_of("x").send("Go", tools=[add], tool_choice=choice or "sub")
    with pytest.raises(InvalidParameter, match="there are no tools"):
        chat_of("x").send("Go", tool_choice="required")


def test_many_conversations_call_at_once() -> None:
    with Model(Saving(CALL, "It is 3.", ctx=2048)) as model:
        found: list[Completion | ConstraintFailed] = []

        def ask() -> None:
            found.append(model.chat().send("Go", tools=[add], tool_choice="add", temperature=0))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [done.tool_calls[0].arguments for done in found if isinstance(done, Completion)] == [
            {"a": 1, "b": 2}
        ] * 6


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Model] = []
    begin = Model.__init__

    def noted(self: Model, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        opened.append(self)

    monkeypatch.setattr(Model, "__init__", noted)
    yield
    for model in opened:
        model.close()
