"""The chat templates of published models: rendered as transformers does, their calls of tools read back."""

from __future__ import annotations

import html
import json
from typing import Any

import pytest
from read_answers import calls, read, texts

from edgellm.errors import TemplateError
from edgellm.prompts.dialects import dialect_of
from edgellm.prompts.functions import tools_of
from edgellm.prompts.reasoning import thinking_of
from edgellm.prompts.template import ChatTemplate
from edgellm.prompts.tool_prompt import ToolPrompt

ARGUMENTS = {"city": 'Orléans "x"', "days": [1, 2], "deep": {"a": True, "b": "c"}, "n": -3, "unit": "C"}
PROPERTIES = {
    "city": {"type": "string", "description": "Which city"},
    "days": {"type": "array", "items": {"type": "integer"}, "description": "Which days"},
    "deep": {"type": "object", "description": "More", "additionalProperties": True},
    "n": {"type": "integer", "description": "How many"},
    "unit": {"type": "string", "enum": ["C", "F"], "description": "Of temperature"},
}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
TOOLS = tools_of(
    [{"name": name, "description": f"The {name}", "parameters": PARAMETERS} for name in ("weather", "forecast")], dict
)
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
ASKED = [{"role": "user", "content": "Weather?"}]
OWN = {"Kimi-K3", "MiniMax-M3", "tencent-Hy3"}
"""They write calls in a way of their own, which is not read: what they say comes out as text."""

ESCAPED = {"meetkai-functionary-medium-v3.1"}
"""Joins texts that are `safe`, which transformers then escapes as for a web page; here they stay as they are."""


def _called(count: int) -> list[dict[str, Any]]:
    made = [
        {"id": f"call0000{at}", "type": "function", "function": {"name": tool.name, "arguments": ARGUMENTS}}
        for at, tool in enumerate(TOOLS[:count])
    ]
    results = [
        {"role": "tool", "name": tool.name, "content": f"result{at}", "tool_call_id": f"call0000{at}"}
        for at, tool in enumerate(TOOLS[:count])
    ]
    return [*ASKED, {"role": "assistant", "content": "", "tool_calls": made}, *results]


def _answer(prompt: str, whole: str) -> str:
    """What the model said, from the prompt and the text of the conversation with its answer: where templates open
    reasoning in the prompt and drop it later, from the last mark on in which both are the same."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = next(at for at in range(len(prompt)) if whole[at] != prompt[at])
    return whole[max(whole.rfind("<", 0, same), whole.rfind("[", 0, same), whole.rfind(">", 0, same) + 1) :]


def test_templates_render_as_in_transformers(published_templates: dict[str, str]) -> None:
    module = pytest.importorskip("transformers.utils.chat_template_utils")
    compared, shown = set(), set()
    for name, source in published_templates.items():
        template = ChatTemplate(source, bos="<s>", eos="</s>")
        prompt = ToolPrompt(template)
        for messages in (ASKED, _called(1), _called(2)):
            prepared, variables = prompt.prepared(messages, TOOLS)
            given = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, **variables}
            try:
                expected = module.render_jinja_template(
                    [prepared], chat_template=source, add_generation_prompt=True, **given
                )[0][0]
            except Exception:
                with pytest.raises(TemplateError):
                    template.render(prepared, **variables)
                continue
            if name in ESCAPED:
                expected = html.unescape(expected)
            assert template.render(prepared, **variables) == expected, name
            compared.add(name)
            shown |= {name} if "forecast" in expected else set()
    assert len(compared) >= 65
    assert len(shown) >= 65  # each of them tells its model of the tools


def test_calls_of_published_templates_are_read_back(published_templates: dict[str, str]) -> None:
    found = {}
    for name, source in published_templates.items():
        template = ChatTemplate(source, bos="<s>", eos="</s>")
        prompt, thinking = ToolPrompt(template), thinking_of(template)
        for count in (1, 2):
            try:
                messages, variables = prompt.prepared(_called(count)[:2], TOOLS)
                start = template.render(prompt.prepared(ASKED, TOOLS)[0], **variables)
                whole = template.render(messages, add_generation_prompt=False, **variables)
            except TemplateError:
                continue
            said = _answer(start, whole)
            pieces = read(said, prompt.dialect, thinking, start if whole.startswith(start) else "", SCHEMAS)
            got = [(called, arguments) for _, called, arguments in calls(pieces)]
            wanted = [(tool.name, ARGUMENTS) for tool in TOOLS[:count] if tool.name in whole[len(start) - 40 :]]
            if name in OWN:
                assert texts(pieces).strip()
            else:
                assert got == wanted, (name, said, pieces)
                found[name] = prompt.dialect.name
    assert len(found) >= 55
    assert len(set(found.values())) >= 15


def test_templates_that_know_no_tools_tell_of_them_all_the_same() -> None:
    plain = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no') }}{% endif %}"
    plain += "[{{ m.role }}]{{ m.content }}{% endfor %}"
    template = ChatTemplate(plain)
    messages, variables = ToolPrompt(template).prepared([*_called(2), {"role": "assistant", "content": "Fine."}], TOOLS)
    text = template.render(messages, **variables)
    assert variables == {}
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert all(json.dumps(tool.described()["function"], ensure_ascii=False) in text for tool in TOOLS)
    assert dialect_of(plain).write([(tool.name, ARGUMENTS) for tool in TOOLS]) in text
    assert "<tool_response>\nresult0\n</tool_response>\n<tool_response>\nresult1\n</tool_response>" in text


def test_a_template_that_wants_arguments_as_text_gets_them() -> None:
    source = "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    source += "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
    prompt = ToolPrompt(ChatTemplate(source))
    messages, _ = prompt.prepared(_called(1), TOOLS)
    assert prompt.arguments == "text"
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == json.dumps(ARGUMENTS, ensure_ascii=False)


def test_tools_go_where_the_template_reads_them() -> None:
    for variable in ("tools", "xml_tools", "available_tools", "python_tools"):
        template = ChatTemplate("{{ " + variable + " | tojson }}{{ messages[0].content }}")
        assert ToolPrompt(template).variable == variable
        messages, variables = ToolPrompt(template).prepared(ASKED, TOOLS)
        assert "weather" in template.render(messages, **variables)
    asks = ChatTemplate("{% if tools %}T{% endif %}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    assert ToolPrompt(asks).variable == ""  # it asks whether there are any, and does not say which
    source = "{% for m in messages %}{{ m.content }}{% if m.role == 'system' and 'tools' in m %}{{ m.tools }}"
    source += "{% endif %}{% endfor %}"
    messages, variables = ToolPrompt(ChatTemplate(source)).prepared(ASKED, TOOLS)
    assert messages[0]["role"] == "system"
    assert json.loads(messages[0]["tools"])[0]["name"] == "weather"
    assert variables == {}
