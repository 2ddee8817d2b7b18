"""Every option can be given on the command line, with `/set` and in presets, and means the same everywhere."""

from __future__ import annotations

from dataclasses import fields, replace

import click
import pytest
from click.testing import CliRunner

from edgellm.cli.options import GENERATE, LOAD, chosen, default_of, from_text, generate_options, load_options
from edgellm.errors import InvalidParameter
from edgellm.params import GenerateParams, LoadParams

GIVEN = {  # option: its text, and what it becomes
    "max_tokens": ("7", 7),
    "stop": ('"the end" x', ("the end", "x")),
    "timeout": ("2.5", 2.5),
    "ignore_eos": ("on", True),
    "overflow": ("drop-oldest", "drop-oldest"),
    "logprobs": ("3", 3),
    "temperature": ("0.5", 0.5),
    "top_k": ("5", 5),
    "top_p": ("0.5", 0.5),
    "min_p": ("0.5", 0.5),
    "typical_p": ("0.5", 0.5),
    "repeat_penalty": ("1.5", 1.5),
    "frequency_penalty": ("-0.5", -0.5),
    "presence_penalty": ("0.5", 0.5),
    "penalty_last_n": ("-1", -1),
    "dry_multiplier": ("0.5", 0.5),
    "dry_base": ("1.5", 1.5),
    "dry_allowed_length": ("3", 3),
    "dry_last_n": ("9", 9),
    "dry_breakers": ("';' .", (";", ".")),
    "xtc_probability": ("0.5", 0.5),
    "xtc_threshold": ("0.2", 0.2),
    "logit_bias": ("5=-1.5 6=-inf", {5: -1.5, 6: float("-inf")}),
    "seed": ("11", 11),
}


def test_no_option_is_missing() -> None:
    assert set(GENERATE) == {field.name for field in fields(GenerateParams)} - {"cache"}
    assert set(LOAD) == {field.name for field in fields(LoadParams)} - {"cache"}
    assert set(GIVEN) == set(GENERATE)


@pytest.mark.parametrize("name", GENERATE)
def test_the_text_of_an_option(name: str) -> None:
    text, value = GIVEN[name]
    assert from_text(name, text) == value
    assert getattr(replace(GenerateParams(), **{name: value}), name) == value
    assert getattr(GenerateParams(), name) == default_of(GenerateParams, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [("temperature", "warm"), ("top_k", "1.5"), ("overflow", "never"), ("logit_bias", "5"), ("stop", '"open')],
)
def test_texts_that_are_none(name: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=name):
        from_text(name, text)


def test_the_command_line_gives_what_was_given() -> None:
    seen: list[dict[str, object]] = []

    @click.command()
    @generate_options
    @load_options
    def command(**options: object) -> None:
        seen.extend([chosen(GenerateParams, options), chosen(LoadParams, options)])

    def run(*arguments: str) -> list[dict[str, object]]:
        seen.clear()
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return list(seen)

    assert run() == [{}, {}]
    arguments: list[str] = []
    for name, (text, value) in GIVEN.items():
        flag = "--" + name.replace("_", "-")
        if name == "ignore_eos":
            arguments.append(flag)
        elif isinstance(value, tuple):
            arguments += [part for item in value for part in (flag, item)]
        elif isinstance(value, dict):
            arguments += [part for item in text.split() for part in (flag, item)]
        else:
            arguments += [flag, text]
    assert run(*arguments)[0] == {name: value for name, (_, value) in GIVEN.items()}
    load = run("--ctx", "64", "--gpu-layers", "0", "--no-flash-attention", "--trust", "--micro-batch", "32")[1]
    assert load == {"ctx": 64, "gpu_layers": 0, "flash_attention": False, "trust": True, "micro_batch": 32}
    assert LoadParams(**load).gpu_layers == 0  # type: ignore[arg-type]
    assert run("--gpu-layers", "auto", "--flash-attention")[1] == {"gpu_layers": "auto", "flash_attention": True}
