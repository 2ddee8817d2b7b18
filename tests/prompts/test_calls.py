"""Calls as the models of each family write them, read back: whole, in pieces, cut and malformed."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from read_answers import SCHEMAS, THINK, calls, read, reasoning, texts

from edgellm.prompts.cursor import MOST
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.dialects import DIALECTS, GENERIC
from edgellm.prompts.pieces import CallArguments, CallBegun, CallBroken, CallEnded, Text
from edgellm.prompts.syntax import Rules, token_literal

BY_NAME: dict[str, Dialect] = {dialect.name: dialect for _, dialect in DIALECTS}
OSLO, BOTH = {"city": "Oslo"}, {"city": 'Orléans "x"', "days": [1, 2]}
WEATHER, NOW = ("made", "weather", OSLO), ("made", "now", {})

# (dialect, answer, what is said beside the calls, calls)
VECTORS: list[tuple[str, str, str, list[tuple[str, str, Any]]]] = [
    ("JSON", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "", [WEATHER]),
    (
        "JSON",
        'Sure.\n<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call>',
        "Sure.",
        [WEATHER],
    ),
    (
        "JSON",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "",
        [WEATHER, NOW],
    ),
    (
        "JSON",
        '<tool_call>[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "now"}]</tool_call>',
        "",
        [WEATHER, NOW],
    ),
    ("JSON", '{"type": "function", "function": {"name": "weather", "parameters": {"city": "Oslo"}}}', "", [WEATHER]),
    ("JSON", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>', "", [WEATHER]),
    (
        "Qwen Coder",
        '<tool_call>\n<function=weather>\n<parameter=city>\nOrléans "x"\n</parameter>\n<parameter=days>\n[1, 2]\n'
        "</parameter>\n</function>\n</tool_call>",
        "",
        [("made", "weather", BOTH)],
    ),
    (
        "Qwen Coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\n\n 1\n\n</parameter>\n"
        "<parameter=near>\nTrue\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        [("made", "weather", {"city": "\n 1\n", "near": True}), NOW],
    ),
    (
        "GLM",
        "Well.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "Well.",
        [WEATHER],
    ),
    ("GLM", "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>", "", [WEATHER]),
    ("Llama", '{"name": "weather", "parameters": {"city": "Oslo"}}', "", [WEATHER]),
    (
        "Llama",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}',
        "",
        [WEATHER, NOW],
    ),
    (
        "Mistral, earlier",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdef123"}]',
        "",
        [WEATHER],
    ),
    ("Mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[ARGS]{}', "", [WEATHER, NOW]),
    (
        "Mistral",
        'Hm. [TOOL_CALLS]weather[CALL_ID]abcdef123[ARGS]{"city": "Oslo"}',
        "Hm.",
        [("abcdef123", *WEATHER[1:])],
    ),
    ("FunctionGemma", "<start_function_call>call:weather{city:<escape>Oslo<escape>}<end_function_call>", "", [WEATHER]),
    (
        "Gemma 4",
        '<|tool_call>call:weather{city:<|"|>Orléans "x"<|"|>,days:[1,2]}<tool_call|><|tool_call>call:now{}<tool_call|>',
        "",
        [("made", "weather", BOTH), NOW],
    ),
    ("Phi", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|/tool_call|>', "", [WEATHER]),
    (
        "Granite",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "now", "arguments": {}}]',
        "",
        [WEATHER, NOW],
    ),
    ("LFM2", "<|tool_call_start|>[weather(city='Oslo'), now()]<|tool_call_end|>", "", [WEATHER, NOW]),
    (
        "LFM2",
        '<|tool_call_start|>[weather(city="Orléans \\"x\\"", days=[1, 2])]<|tool_call_end|>Ok',
        "Ok",
        [("made", "weather", BOTH)],
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
        "",
        [WEATHER],
    ),
    ("harmony", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>', "", [WEATHER]),
    ("harmony", "<|channel|>final<|message|>Hello.<|return|>", "Hello.", []),
    (
        "DeepSeek R1",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo"}\n```'
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        "",
        [WEATHER, NOW],
    ),
    (
        "DeepSeek V3.1",
        "<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "",
        [WEATHER],
    ),
    (
        "DSML",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Oslo'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        "",
        [WEATHER],
    ),
    ("functionary v3.1", '<function=weather>{"city": "Oslo"}</function>', "", [WEATHER]),
    ("functionary v3.2", '>>>all\nLet me see.>>>weather\n{"city": "Oslo"}', "Let me see.", [WEATHER]),
    (
        "Kimi",
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:3<|tool_call_argument_begin|>{"city": "Oslo"}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "",
        [("functions.weather:3", *WEATHER[1:])],
    ),
    (
        "MiniMax",
        '<minimax:tool_call>\n<invoke name="weather">\n'
        '<parameter name="city">Oslo</parameter>\n</invoke>\n</minimax:tool_call>',
        "",
        [WEATHER],
    ),
    (
        "Command",
        "<|START_ACTION|>"
        '[\n {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Oslo"}}\n]<|END_ACTION|>',
        "",
        [("0", *WEATHER[1:])],
    ),
    ("Apertus", '<|tools_prefix|>[{"weather": {"city": "Oslo"}}]<|tools_suffix|>', "", [WEATHER]),
    ("Nemotron", '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Oslo"}}]</TOOLCALL>', "", [WEATHER]),
]


def _dialect(name: str) -> Dialect:
    return BY_NAME.get(name, GENERIC)


@pytest.mark.parametrize("at", range(len(VECTORS)))
def test_vectors(at: int) -> None:
    name, answer, said, expected = VECTORS[at]
    pieces = read(answer, _dialect(name))
    assert (texts(pieces), calls(pieces)) == (said, expected)
    assert not any(isinstance(piece, CallBroken) for piece in pieces)


@pytest.mark.parametrize("at", range(len(VECTORS)))
def test_pieces_do_not_depend_on_where_a_stream_is_cut(at: int) -> None:
    name, answer, _, _ = VECTORS[at]
    expected = read(answer, _dialect(name))
    assert read(list(answer), _dialect(name)) == expected
    for cut in range(len(answer)):
        assert read([answer[:cut], answer[cut:]], _dialect(name)) == expected


@pytest.mark.parametrize("at", range(len(VECTORS)))
def test_an_answer_that_ends_anywhere_loses_nothing(at: int) -> None:
    """What is not in a complete call is text, up to the white space and the marks around complete calls."""
    name, answer, _, _ = VECTORS[at]
    for cut in range(1, len(answer)):
        pieces = read(answer[:cut], _dialect(name))
        assert pieces == read(list(answer[:cut]), _dialect(name))
        assert pieces or name in ("harmony", "functionary v3.2") or not answer[:cut].strip()
        begun = [piece.index for piece in pieces if isinstance(piece, CallBegun)]
        ended = [piece.index for piece in pieces if isinstance(piece, (CallEnded, CallBroken))]
        assert begun == ended


@pytest.mark.parametrize("dialect", [GENERIC, *(each for _, each in DIALECTS)], ids=lambda each: each.name)
def test_what_a_dialect_writes_it_reads(dialect: Dialect) -> None:
    written = [("weather", {**BOTH, "unit": "F", "near": False}), ("now", {}), ("weather", {"city": "a\nb\\n</x>"})]
    for some in (written, written[:1], written[1:2], written[2:]):
        pieces = read(dialect.write(some), dialect)
        assert [(name, arguments) for _, name, arguments in calls(pieces)] == some
        assert texts(pieces) == ""


def test_names_come_once_and_arguments_as_they_are_written() -> None:
    whole = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    reader_pieces = read(list(whole), GENERIC)
    assert reader_pieces == [
        CallBegun(0, "made", "weather"),
        CallArguments(0, '{"city": "Oslo"}'),
        CallEnded(0),
    ]


MALFORMED = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": }}\n</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"</tool_call>',
    '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"a": 1, "a": 2}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"a": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "no name", "arguments": {}}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    "<tool_call>{}</tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>weather</tool_call>",
    '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 100 + "}" * 101 + "</tool_call>",
]


@pytest.mark.parametrize("answer", MALFORMED)
def test_what_is_malformed_is_text(answer: str) -> None:
    for parts in (answer, list(answer)):
        pieces = read(parts, GENERIC)
        assert calls(pieces) == []
        assert texts(pieces) == answer


def test_a_good_call_before_a_broken_one_stays() -> None:
    good = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    bad = '<tool_call>\n{"name": "weather", "arguments": {"city": '
    pieces = read(good + "\n" + bad, GENERIC)
    assert calls(pieces) == [NOW]
    assert pieces[-1] == CallBroken(1, bad)


def test_json_without_marks_is_a_call_only_of_a_tool() -> None:
    for answer in (
        '{"name": "Ada", "arguments": {}}',
        '{"name": "weather", "age": 3}',
        '[{"a": 1}]',
        '{"name": "weather"}',
    ):
        assert read(answer, GENERIC) == read(list(answer), GENERIC) == [Text(answer)]
    assert read('{"name": "weather", "arguments": {}}', GENERIC, schemas={}) == [
        Text('{"name": "weather", "arguments": {}}')
    ]
    assert calls(read('Here: {"name": "now", "arguments": {}}', GENERIC)) == []


def test_without_tools_marks_are_text() -> None:
    answer = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert read(list(answer), None) == [Text(answer)]


def test_calls_while_thinking_are_none() -> None:
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    pieces = read(f"<think>maybe {call}</think>\n\n{call}", GENERIC, THINK)
    assert calls(pieces) == [NOW]
    assert reasoning(pieces) == f"maybe {call}"


def test_an_unknown_tool_is_called_all_the_same() -> None:
    """Between marks: whoever calls tools says that there is none."""
    assert calls(read('<tool_call>{"name": "other", "arguments": {}}</tool_call>', GENERIC)) == [("made", "other", {})]


HOSTILE = {
    "marks": "<tool_call>" * 20_000,
    "begun marks": "<" * 200_000,
    "depth": '<tool_call>{"name": "weather", "arguments": ' + "[" * 100_000,
    "depth of literals": "<|tool_call_start|>[weather(city=" + "[" * 100_000,
    "calls in calls": "<|tool_call_start|>[" + "f(a=" * 50_000,
    "a name": '<tool_call>{"name": "' + "x" * 200_000,
    "lists": "[TOOL_CALLS][" * 20_000,
    "escapes": '<tool_call>{"name": "weather", "arguments": {"a": "' + "\\" * 200_000,
    "blanks": "<tool_call>" + " " * 200_000,
    "channels": "<|channel|>" * 20_000,
    "sections": "<｜tool▁call▁begin｜>" * 10_000,
    "tags": "<tool_call>\n<function=weather>\n" + "<parameter=a>\n</parameter>\n" * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_text_of_their_length(name: str) -> None:
    answer = HOSTILE[name]
    for dialect in ("JSON", "LFM2", "Mistral, earlier", "harmony", "DeepSeek R1", "Qwen Coder"):
        pieces = read([answer[at : at + 1000] for at in range(0, len(answer), 1000)], _dialect(dialect))
        assert calls(pieces) == []
        if dialect != "harmony":
            assert texts(pieces) == answer


def test_a_call_that_never_ends_is_bounded_in_memory() -> None:
    reader_parts = ['<tool_call>{"name": "weather", "arguments": {"city": "', *["x" * 10_000] * (4 * MOST // 10_000)]
    tracemalloc.start()
    pieces = read(reader_parts, GENERIC)
    tracemalloc.stop()
    assert isinstance(pieces[2], CallBroken)
    assert len(pieces[2].text) == MOST
    assert texts(pieces) == "".join(reader_parts)


PARTS = [
    *("<tool_call>", "</tool_call>", '{"name": "now"', ', "arguments": {}', "<think>", "</think>"),
    *("}", "{", '"', "<", " ", "\n", "x", "[", "]", ",", "\\"),
]


@given(st.lists(st.sampled_from(PARTS), max_size=24), st.data())
def test_anything_is_read_the_same_however_it_is_cut(parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    whole = read(answer, GENERIC, THINK)
    assert read(list(answer), GENERIC, THINK) == whole
    assert read(parts, GENERIC, THINK) == whole
    name = data.draw(st.sampled_from(sorted(BY_NAME)))
    assert read(list(answer), BY_NAME[name]) == read(answer, BY_NAME[name])


def grammar(
    dialect: Dialect,
    rules: Rules | None = None,
    *,
    several: bool = False,
    thinking: tuple[str, str, str] | None = None,
) -> str:
    rules = Rules() if rules is None else rules
    return rules.answer([dialect.calls(rules, SCHEMAS, several=several)], thinking)


def test_grammars_take_what_their_dialects_write() -> None:
    llguidance = pytest.importorskip("llguidance")
    tokens = llguidance.LLTokenizer("byte")
    for dialect in (GENERIC, *(each for _, each in DIALECTS)):
        lark = llguidance.LLMatcher.grammar_from_lark(grammar(dialect, several=True))
        for some in ([("weather", {"city": "Oslo", "unit": "C"})], [("now", {}), ("weather", {**BOTH, "near": True})]):
            matcher = llguidance.LLMatcher(tokens, lark, log_level=0)
            written = dialect.write(some).encode()
            assert matcher.try_consume_tokens(list(written)) == len(written), (dialect.name, lark)
            assert matcher.is_accepting()
        refused = llguidance.LLMatcher(tokens, lark, log_level=0)
        wrong = dialect.write([("weather", {"city": "Oslo", "unit": "K"})]).encode()
        assert refused.try_consume_tokens(list(wrong)) < len(wrong)


def test_a_grammar_leaves_reasoning_free() -> None:
    llguidance = pytest.importorskip("llguidance")
    tokens = llguidance.LLTokenizer("byte")
    call = GENERIC.write([("now", {})])

    def taken(lark: str, text: str) -> bool:
        matcher = llguidance.LLMatcher(tokens, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0)
        return bool(matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting())

    free = grammar(GENERIC, thinking=("<think>", "</think>", ""))
    opened = grammar(GENERIC, thinking=("", "</think>", ""))
    assert taken(free, call)
    assert taken(free, f"<think>\nIf {{ é <tool_call>\n</think>\n\n{call}")
    assert taken(opened, f"\nHm.\n</think>\n\n{call}")
    assert not taken(free, f"Hm. {call}")
    assert not taken(opened, call)


def test_a_grammar_names_tokens_where_texts_are_tokens() -> None:
    llguidance = pytest.importorskip("llguidance")
    tokens = {'<|"|>': 1, "<|tool_call>": 2, "<tool_call|>": 3, "<｜tool▁call▁begin｜>": 4, "<｜tool▁sep｜>": 5}
    tokens |= {"<｜tool▁calls▁begin｜>": 6, "<｜tool▁call▁end｜>": 7, "<｜tool▁calls▁end｜>": 8}
    written = {
        "Gemma 4": [2, *b"call:weather{city:", 1, *b"Oslo", 1, *b"}", 3],
        "DeepSeek R1": [6, 4, *b"function", 5, *b'weather\n```json\n{"city": "Oslo"}\n```', 7, 8],
    }
    for name, ids in written.items():
        lark = grammar(BY_NAME[name], Rules(token_literal(tokens)))
        matcher = llguidance.LLMatcher(
            llguidance.LLTokenizer("byte"), llguidance.LLMatcher.grammar_from_lark(lark), log_level=0
        )
        assert matcher.try_consume_tokens(ids) == len(ids)
        assert matcher.is_accepting()


def test_arguments_are_json_for_every_consumer() -> None:
    [(_, _, arguments)] = calls(
        read("<|tool_call_start|>[weather(city='\\u00e9\\n\"', near=True)]<|tool_call_end|>", BY_NAME["LFM2"])
    )
    assert json.loads(json.dumps(arguments)) == {"city": 'é\n"', "near": True}
