"""Odd calls of the public API, drawn from its signatures: right, nearly right and absurd values for every parameter.

    calls(targets) ──▶ Call ──▶ perform ──▶ "fine", the name of a typed error, or "RAW …" for any other exception

A parameter gets a value that its name makes sensible half of the time, so that calls come far enough to do harm.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import inspect
import itertools
import shutil
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import edgellm
from edgellm import converters, errors, hub
from edgellm.arguments import shown
from edgellm.converters.calibrate import collect
from edgellm.converters.evaluate import evaluate, evaluations
from edgellm.params import GenerateParams, LoadParams


class Mine(Exception):
    """What a callback raises; it must come out as it is."""


class Hostile:
    """Nothing works with it."""

    def _fail(self, *_: object) -> Any:
        raise TypeError("hostile")

    __repr__ = __eq__ = __hash__ = __len__ = __iter__ = __index__ = __fspath__ = __bool__ = __float__ = _fail


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cancelled() -> edgellm.CancelToken:
    token = edgellm.CancelToken()
    token.cancel()
    return token


def fails(*_: object) -> Any:
    raise Mine


ODD: list[Callable[[], Any]] = [
    *(
        lambda value=value: value
        for value in (
            *(None, True, False, 0, 1, -1, 5, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 10**5000),
            *(0.0, 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 1j),
            *("", "a", "hello world", "\ud800", "a\udcffb", "\0", "a" * 5000, "/", "..", "~", "~nobody/x", "memory"),
            *(b"", b"hello", (), (1,), ("a", 1), range(3), range(-3, 0), frozenset({1}), ..., NotImplemented),
            *(Decimal(1), Fraction(1, 2), np.float32(1), np.int64(3), np.int64(-3), np.bool_(True), np.str_("a")),
            *(Path("missing"), Path("/"), slice(1), edgellm, errors.Closed("x")),
        )
    ),
    lambda: bytearray(b"x"),
    lambda: memoryview(b"x"),
    lambda: array.array("i", [1, 2]),
    list,
    lambda: [0],
    lambda: [1, 2, 3],
    lambda: [-1],
    lambda: [10**30],
    lambda: [10**5000],
    lambda: [True],
    lambda: [0.5],
    lambda: [None],
    lambda: ["a"],
    lambda: [""],
    lambda: ["\ud800"],
    lambda: [b"x"],
    lambda: [[1]],
    lambda: nested(3000),
    dict,
    lambda: {1: 2},
    lambda: {"a": 1},
    lambda: {1: "a"},
    lambda: {0: 10**400},
    lambda: {"role": "user", "content": "x"},
    lambda: {1},
    lambda: (i for i in (1, 2)),
    lambda: iter([]),
    lambda: np.array([1, 2]),
    lambda: np.array([[1], [2]]),
    lambda: np.array(1),
    lambda: np.array([0.5]),
    lambda: np.array(["a", "b"]),
    lambda: np.array([True, False]),
    object,
    Hostile,
    GenerateParams,
    LoadParams,
    edgellm.CacheParams,
    edgellm.CancelToken,
    cancelled,
    threading.Event,
    lambda: types.SimpleNamespace(info=1),
]

MESSAGES: list[Any] = [
    [],
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    [{"role": 5}],
    [{"content": "x"}],
    ["x"],
    [{1: 2}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": "\ud800"}],
]
TEXTS = ["hello", "the world is all that is", "", "\u00fc \U0001f600 <|end|>", "x" * 100]
IDS = [[5, 6, 7], list(range(30)), (9, 9, 9), np.arange(4), [0], [299], [100000]]
OPTIONS: dict[str, list[Any]] = {
    "max_tokens": [0, 1, 3],
    "temperature": [0, 0.7, 1e-320, 1e308, 5],
    "top_k": [0, 1, 10**18],
    "top_p": [0, 0.5, 1],
    "min_p": [0, 0.5, 1],
    "typical_p": [0, 0.5, 1],
    "repeat_penalty": [1e-320, 1.1, 1e308],
    "frequency_penalty": [-2, 2],
    "presence_penalty": [-2, 2],
    "penalty_last_n": [-1, 0, 3, 2**62],
    "dry_multiplier": [0, 1, 1e308],
    "dry_base": [1, 1.0000001, 1e308],
    "dry_allowed_length": [0, 2, 2**62],
    "dry_last_n": [-1, 0, 2**62],
    "dry_breakers": ["\n", ["a", "bb"], ["x" * 41]],
    "xtc_probability": [0, 1],
    "xtc_threshold": [0, 0.1, 1],
    "logit_bias": [{0: 1.0}, {1: -float("inf")}, {5: 1e308, 6: -1e308}, dict.fromkeys(range(600), -float("inf"))],
    "seed": [0, 2**64 - 1],
    "stop": ["a", ["x", "yz"], []],
    "logprobs": [0, 2, 100],
    "ignore_eos": [True, False],
    "overflow": ["error", "drop-oldest"],
    "timeout": [1e-9, 1e300, 5],
    "cache": [True, False, "memory"],
}
LOAD_OPTIONS: dict[str, list[Any]] = {
    "ctx": [16, 64, 2**31 - 1],
    "kv_type": ["f16", "q8_0", None],
    "threads": [1, 2],
    "gpu_layers": ["auto", 0, 2**31 - 1],
    "flash_attention": [True, False, None],
    "micro_batch": [16, 64],
    "max_sequences": [1, 255, None],
    "backend": ["auto", "native", "llamacpp", "onnx", "echo"],
    "trust": [True, False],
    "offline": [True],
    "cache": [edgellm.CacheParams(0, 0)],
}


@dataclass
class Call:
    """target: "Model.encode" and the like. owner: what makes `self` of a Model, None where there is none."""

    target: str
    function: Callable[..., Any]
    owner: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in self.arguments.items())
        return f"{self.target}({given})".encode("ascii", "backslashreplace").decode()


ECHO_INFO: Any = ("echo", "echo", "echo", "echo", 512, 4096, 32, 1, 1, 32, 0, 0, 0.0, "none", {}, 12, "echo")


@dataclass(frozen=True)
class Place:
    """What sensible arguments are made of: the path of a model, and a folder for what is written.

    The model is a copy in the folder, because calls may write over it.
    """

    model: Path
    folder: Path
    info: edgellm.ModelInfo

    @classmethod
    def beside(cls, model: Path, folder: Path) -> Place:
        copy = folder / f"copy-of-{model.name}"
        if model.is_dir():
            shutil.copytree(model, copy)
        elif model.is_file():
            shutil.copy(model, copy)
        info = edgellm.inspect(model) if model.exists() else edgellm.ModelInfo(*ECHO_INFO)
        return cls(copy, folder, info)

    def sensible(self) -> dict[str, list[Any]]:
        numbers = itertools.count()
        name = str(self.folder / f"out-{next(numbers)}")
        return {
            **{key: value for key, value in LOAD_OPTIONS.items() if key != "cache"},
            **{key: value for key, value in OPTIONS.items() if key != "cache"},
            "text": [*TEXTS, *IDS],
            "prompt": [*TEXTS, *IDS],
            "tokens": IDS,
            "texts": [TEXTS, IDS, [[1, 2], "x"], "one"],
            "content": TEXTS,
            "messages": MESSAGES,
            "system": [None, "be brief"],
            "params": [None, GenerateParams(max_tokens=2)],
            "special": [True, False],
            "bos": [True, False],
            "stream": [True, False],
            "thinking": [None, True, False],
            "private": [True, False],
            "state": [True, False],
            "start": [0, 1, 5],
            "index": [0, 1, -1],
            "cancel": [None, edgellm.CancelToken(), cancelled()],
            "sink": [None, lambda item: None, fails],
            "callback": [lambda: None],
            "progress": [None, lambda *_: None, fails],
            "model": [str(self.model), self.model, self.folder],
            "path": [self.model, self.folder, name],
            "source": [self.model, self.folder],
            "target": [name],
            "root": [self.folder],
            "store": [hub.ModelStore(self.folder)],
            "name": ["x", "a/b", "..", "", "a:b"],
            "info": [self.info],
            "available": [0, 10**9, 2**70],
            "asked": [None, 100],
            "model_path": [self.folder / "missing"],
            "text_path": [self.folder / "missing"],
            "backend": ["auto", "native", "echo"],
        }


def methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"]


MODEL = [name for name in methods(edgellm.Model) if name != "close"]
CHAT = methods(edgellm.Chat)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "load": edgellm.load,
    "inspect": edgellm.inspect,
    "memory_needed": edgellm.memory_needed,
    "context_that_fits": edgellm.context_that_fits,
    "GenerateParams": edgellm.GenerateParams,
    "LoadParams": edgellm.LoadParams,
    "CacheParams": edgellm.CacheParams,
    "Model": edgellm.Model,
    "Chat": edgellm.Chat,
    "CancelToken.subscribe": edgellm.CancelToken().subscribe,
    "hub.resolve": hub.resolve,
    "hub.pull": hub.pull,
    "hub.find": hub.find,
    "hub.ModelStore": hub.ModelStore,
    "hub.ModelStore.find": lambda name: hub.ModelStore().find(name),
    "hub.ModelStore.remove": lambda name: hub.ModelStore().remove(name),
    "hub.ModelStore.staged": lambda name: hub.ModelStore().staged(name),
    "converters.ConvertParams": converters.ConvertParams,
    "converters.GGUFParams": converters.GGUFParams,
    "converters.ONNXParams": converters.ONNXParams,
    "converters.SafetensorsParams": converters.SafetensorsParams,
    "converters.OptimumParams": converters.OptimumParams,
    "converters.plan": converters.plan,
    "converters.convert": converters.convert,
    "converters.read": converters.read,
    "converters.collect": collect,
    "converters.evaluate": evaluate,
    "converters.evaluations": evaluations,
}


def odd() -> st.SearchStrategy[Any]:
    """Any value at all."""
    plain = st.one_of(st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=8))
    made = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))
    return st.one_of(st.sampled_from(ODD).map(lambda make: make()), plain, made)


def calls(place: Place, targets: list[str]) -> st.SearchStrategy[Call]:
    """Calls of some of MODEL ("Model.…"), CHAT ("Chat.…") and FUNCTIONS."""
    sensible = place.sensible()

    @st.composite
    def call(draw: st.DrawFn) -> Call:
        target = draw(st.sampled_from(targets))
        owner, _, method = target.rpartition(".")
        if owner in ("Model", "Chat"):
            function = getattr(getattr(edgellm, owner), method)
        else:
            function, owner = FUNCTIONS[target], ""
        wild = draw(st.sampled_from([0, 1, 4]))  # how many of eight values are odd
        arguments: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                control = {name: sensible[name] for name in ("cancel", "progress")} if owner else {}
                arguments |= draw(options(LOAD_OPTIONS if target == "load" else OPTIONS | control, wild))
            elif parameter.default is parameter.empty or draw(st.booleans()):
                good = sensible.get(parameter.name, [None])
                arguments[parameter.name] = draw(odd() if draw(st.integers(1, 8)) <= wild else st.sampled_from(good))
        if target.partition(".")[0] in ("load", "Model", "Chat") and "offline" in arguments:
            arguments["offline"] = True
        return Call(target, function, owner, arguments)

    return call()


@st.composite
def options(draw: st.DrawFn, known: Mapping[str, list[Any]], wild: int) -> dict[str, Any]:
    """Some options, and always a short answer."""
    chosen: dict[str, Any] = {"offline": True} if "offline" in known else {"max_tokens": 3}
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True)):
        if name != "offline":
            chosen[name] = draw(odd() if draw(st.integers(1, 8)) <= wild else st.sampled_from(known[name]))
    return chosen


def perform(call: Call, model: edgellm.Model | None) -> str:
    """Make the call and use what it gives. Returns "fine", the error's name, or "RAW …"."""
    try:
        function = call.function
        if call.owner == "Model":
            assert model is not None
            function = getattr(model, call.target.partition(".")[2])
        elif call.owner == "Chat":
            assert model is not None
            chat = model.chat("be brief", messages=MESSAGES[1])
            function = getattr(chat, call.target.partition(".")[2])
        use(function(**call.arguments))
    except (errors.EdgeLLMError, Mine) as error:
        return type(error).__name__
    except Exception as error:
        return f"RAW {type(error).__name__} ({shown(str(error))}) at {_where(error)}"
    return "fine"


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place, trace = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}", trace.tb_next
    return place


def use(result: Any) -> None:
    """Read some of what a call gives, then let it go."""
    if inspect.iscoroutine(result):
        asyncio.run(result)
    elif inspect.isasyncgen(result):
        asyncio.run(_some(result))
    elif isinstance(result, edgellm.Model):
        result.close()
    elif isinstance(result, Iterator):
        for _ in itertools.islice(result, 3):
            pass
        if hasattr(result, "close"):
            result.close()
    elif hasattr(result, "result"):  # a Request
        result.result()
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        repr(result)
    elif hasattr(result, "close"):
        result.close()


async def _some(chunks: Any) -> None:
    count = 0
    async for _ in chunks:
        count += 1
        if count == 3:
            break
    await chunks.aclose()
