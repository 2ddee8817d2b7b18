"""The dialects of published models: the first one whose texts a chat template contains is the model's."""

from __future__ import annotations

import re

from edgellm.prompts.channels import HARMONY
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.literal import Braced, Pythonic
from edgellm.prompts.syntax import Headed, Json
from edgellm.prompts.tagged import Tagged

_TOOL_CALL = ("<tool_call>", "\n", "\n</tool_call>")
GENERIC = Dialect("JSON", Json(), *_TOOL_CALL)
_KIMI = re.compile(r"(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)")
_R1 = re.compile(r"(?:\w+<｜tool▁sep｜>)?(?P<name>[\w.-]+)")
_MISTRAL = re.compile(r"(?P<name>[\w.-]+?)(?:\[CALL_ID\](?P<id>\w+))?")
_SOLAR = re.compile(r"(?P<id>[\w.-]*)<\|tool_call:name\|>(?P<name>[\w.-]+)")
_BEGIN, _SEP, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>")
_DSML = "｜DSML｜"


def _invoke(prefix: str, marked: bool = False) -> Tagged:
    keyed = ">" if marked else '">'
    return Tagged(
        f'<{prefix}invoke name="',
        '">',
        f'<{prefix}parameter name="',
        keyed,
        f"</{prefix}parameter>",
        f"</{prefix}invoke>",
        marked=marked,
    )


_QWEN = Tagged("<function=", ">", "<parameter=", ">", "</parameter>", "</function>", pad="\n")
_GLM = Tagged("", "", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "")
_LFM = Dialect("LFM2", Pythonic(), "<|tool_call_start|>", "", "<|tool_call_end|>", ", ", listed=True)
_PHI = Dialect("Phi", Json(), "<|tool_call|>", "", "<|/tool_call|>", ", ", listed=True)
_LLAMA = Dialect("Llama", Json("parameters", known=True), "<|python_tag|>", between="; ", bare=True)

