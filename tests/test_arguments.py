"""What callers hand in: odd values are typed errors or their default, and what can be handed on crosses processes."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import fuzzing
import numpy as np
import platformdirs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from tiny_onnx import write_encoder

import edgellm
from edgellm import (
    CacheParams,
    CacheReport,
    Chunk,
    Completion,
    GenerateParams,
    LoadParams,
    Model,
    Timings,
    TokenLogprob,
    Usage,
    errors,
    hub,
)
from edgellm.converters import ConvertParams, convert, read
from edgellm.converters.params import ConvertOptions, GGUFParams, ONNXParams, OptimumParams, SafetensorsParams
from edgellm.errors import EdgeLLMError, InvalidModelFile, InvalidParameter, ModelError, ModelNotFound, Unsupported
from edgellm.pace import SECONDS, Pace
from edgellm.params import GenerateOptions, LoadOptions

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgeLLMError)]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with edgellm.load("anything", backend="echo", ctx=256, cache=CacheParams(0, 0)) as opened:
        yield opened


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama").write(tmp_path_factory.mktemp("arguments") / "tiny.gguf")


@pytest.fixture(scope="module")
def place(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> fuzzing.Place:
    return fuzzing.Place.beside(gguf, tmp_path_factory.mktemp("written"))


# Every public function, with anything

ANYTHING = settings(
    max_examples=150,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@ANYTHING
@given(st.data())
def test_functions_take_anything_or_say_what_is_wrong(place: fuzzing.Place, data: st.DataObject) -> None:
    call = data.draw(fuzzing.calls(place, list(fuzzing.FUNCTIONS)))
    assert not fuzzing.perform(call, None).startswith("RAW"), str(call)


@ANYTHING
@given(st.data())
def test_methods_take_anything_or_say_what_is_wrong(model: Model, place: fuzzing.Place, data: st.DataObject) -> None:
    targets = [f"Model.{name}" for name in fuzzing.MODEL] + [f"Chat.{name}" for name in fuzzing.CHAT]
    call = data.draw(fuzzing.calls(place, targets))
    assert not fuzzing.perform(call, model).startswith("RAW"), str(call)


@pytest.mark.parametrize("engine", ["llamacpp", "onnx"])
def test_closing_in_another_thread_never_ends_the_process(engine: str) -> None:
    """The small version of benchmarks/fuzz.py; EDGELLM_FUZZ_CALLS makes it larger."""
    program = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(program), "--engine", engine, "--count", os.environ.get("EDGELLM_FUZZ_CALLS", "150")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Texts, token ids, paths


@pytest.mark.parametrize("wrong", [b"hello", bytearray(b"hello"), memoryview(b"hello"), 5, None, {1: 2}, {1, 2}, 0.5])
def test_only_strings_and_token_ids_are_prompts(model: Model, wrong: Any) -> None:
    for call in (model.generate, model.score, model.logits, model.embed, model.stream):
        with pytest.raises(InvalidParameter):
            call(wrong)
    with pytest.raises(InvalidParameter, match=r"texts\[1\]"):
        model.embed(["fine", wrong])
    with pytest.raises(InvalidParameter, match="text="):
        model.encode(wrong)


IDS: list[Any] = [
    [1, "a"],
    [True],
    [0.5],
    [[1]],
    [None],
    [-1],
    [512],
    [10**5000],
    np.array([0.5]),
    np.array([[1], [2]]),
]
IDS += [np.array([True]), np.array([2**62]), (1, -5)]


@pytest.mark.parametrize("wrong", IDS, ids=[str(type(wrong).__name__) + str(at) for at, wrong in enumerate(IDS)])
def test_token_ids_are_checked_wherever_they_are_taken(model: Model, wrong: Any) -> None:
    for call in (model.generate, model.decode, model.score, model.logits):
        with pytest.raises(InvalidParameter):
            call(wrong)
    with pytest.raises(InvalidParameter):
        model.embed([wrong])


@pytest.mark.parametrize(
    "bias", [{"1": 1.0}, {True: 1.0}, {0.0: 1.0}, {-1: 1.0}, {512: 1.0}, {10**5000: 1.0}, [1], {1: "a"}]
)
def test_a_biased_token_is_one_of_the_vocabulary(model: Model, bias: Any) -> None:
    with pytest.raises(InvalidParameter, match="logit_bias"):
        model.generate("x", max_tokens=1, logit_bias=bias)


@pytest.mark.parametrize("ids", [(104, 105), np.array([104, 105]), np.array([104, 105], np.uint8), range(104, 106)])
def test_token_ids_come_in_any_sequence(model: Model, ids: Any) -> None:
    assert model.decode(ids) == "hi"
    assert model.generate(ids, temperature=0).text == "hi"
    assert model.generate("x", max_tokens=1, logit_bias={np.int64(5): 1.0}).tokens


@pytest.mark.parametrize("wrong", ["a\0b", "\ud800", b"model.gguf", 5, ["x"], {}])
def test_what_is_no_path_is_refused(wrong: Any, gguf: Path, tmp_path: Path) -> None:
    calls: list[Callable[[Any], Any]] = [edgellm.load, edgellm.inspect, read, hub.resolve]
    for call in [*calls, lambda path: convert(path, tmp_path / "x"), lambda path: convert(gguf, path)]:
        with pytest.raises((InvalidParameter, ModelNotFound)):
            call(wrong)


def test_a_path_may_be_any_path_like_object(gguf: Path) -> None:
    class Somewhere:
        def __fspath__(self) -> str:
            return str(gguf)

    assert edgellm.inspect(Somewhere()).name == "tiny"
    with edgellm.load(Somewhere(), backend="echo") as opened:
        assert opened.info.path == str(gguf)


@pytest.mark.parametrize("name", ["a" * 5000, "b" * 5000 + ".gguf", "/" + "c/" * 2000, "~nobody-there/x"])
def test_a_name_too_long_for_the_system_is_not_found(name: str, tmp_path: Path, gguf: Path) -> None:
    for call in (edgellm.load, edgellm.inspect, read, hub.resolve):
        with pytest.raises(ModelError):
            call(name)
    with pytest.raises(errors.ResourceError):
        convert(gguf, tmp_path / ("d" * 300))


@pytest.mark.parametrize("path", ["n" * 300_000, "/tmp/" + "a/" * 150_000])
def test_a_message_about_a_long_path_is_short(path: str, model: Model, gguf: Path, tmp_path: Path) -> None:
    chat = model.chat()
    calls = [edgellm.inspect, edgellm.load, read, hub.resolve, model.load_chat, chat.restore, chat.save]
    for call in [*calls, lambda path: convert(gguf, path)]:
        with pytest.raises(EdgeLLMError) as raised:
            call(path)
        assert len(str(raised.value)) < 2100
        assert pickle.loads(pickle.dumps(raised.value)).args == raised.value.args


def test_a_message_about_a_long_value_in_a_chat_is_short(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    model.chat("S").save(file)
    saved = json.loads(file.read_bytes())
    for value in ("n" * 5000, ["n" * 5000], {"n" * 5000: 1}, [{"role": "n" * 5000, "content": 1}], 10**4000):
        for key in ("edgellm_chat", "messages", "dropped", "thinking", "private"):
            file.write_text(json.dumps(saved | {key: value}))
            with pytest.raises(InvalidModelFile) as raised:
                model.load_chat(file)
            assert len(str(raised.value)) < 400 + len(str(file))


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_progress_that_ends_loops_is_a_typed_error(
    kind: type[Exception], model: Model, gguf: Path, tmp_path: Path
) -> None:
    def progress(*_: Any) -> None:
        raise kind

    async def drained() -> None:
        async for _ in model.astream("hi", progress=progress):
            pass

    chat = model.chat()
    for call in (
        lambda: model.generate("hi", progress=progress),
        lambda: list(model.stream("hi", progress=progress)),
        lambda: model.submit("hi", GenerateParams(), progress=progress).result(),
        lambda: asyncio.run(model.agenerate("hi", progress=progress)),
        lambda: asyncio.run(drained()),
        lambda: chat.send("hi", progress=progress),
        lambda: list(chat.stream("hi", progress=progress)),
        lambda: asyncio.run(chat.asend("hi", progress=progress)),
        lambda: model.score("hi there", progress=progress),
        lambda: edgellm.load(gguf, progress=progress),
        lambda: convert(gguf, tmp_path / "x", progress=progress),
        lambda: convert(gguf, tmp_path / "x", ConvertParams(to="onnx"), progress=progress),
    ):
        with pytest.raises(InvalidParameter, match=f"progress raised {kind.__name__}"):
            call()


def test_whether_state_is_saved_is_a_flag(model: Model, tmp_path: Path) -> None:
    for wrong in ("no", None, np.array([1, 2])):
        with pytest.raises(InvalidParameter, match="must be True or False"):
            model.chat().save(tmp_path / "x", state=wrong)  # type: ignore[arg-type]


def test_the_state_of_no_tokens_is_none(tmp_path: Path) -> None:
    with edgellm.load(tiny("mamba").write(tmp_path / "mamba.gguf"), ctx=64) as recurrent:
        assert recurrent.export_state([]) == []
    with edgellm.load(write_encoder(tmp_path / "encoder")) as encoder:
        for nothing in ([], ""):
            with pytest.raises(Unsupported, match="is an encoder"):
                encoder.export_state(nothing)


def test_what_the_system_refuses_is_said_with_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests may run as root, whom nothing is refused: the refusal is made."""

    def refused(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    (tmp_path / "model.onnx").write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refused)
        with pytest.raises(ModelNotFound, match="Permission denied"):
            hub.resolve(str(tmp_path / "x.gguf"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", lambda self, pattern: refused(self))
        for call in (edgellm.inspect, edgellm.load, read):
            with pytest.raises(InvalidModelFile, match=f"{tmp_path.name}.*Permission denied"):
                call(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", ".staging", "a\\b", "../x", "x" * 300, "\0", 5, None])
def test_a_name_cannot_lead_out_of_the_store(name: Any, tmp_path: Path) -> None:
    kept = tmp_path / "models" / "kept"
    kept.mkdir(parents=True)
    store = hub.ModelStore(tmp_path / "models")
    for call in (store.find, store.remove, store.staged):
        with pytest.raises((InvalidParameter, ModelNotFound)):
            call(name)
    assert kept.is_dir()


# Options

TARGETS = GGUFParams, ONNXParams, SafetensorsParams, OptimumParams


def test_keywords_of_a_conversion_are_fields_of_its_targets() -> None:
    fields_of = {each.name: get_type_hints(kind)[each.name] for kind in TARGETS for each in fields(kind)}
    keywords = get_type_hints(ConvertOptions)
    assert keywords.keys() - {"to", "exporter"} == fields_of.keys()
    for name, kind in fields_of.items():
        if name != "adapters":  # any sequence of folders; they are kept as pairs
            assert {*get_args(keywords[name])} == {*get_args(kind | None)}, name


@pytest.mark.parametrize("kind", [GenerateParams, LoadParams, CacheParams, *TARGETS])
def test_none_is_the_default_of_every_option(kind: Any) -> None:
    assert kind(**{field.name: None for field in fields(kind)}) == kind()


def test_none_is_the_default_in_a_call_too(model: Model) -> None:
    options: Any = {field.name: None for field in fields(GenerateParams)} | {"max_tokens": 3, "temperature": 0}
    assert model.generate("hello", **options).text == "he"  # after a token without text
    strict = GenerateParams(stop="ll", max_tokens=9, temperature=0)
    assert model.generate("hello", strict).text == "he"
    assert model.generate("hello", strict, stop=None).text == "hello"


@pytest.mark.parametrize(
    "options",
    [
        *({"stop": value} for value in (5, b"x", [b"x"], [""], [5], ["\ud800"], [None])),
        *({"cache": value} for value in (1, 1.0, "disk", np.array([1, 2]), [])),
        *({name: value} for name in ("temperature", "dry_base", "timeout") for value in (10**400, "1", True, [1])),
        *({name: 2**70} for name in ("top_k", "penalty_last_n", "dry_last_n", "seed")),
        *({"seed": value} for value in (1.5, "1", -1)),
        {"ignore_eos": 1},
        {"overflow": ["error"]},
        {"logit_bias": {1: 10**400}},
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(InvalidParameter, match=name):
        GenerateParams(**options)


def test_switches_of_loading_are_true_or_false() -> None:
    for name in ("trust", "offline", "flash_attention"):
        with pytest.raises(InvalidParameter, match=name):
            LoadParams(**{name: "no"})
    with pytest.raises(InvalidParameter, match="cache"):
        LoadParams(cache={"memory": 0})  # type: ignore[arg-type]


def test_a_dictionary_is_no_params_object(model: Model) -> None:
    wrong: Any = {"max_tokens": 1}
    calls = [lambda: model.generate("x", wrong), lambda: model.submit("x", wrong), lambda: edgellm.load("x", wrong)]
    for call in calls:
        with pytest.raises(InvalidParameter, match="params"):
            call()


def test_wrong_callbacks_and_tokens_are_refused_at_once(model: Model, gguf: Path) -> None:
    wrong: Any = "x"
    calls = [
        lambda: model.generate("x", cancel=wrong),
        lambda: model.submit("x", GenerateParams(), sink=wrong),
        lambda: edgellm.CancelToken().subscribe(wrong),
        lambda: edgellm.load(gguf, progress=wrong),
        lambda: convert(gguf, gguf.with_name("y"), progress=wrong),
        lambda: hub.pull("smollm2", progress=wrong),
        lambda: Model(wrong),
    ]
    for call in calls:
        with pytest.raises(InvalidParameter, match="must be"):
            call()


def test_params_have_their_own_copy_of_what_they_were_given() -> None:
    bias, stop = {1: 0.5}, ["a"]
    params = GenerateParams(logit_bias=bias, stop=stop)
    bias[1], stop[0] = 9.0, "b"
    assert params == GenerateParams(logit_bias={1: 0.5}, stop="a")
    assert hash(params) == hash(replace(params))


# Other processes

VALUES = [
    *(CacheParams(0, 1), LoadParams(ctx=64, cache=CacheParams(0, 0)), GenerateParams(stop="a", logit_bias={1: 2.0})),
    *(Usage(1, 2, 3), Timings(1.0), CacheReport(broke_at=2), TokenLogprob(1, b"\xff", -1.0, ((1, b"a", -1.0),))),
    Completion("t", [1], "stop", Usage(), Timings(), CacheReport(), "echo", 1, 0, [TokenLogprob(1, b"a", -1.0)]),
    Chunk("t", [1]),
    ConvertParams(quant="q4_0"),
    hub.PullEvent("x", 1, 2),
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_can_be_copied_and_pickled(kind: type[EdgeLLMError]) -> None:
    error = kind("text", needed=9, n_ctx=4) if kind is errors.ContextOverflow else kind("text")
    error.note = "of the caller"  # type: ignore[attr-defined]
    if isinstance(error, OSError):
        error.errno, error.filename = 28, "file"
    for twin in (copy.copy(error), copy.deepcopy(error), *(pickle.loads(pickle.dumps(error, n)) for n in range(6))):
        assert (type(twin), str(twin), twin.args, vars(twin)) == (kind, str(error), error.args, vars(error))
        assert getattr(twin, "errno", None) == getattr(error, "errno", None)
        assert getattr(twin, "filename", None) == getattr(error, "filename", None)


class _Theirs(errors.CannotWrite):
    """An error of a program's own, with arguments of its own."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def test_an_error_derived_from_ours_crosses_too() -> None:
    twin = pickle.loads(pickle.dumps(_Theirs(code=3)))
    assert (type(twin), str(twin), twin.code) == (_Theirs, "code 3", 3)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_can_be_copied_and_pickled(value: object) -> None:
    assert value == copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value))


def test_what_is_known_of_a_model_can_be_sent(gguf: Path) -> None:
    info = edgellm.inspect(gguf)
    assert info == copy.deepcopy(info) == pickle.loads(pickle.dumps(info))


def test_what_lives_in_one_process_says_what_to_do_instead(model: Model) -> None:
    request = model.submit("x", GenerateParams(max_tokens=1))
    for live, advice in ((model, r"load\(\)"), (request, r"result\(\)"), (edgellm.CancelToken(), "make one there")):
        for send in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(Unsupported, match=advice):
                send(live)
    request.result()


# Options that type checkers know


@pytest.mark.parametrize(("options", "params"), [(GenerateOptions, GenerateParams), (LoadOptions, LoadParams)])
def test_the_keywords_of_a_call_are_the_fields_of_its_params(options: Any, params: Any) -> None:
    keywords, attributes = get_type_hints(options), get_type_hints(params)
    assert list(keywords) == list(params.OPTIONS)
    for name, kind in keywords.items():
        if name not in ("dry_breakers", "adapters"):  # any sequence; it is kept as a tuple
            assert {*get_args(kind)} == {*(get_args(attributes[name] | None))}, name


def test_a_misspelt_option_is_an_error_for_mypy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import edgellm\n"
        "model = edgellm.load('x', ctx=64, n_threads=2)\n"
        "model.generate('x', max_tokens=1, stop=None, cache='memory')\n"
        "model.generate('x', max_token=1)\n"
        "model.stream('x', temperature='hot')\n"
        "model.chat().send('x', top_kk=3)\n"
    )
    cache = Path(platformdirs.user_cache_dir("edgellm-tests", appauthor=False)) / "mypy"  # numpy takes it 10 seconds
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(cache)]
    done = subprocess.run([*mypy, str(program)], capture_output=True, text=True, check=False)
    wrong = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == ["2", "4", "5", "6"], done.stdout + done.stderr


# How often progress is reported


def test_a_callback_is_due_twenty_times_a_second_and_at_the_end() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    called = []
    for step in range(1001):  # a report every millisecond
        now = step / 1000
        if pace.due(surely=step == 1000):
            called.append(step)
    assert called[0] == 0
    assert called[-1] == 1000
    assert len(called) <= 22
    assert min(later - earlier for earlier, later in pairwise(called[:-1])) >= SECONDS * 1000 - 1


def test_every_progress_is_paced(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still only what must not be missed is reported."""
    monkeypatch.setattr(Pace.__init__, "__defaults__", (lambda: 0.0,))
    shares: list[float] = []
    edgellm.load(gguf, ctx=64, cache=CacheParams(0, 0), progress=shares.append).close()
    assert len(shares) <= 2
    assert shares[-1] == 1.0
    seen: list[tuple[str, int, int]] = []
    convert(gguf, tmp_path / "q.gguf", ConvertParams(quant="q8_0"), progress=lambda *report: seen.append(report))
    for what in {what for what, _, _ in seen}:
        reports = [(done, total) for each, done, total in seen if each == what]
        assert len(reports) == 2, (what, reports)
        assert reports[-1][0] == reports[-1][1]
