"""The text of prompts, compared with transformers on the same templates and conversations."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import InvalidParameter, TemplateError, Unsupported
from edgellm.prompts.sandbox import Program
from edgellm.prompts.template import ChatTemplate, sources

TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("templates/*.jinja")}
NOW = datetime(2031, 2, 3, 4, 5, 6)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Which city"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Orléans"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": " Hello <b>é</b> 😀\n"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello!"},
        {"role": "user", "content": "More\n\n"},
    ],
    "reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", "reasoning_content": "They greet."},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"degrees": 20}', "tool_call_id": "call00001", "name": "weather"},
        {"role": "assistant", "content": "20 degrees."},
    ],
}


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return NOW


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """transformers' renderer, with its clock stopped."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "datetime", _Clock)

    def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
        options = {"bos_token": "<s>", "eos_token": "</s>", **options}
        rendered = module.render_jinja_template([messages], chat_template=source, **options)
        return str(rendered[0][0])

    yield render
    patch.undo()


ALIASES = "5.21"  # the first transformers that gives reasoning fields the name a template reads; needs Python 3.11


def _template(source: str | Mapping[str, str], **options: Any) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", now=lambda: NOW, **options)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_equals_transformers(name: str, reference: Any) -> None:
    if name == "channels":
        pytest.importorskip("transformers", minversion=ALIASES)
    template = _template(TEMPLATES[name])
    compared = 0
    for messages in CONVERSATIONS.values():
        for tools in (None, TOOLS) if template.supports("tools") else (None,):
            for options in _options(messages):
                try:
                    expected = reference(TEMPLATES[name], messages, tools=tools, **options)
                except Exception:
                    with pytest.raises(TemplateError):
                        template.render(messages, tools=tools, **options)
                else:
                    assert template.render(messages, tools=tools, **options) == expected
                    compared += 1
    assert compared >= 6


def _options(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    options = [{"add_generation_prompt": True}, {"add_generation_prompt": False}]
    if messages[-1]["role"] == "assistant":
        options.append({"continue_final_message": True})
    return options


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_sets_the_variable_of_the_template(thinking: bool, reference: Any) -> None:
    messages = CONVERSATIONS["one"]
    for name, variable in (("thinking", "enable_thinking"), ("granite", "thinking")):
        expected = reference(TEMPLATES[name], messages, add_generation_prompt=True, **{variable: thinking})
        assert _template(TEMPLATES[name]).render(messages, thinking=thinking) == expected


def test_documents_and_other_variables(reference: Any) -> None:
    messages = CONVERSATIONS["one"]
    documents = [{"doc_id": 1, "text": "line\nline"}, {"doc_id": 2, "text": "é"}]
    expected = reference(TEMPLATES["granite"], messages, documents=documents, tools=TOOLS, add_generation_prompt=True)
    assert _template(TEMPLATES["granite"]).render(messages, documents=documents, tools=TOOLS) == expected
    expected = reference(TEMPLATES["channels"], messages, add_generation_prompt=True, reasoning_effort="high")
    assert _template(TEMPLATES["channels"]).render(messages, reasoning_effort="high") == expected
    expected = reference(TEMPLATES["headers"], messages, add_generation_prompt=True, date_string="today")
    assert _template(TEMPLATES["headers"]).render(messages, date_string="today") == expected


def test_reasoning_has_the_name_the_template_reads(reference: Any) -> None:
    pytest.importorskip("transformers", minversion=ALIASES)
    for field in ("reasoning_content", "thinking", "reasoning"):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", field: "Hm"}]
        for name in ("channels", "thinking"):
            rendered = _template(TEMPLATES[name]).render(messages, add_generation_prompt=False)
            assert "Hm" in rendered
            assert rendered == reference(TEMPLATES[name], messages)


def test_the_template_of_a_real_model(smollm2: Path, reference: Any) -> None:
    gguf = pytest.importorskip("gguf")
    field = gguf.GGUFReader(smollm2).fields["tokenizer.chat_template"]
    source = field.contents()
    template = _template(source)
    for name in ("one", "system", "turns"):
        expected = reference(source, CONVERSATIONS[name], add_generation_prompt=True)
        assert template.render(CONVERSATIONS[name]) == expected


def test_a_parts_list_is_passed_on_where_the_template_reads_it(reference: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]
    for options in ({"add_generation_prompt": True}, {"continue_final_message": True}):
        assert _template(TEMPLATES["parts"]).render(messages, **options) == reference(
            TEMPLATES["parts"], messages, **options
        )
    flat = [{"role": "user", "content": "a\nb"}, messages[1]]
    assert _template(TEMPLATES["chatml"]).render(messages) == _template(TEMPLATES["chatml"]).render(flat)


def test_content_is_wrapped_for_templates_that_read_parts(reference: Any) -> None:
    source = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert _template(source).render([{"role": "user", "content": "Hello"}]) == reference(source, parts) == "user:Hello;"


USER_PARTS = (
    "{% if messages[0].role == 'system' %}S:{{ messages[0].content | trim }};{% endif %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}U:"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %};"
    "{% elif m.role == 'tool' %}T:{{ m.content }};{% else %}A:{{ m.content }};{% endif %}{% endfor %}"
)
"""Lists of the user alone, as vision models have it; what others say is printed as it comes."""


