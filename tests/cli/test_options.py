"""Every option can be given on the command line, with `/set` and in presets, and means the same everywhere."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgellm.cli import cli
from edgellm.cli.options import GENERATE, LOAD, chosen, flags, from_text
from edgellm.cli.talk import Manner
from edgellm.errors import InvalidParameter
from edgellm.option import Params, Real, Whole
from edgellm.params import CacheParams, GenerateParams, LoadParams

run = import_module("edgellm.cli.run")
INTEGER = str(Path(__file__).with_name("integer.json"))
GIVEN: dict[str, tuple[str, object]] = {  # option: its text, and what it becomes; plain numbers find theirs
    "stop": ('"the end" x', ("the end", "x")),
    "ignore_eos": ("on", True),
    "overflow": ("drop-oldest", "drop-oldest"),
    "penalty_last_n": ("-1", -1),
    "dry_breakers": ("';' .", (";", ".")),
    "logit_bias": ("5=-1.5 6=-inf", {5: -1.5, 6: float("-inf")}),
    **{name: ("7", 7) for name, each in GENERATE.items() if isinstance(each.rule, Whole) and each.rule.low >= 0},
    **{name: ("0.625", 0.625) for name, each in GENERATE.items() if isinstance(each.rule, Real) and each.rule.low <= 0},
    "dry_base": ("1.5", 1.5),
    "dry_last_n": ("9", 9),
    "regex": ("[a-z]+", "[a-z]+"),
    "schema": (INTEGER, {"type": "integer"}),
}


PARAMS: list[type[Params]] = [GenerateParams, LoadParams, CacheParams]


@pytest.mark.parametrize("kind", PARAMS)
def test_every_field_is_an_option(kind: Any) -> None:
    assert list(kind.OPTIONS) == [field.name for field in fields(kind)]
    for name, option in kind.OPTIONS.items():
        assert option.default == getattr(kind(), name)
        with pytest.raises(InvalidParameter, match=re.escape(f"{name}=")) as refused:
            kind(**{name: object()})
        assert str(refused.value).endswith(f"must be {option.rule}")


def test_help_options_explains_every_one() -> None:
    done = CliRunner().invoke(cli, ["help", "options"], catch_exceptions=False)
    assert max(map(len, done.output.splitlines())) <= 80
    told = "".join(done.output.split())  # lines are wrapped at hyphens, too
    for kind in PARAMS:
        for name, option in kind.OPTIONS.items():
            assert "".join(f"{name}{option.explained}".split()) in told
    assert "ctxTokensonesequencemayhold;default:thesmallerof8192,thetrainedlength" in told
    assert "temperature0takesthelikeliesttoken;default0.8.Anumber,atleast0." in told
    assert "echo" not in told  # for tests


def test_docstrings_explain_every_option() -> None:
    for kind in PARAMS:
        assert all(
            " ".join(option.explained.split()) in " ".join(str(kind.__doc__).split())
            for option in kind.OPTIONS.values()
        )


def test_no_option_is_missing() -> None:
    assert set(GENERATE) == {field.name for field in fields(GenerateParams)} - {"cache"}
    assert set(LOAD) == {field.name for field in fields(LoadParams)} - {"cache"}
    assert {type(GENERATE[name].rule) for name in GIVEN} == {type(option.rule) for option in GENERATE.values()}


@pytest.mark.parametrize("name", GIVEN)
def test_the_text_of_an_option(name: str) -> None:
    text, value = GIVEN[name]
    assert from_text(name, text) == value
    assert getattr(replace(GenerateParams(), **{name: value}), name) == value
    assert getattr(GenerateParams(), name) == GENERATE[name].default


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
    @flags([*GENERATE.values(), *LOAD.values()])
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
        flag = GENERATE[name].flag
        if name == "ignore_eos":
            arguments.append(flag)
        elif isinstance(value, tuple):
            arguments += [part for item in value for part in (flag, item)]
        elif name == "logit_bias":
            arguments += [part for item in text.split() for part in (flag, item)]
        else:
            arguments += [flag, text]
    assert run(*arguments)[0] == {name: value for name, (_, value) in GIVEN.items()}
    load = run("--ctx", "64", "--gpu-layers", "0", "--no-flash-attention", "--trust", "--micro-batch", "32")[1]
    assert load == {"ctx": 64, "gpu_layers": 0, "flash_attention": False, "trust": True, "micro_batch": 32}
    assert LoadParams(**load).gpu_layers == 0  # type: ignore[arg-type]
    assert run("--gpu-layers", "auto", "--flash-attention")[1] == {"gpu_layers": "auto", "flash_attention": True}


def test_what_is_switched_off_is_off(monkeypatch: pytest.MonkeyPatch, edgellm_home: Path) -> None:
    given: list[Any] = []

    class Taken(Exception):
        pass

    def take(*things: Any) -> Any:
        given.extend(things)
        raise Taken

    def called(*words: str) -> Any:
        given.clear()
        with pytest.raises(Taken):
            CliRunner().invoke(cli, ["run", "--preset", "quiet", "x", "hi", *words], catch_exceptions=False)
        return given[-1]

    (edgellm_home / "config.toml").write_text(
        "[presets.quiet]\nprivate = true\nthinking = true\nflash_attention = true\n"
    )
    monkeypatch.setattr(run, "open_model", take)
    assert called().flash_attention is True
    assert called("--no-flash-attention").flash_attention is False
    monkeypatch.setattr(run, "open_model", lambda *_: nullcontext())
    monkeypatch.setattr(run, "Talk", lambda _model, _params, manner, _keeper: take(manner))
    assert called() == Manner(thinking=True, private=True)
    assert called("--no-thinking", "--raw") == Manner(thinking=False, private=True, raw=True)
    (edgellm_home / "config.toml").unlink()