# texts that a template contains, and its dialect
DIALECTS: tuple[tuple[tuple[str, ...], Dialect], ...] = (
    (("<|channel|>", "<|message|>", "<|start|>"), HARMONY),
    (
        (_DSML, "function_calls"),
        Dialect("DSML", _invoke(_DSML, True), f"<{_DSML}function_calls>", "\n", f"\n</{_DSML}function_calls>", "\n"),
    ),
    ((_DSML,), Dialect("DSML", _invoke(_DSML, True), f"<{_DSML}tool_calls>", "\n", f"\n</{_DSML}tool_calls>", "\n")),
    (
        (_BEGIN, "```json"),
        Dialect(
            "DeepSeek R1",
            Headed(_BEGIN, "\n```json\n", "\n```" + _END, _R1, "function" + _SEP + "{}"),
            *_DEEPSEEK,
            "\n",
        ),
    ),
    ((_BEGIN,), Dialect("DeepSeek V3.1", Headed(_BEGIN, _SEP, _END), *_DEEPSEEK, "")),
    (
        ("<|tool_call_argument_begin|>",),
        Dialect(
            "Kimi",
            Headed("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", _KIMI, "functions.{}:0"),
            "<|tool_calls_section_begin|>",
            "",
            "<|tool_calls_section_end|>",
            "",
        ),
    ),
    (
        ("<|tool_call:args|>",),
        Dialect(
            "Solar",
            Headed(
                "<|tool_call:begin|>",
                "<|tool_call:args|>",
                "<|tool_call:end|>",
                _SOLAR,
                "call00001<|tool_call:name|>{}",
            ),
            "<|tool_calls|>",
            "",
            "",
            "",
        ),
    ),
    (
        ("<minimax:tool_call>",),
        Dialect("MiniMax", _invoke(""), "<minimax:tool_call>", "\n", "\n</minimax:tool_call>", "\n"),
    ),
    (
        ("<atem:function_calls>",),
        Dialect("Muse", _invoke("atem:"), "<atem:function_calls>", "\n", "\n</atem:function_calls>", "\n"),
    ),
    (
        ("<seed:tool_call>",),
        Dialect(
            "Seed",
            Tagged("<function=", ">", "<parameter=", ">", "</parameter>", "</function>"),
            "<seed:tool_call>",
            "\n",
            "\n</seed:tool_call>",
        ),
    ),
    (
        ("<start_function_call>",),
        Dialect("FunctionGemma", Braced("<escape>"), "<start_function_call>", "", "<end_function_call>"),
    ),
    (("<|tool_call>",), Dialect("Gemma 4", Braced('<|"|>'), "<|tool_call>", "", "<tool_call|>")),
    (("<|tool_call_start|>",), _LFM),
    (("<|tool_list_start|>",), _LFM),
    (("<|tool_call|>", "<|/tool_call|>"), _PHI),
    (("<|/tool|>",), _PHI),
    (("<|tool_call|>",), Dialect("Granite", Json(), "<|tool_call|>", "", "", ", ", listed=True)),
    (("<|function_call|>",), Dialect("GigaChat", Json(), "<|function_call|>")),
    (("function call", "<|role_sep|>"), Dialect("GigaChat", Json(), "function call<|role_sep|>", "\n")),
    (("[TOOL_CALLS]", "[ARGS]"), Dialect("Mistral", Headed("", "[ARGS]", head=_MISTRAL), "[TOOL_CALLS]")),
    (("[TOOL_CALLS]",), Dialect("Mistral, earlier", Json(), "[TOOL_CALLS]", "", "", ", ", listed=True)),
    (
        ("<|START_ACTION|>",),
        Dialect(
            "Command", Json("parameters", "tool_name"), "<|START_ACTION|>", "", "<|END_ACTION|>", ", ", listed=True
        ),
    ),
    (
        ("<|tools_prefix|>",),
        Dialect("Apertus", Json(keyed=True), "<|tools_prefix|>", "", "<|tools_suffix|>", ", ", listed=True),
    ),
    (("<TOOLCALL>",), Dialect("Nemotron", Json(), "<TOOLCALL>", "", "</TOOLCALL>", ", ", listed=True)),
    (
        ("<|action_start|>",),
        Dialect("InternLM", Json("parameters"), "<|action_start|><|plugin|>", "\n", "<|action_end|>"),
    ),
    (("<arg_key>",), Dialect("GLM", _GLM, "<tool_call>", "", "</tool_call>")),
    (("<function=", "<parameter="), Dialect("Qwen Coder", _QWEN, *_TOOL_CALL)),
    (("<tool_calls>[",), Dialect("tool_calls", Json(), "<tool_calls>", "", "</tool_calls>", ", ", listed=True)),
    (("<tool_call>",), GENERIC),
    (("<tool_calls>",), Dialect("tool_calls", Json(), "<tool_calls>", "\n", "\n</tool_calls>", "\n")),
    ((">>>all",), Dialect("functionary v3.2", Headed("", "\n", talk="all"), ">>>")),
    (("<function=", "</function>"), Dialect("functionary v3.1", Headed("", ">", "</function>"), "<function=")),
    (
        ("<function name=",),
        Dialect("MiniCPM", Tagged("", '">', '<param name="', '">', "</param>", "</function>"), '<function name="'),
    ),
    (("<function_calls>",), Dialect("OLMo", Pythonic(), "<function_calls>", "", "</function_calls>", "\n")),
    (("functools[",), Dialect("functools", Json(), "functools", "", "", ", ", listed=True)),
    (("<|python_tag|>",), _LLAMA),
    (("ipython", '"parameters"'), _LLAMA),
)


def dialect_of(source: str) -> Dialect:
    """That of a chat template, its text or all of its texts joined; GENERIC where it shows none."""
    return next((each for texts, each in DIALECTS if all(text in source for text in texts)), GENERIC)


BY_NAME = {each.name: each for _, each in DIALECTS}
