"""Answers put together again, and given back to the templates they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from read_answers import THINK, calls, read, reasoning, texts

from edgellm.errors import InvalidParameter
from edgellm.events import ToolCall
from edgellm.prompts.dialects import GENERIC
from edgellm.prompts.messages import Message, checked
from edgellm.prompts.parts import answered
from edgellm.prompts.template import ChatTemplate
from edgellm.prompts.tool_prompt import ToolPrompt

THINKING = (Path(__file__).parent / "templates" / "thinking.jinja").read_text(encoding="utf-8")
ANSWER = (
    "<think>\nI must look.\n</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def _message(answer: str) -> Message:
    pieces = read(list(answer), GENERIC, THINK)
    return answered(texts(pieces), reasoning(pieces), [ToolCall(*call) for call in calls(pieces)])


def test_the_parts_of_an_answer() -> None:
    message = _message(ANSWER)
    assert (message["content"], message["reasoning_content"]) == ("One moment.", "I must look.")
    made = [ToolCall("made", "weather", {"city": "Oslo"}), ToolCall("made", "now", {})]
    assert message["tool_calls"] == [call.to_dict() for call in made]
    broken = '<tool_call>{"name": "weather", "arguments": {"city"'
    assert _message(broken) == {"role": "assistant", "content": broken}
    assert _message("Hi") == {"role": "assistant", "content": "Hi"}


def test_the_message_is_what_the_model_said() -> None:
    """To the letter, as long as the turn goes on; so nothing that is known of it has to be computed again."""
    template = ChatTemplate(THINKING)
    asked = {"role": "user", "content": "Weather?"}
    said = checked([asked, _message(ANSWER)])
    messages, variables = ToolPrompt(template).prepared(said, ())
    start = template.render([asked])
    assert template.render(messages, add_generation_prompt=False, **variables) == f"{start}{ANSWER}<|im_end|>\n"
    results = [{"role": "tool", "content": "1", "tool_call_id": "made"}]
    again = template.render([*messages, *results])
    assert again.startswith(start + ANSWER)
    later = template.render([*messages, *results, {"role": "assistant", "content": "Fine."}, asked])
    assert "I must look." not in later  # dropped once the turn is over, as this template wants it


@pytest.mark.parametrize(
    "calls", [5, {"id": "a"}, "calls", [5], [{"function": {}}], [{"function": {"name": "f", "arguments": "{"}}]]
)
def test_calls_that_are_none_are_refused(calls: object) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(InvalidParameter, match=r"messages\[1\]\.tool_calls"):
        ToolPrompt(ChatTemplate(THINKING)).prepared(said, ())