def test_parts_are_read_by_role(reference: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    roles = ("system", "user", "assistant", "user", "tool")
    flat = [{"role": role, "content": parts if role == "user" else "a\nb"} for role in roles]
    text = _template(USER_PARTS).render([{"role": role, "content": parts} for role in roles])
    assert text == reference(USER_PARTS, flat) == "S:a\nb;U:ab;A:a\nb;U:ab;T:a\nb;"
    only = USER_PARTS.replace("{% if m.content is string %}{{ m.content }}{% else %}", "").replace(
        "{% endfor %}{% endif %};", "{% endfor %};"
    )
    said = [{"role": role, "content": "Hello"} for role in roles]
    listed = [{**m, "content": [{"type": "text", "text": "Hello"}]} if m["role"] == "user" else m for m in said]
    assert _template(only).render(said) == reference(only, listed) == "S:Hello;U:Hello;A:Hello;U:Hello;T:Hello;"


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"parts"}))  # which shows where parts end
@pytest.mark.parametrize("conversation", sorted(CONVERSATIONS))
def test_no_template_prints_a_list(name: str, conversation: str) -> None:
    """Parts give what their text gives, in every role."""
    template, messages = _template(TEMPLATES[name]), CONVERSATIONS[conversation]
    try:
        expected = template.render(messages)
    except TemplateError:
        return  # it takes no such conversation
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert template.render(parts) == expected


def test_continues_a_final_message_that_the_template_trims(reference: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure,  "}]
    for name in ("turns", "inst", "chatml"):
        rendered = _template(TEMPLATES[name]).render(messages, continue_final_message=True)
        assert rendered == reference(TEMPLATES[name], messages, continue_final_message=True)
        assert rendered.rstrip().endswith("Sure,")


def test_continuing_needs_an_assistant_message_that_is_shown() -> None:
    template = _template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    with pytest.raises(InvalidParameter, match="assistant"):
        template.render([user], continue_final_message=True)
    with pytest.raises(InvalidParameter, match="exclude"):
        template.render([user, assistant], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(TemplateError, match="does not show"):
        template.render([user, assistant], continue_final_message=True)


def test_named_templates() -> None:
    found = sources({"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "{{ tools }}", "x": "y"})
    assert found == {"default": "plain", "tool_use": "{{ tools }}"}
    assert sources({"general.name": "base"}) == {}
    template = _template(found)
    assert template.render(CONVERSATIONS["one"]) == "plain"
    assert "weather" in template.render(CONVERSATIONS["one"], tools=TOOLS)
    assert template.supports("tools")
    with pytest.raises(InvalidParameter, match="default"):
        _template({"tool_use": "x"})


def test_what_the_template_does_not_read_is_refused() -> None:
    template = _template(TEMPLATES["chatml"])
    assert template.variables == {"messages", "add_generation_prompt"}
    for option in ({"tools": TOOLS}, {"documents": [{"text": "x"}]}, {"thinking": False}, {"other": 1}):
        with pytest.raises(Unsupported, match=next(iter(option))):
            template.render(CONVERSATIONS["one"], **option)  # type: ignore[arg-type]


def test_supports() -> None:
    assert _template(TEMPLATES["thinking"]).supports("thinking")
    assert not _template(TEMPLATES["chatml"]).supports("thinking")
    assert _template(TEMPLATES["granite"]).supports("documents")
    assert _template(TEMPLATES["chatml"]).supports("system")
    assert not _template(TEMPLATES["turns"]).supports("system")


def test_special_tokens() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}"
    template = ChatTemplate(source, bos="<b>", eos="<e>", tokens={"pad_token": "<p>"})
    assert template.render(CONVERSATIONS["one"]) == "<b><e><p>False"
    assert ChatTemplate("{{ bos_token is defined }}").render(CONVERSATIONS["one"]) == "False"


def test_the_templates_own_refusal_is_shown() -> None:
    with pytest.raises(TemplateError, match=r"refuses this conversation.*line 1.*System role not supported"):
        _template(TEMPLATES["turns"]).render(CONVERSATIONS["system"])


def test_errors_name_the_line() -> None:
    with pytest.raises(TemplateError, match=r"line 3.*'nothing' is undefined"):
        _template("a\nb\n{{ nothing.x }}\nc").render(CONVERSATIONS["one"])
    with pytest.raises(TemplateError, match=r"does not compile.*line 2"):
        _template("a\n{% if %}")


def test_the_clock_is_local_time() -> None:
    before = datetime.now()
    rendered = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}").render(CONVERSATIONS["one"])
    assert before.replace(microsecond=0) <= datetime.strptime(rendered, "%Y-%m-%d %H:%M:%S") <= datetime.now()


def test_a_long_conversation_is_within_the_limits(reference: Any) -> None:
    answer = "<think>a</think>" + "b " * 400
    turn = [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": answer}]
    messages = [dict(message) for _ in range(100) for message in turn]
    for name in ("thinking", "deepseek", "built", "headers"):
        rendered = _template(TEMPLATES[name]).render(messages)
        assert rendered == reference(TEMPLATES[name], messages, add_generation_prompt=True)


def test_a_signal_handler_may_ask_in_the_midst_of_a_rendering() -> None:
    found: list[str] = []

    def now() -> datetime:
        if not found:
            found.append("inside")
            found.append(template.render({}))
        return NOW

    template = Program("{{ strftime_now('%Y') }} {% for i in range(3) %}{{ i }}{% endfor %}", now)
    thread = threading.Thread(target=lambda: found.append(template.render({})), daemon=True)
    thread.start()
    thread.join(20)
    assert found == ["inside", "2031 012", "2031 012"]
