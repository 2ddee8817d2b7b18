"""The backends and models that the conformance suite runs on, and what its tests have in common.

A case is a model that its `make` writes into an empty folder, and the parameters it is opened with. Everything else
that a test must know, it reads from the opened backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from arch_models import CONFIGS, checkpoint, convert
from numpy.typing import NDArray
from tiny_models import tiny

from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Step
from edgellm.backends.base import Sequence as State
from edgellm.formats.ggml_types import GGMLType
from edgellm.params import LoadParams

Row = NDArray[np.float32]  # (n_vocab,)

CTX, MICRO_BATCH = 320, 64
PARAMS = LoadParams(ctx=CTX, micro_batch=MICRO_BATCH)
LLAMACPP, NATIVE = replace(PARAMS, backend="llamacpp"), replace(PARAMS, backend="native")
TEXT = "Hello world, naïve Ω 🙂\n\ttabs and   spaces"


@dataclass(frozen=True)
class Case:
    """make: writes the model, returns what opens it. text: one that its tokenizer gives back, or None.

    generates: False for an encoder. embeds: it gives vectors. exact: a token computed alone has the logits that it has
    in a prompt, bit for bit. tolerance: by how much a logit may differ in a pass with other sequences. unit: its
    vectors have the length 1. variant: like another case, but for how it stores its state.
    """

    name: str
    make: Callable[[Path], Path]
    params: LoadParams = PARAMS
    text: str | None = TEXT
    generates: bool = True
    embeds: bool = False
    exact: bool = False
    tolerance: float = 0.02
    unit: bool = True
    variant: bool = False

    @property
    def distinct(self) -> bool:
        """It generates, and differs in more than how state is stored."""
        return self.generates and not self.variant

    def open(self, path: Path, **changes: int) -> Backend:
        """The backend of `path`, which `make` has returned."""
        return open_backend(path, replace(self.params, **changes))  # type: ignore[arg-type]


def gguf(kind: str, pooling: int | None = None, **options: Any) -> Callable[[Path], Path]:
    """Writes `tiny(kind)`."""

    def make(folder: Path) -> Path:
        model = tiny(kind, **options)
        if pooling is not None:
            model.metadata[f"{kind}.pooling_type"] = pooling
        return model.write(folder / f"{kind}.gguf")

    return make


def bert(folder: Path) -> Path:
    """Writes a BERT of 128 positions that pools by the mean."""
    config = CONFIGS["bert"]
    return convert(config, checkpoint(config), folder / "bert.gguf", {"pooling_mode_mean_tokens": True})


def onnx(layout: str) -> Callable[[Path], Path]:
    """Writes a decoder of `tiny_onnx`."""

    def make(folder: Path) -> Path:
        from tiny_onnx import write_decoder

        return write_decoder(folder, layout)

    return make


def onnx_quantized(folder: Path, quant: str = "int4", exact: bool = False) -> Path:
    """Writes `tiny("llama")` quantized, whose products edgellm's own kernels compute where the processor has them."""
    from edgellm.converters import ConvertParams
    from edgellm.converters import convert as convert_model

    source = tiny("llama", hidden=128).write(folder / "llama.gguf")
    convert_model(source, folder / "llama-onnx", ConvertParams(to="onnx", quant=quant, exact=exact, verify=False))
    return folder / "llama-onnx"


def onnx_encoder(folder: Path) -> Path:
    """Writes the encoder of `tiny_onnx`, whose vectors are not scaled."""
    from tiny_onnx import write_encoder

    return write_encoder(folder, normalize=False)


CASES = [
    Case("echo", lambda folder: folder / "none", replace(PARAMS, backend="echo"), embeds=True, exact=True, tolerance=0),
    Case("native", gguf("llama"), NATIVE, exact=True, tolerance=0),
    Case("native-f32", gguf("llama"), replace(NATIVE, kv_type="f32"), exact=True, tolerance=0, variant=True),
    Case("native-q8_0", gguf("llama"), replace(NATIVE, kv_type="q8_0"), exact=True, tolerance=0, variant=True),
    Case("native-gemma3", gguf("gemma3", hidden=128), NATIVE, exact=True, tolerance=0),  # windows, head norms
    Case("native-qwen3", gguf("qwen3", hidden=128, weights=GGMLType.Q8_0), NATIVE, exact=True, tolerance=0),
    Case("native-qwen3moe", gguf("qwen3moe", weights=GGMLType.Q8_0), NATIVE, exact=True, tolerance=0),  # experts
    Case("native-gpt2", gguf("gpt2"), NATIVE, exact=True, tolerance=0),  # learned positions
    Case("llama", gguf("llama"), LLAMACPP),
    Case("llama-f32", gguf("llama"), replace(LLAMACPP, kv_type="f32"), variant=True),
    Case("llama-q8_0", gguf("llama", hidden=128), replace(LLAMACPP, kv_type="q8_0"), variant=True),
    Case("gemma3", gguf("gemma3"), LLAMACPP),  # a sliding window of 16 tokens
    Case("lfm2", gguf("lfm2")),  # attention beside a short convolution
    Case("mamba", gguf("mamba")),  # recurrent
    Case("qwen3-embedding", gguf("qwen3", pooling=3), embeds=True, variant=True),  # pools its last token
    Case("bert", bert, replace(PARAMS, ctx=None), text=None, generates=False, embeds=True),
    Case("onnx-shared", onnx("shared")),
    Case("onnx-int8", onnx("int8"), tolerance=0.1, variant=True),
    Case("onnx-int4", onnx_quantized, tolerance=0.05),
    Case("onnx-concat", onnx("concat")),
    Case("onnx-encoder", onnx_encoder, replace(PARAMS, ctx=None), generates=False, embeds=True, unit=False),
]


def prompt(n: int, seed: int = 0) -> list[int]:
    """Random tokens that no vocabulary here has another use for."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 250, n)]


def feed(backend: Backend, sequence: State, tokens: Sequence[int]) -> Row:
    """Append tokens in passes as the engine makes them; a copy of the logits after the last."""
    tokens, rows = list(tokens), None
    while tokens:
        size = backend.pass_shape.prefill_size(len(tokens), backend.micro_batch)
        [rows] = backend.forward([Step(sequence, tokens[:size], "last")])
        tokens = tokens[size:]
    assert rows is not None
    assert rows.shape == (1, backend.info.n_vocab)
    row: Row = rows[0].copy()
    return row


def fresh(backend: Backend, tokens: Sequence[int]) -> Row:
    """The logits after `tokens`, computed in a sequence of their own."""
    sequence = backend.new_sequence(len(tokens))
    try:
        return feed(backend, sequence, tokens)
    finally:
        sequence.close()
