"""collect: an importance matrix of a GGUF model, measured while the model reads a text.

    this process                         child process
    collect ──── paths, chunks ────────▶ llama.cpp computes contexts of 512 tokens; it shows every product of weights
    progress ◀── {"done", "of"} ───────  and activations before and after it is computed; the squares of the
    matrix  ◀─── a file, {"wrote"} ────  activations are summed per column

A crash or a refusal inside llama.cpp ends the child alone. What counts is what llama.cpp's own tool counts
(tools/imatrix/README.md): matrix products, with or without experts, whose weights belong to a layer ("blk."), whose
activations are F32 and, without experts, have at least 16 rows. So token embedding and output head have no entry.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm import arguments
from edgellm.child import Child, Parent
from edgellm.errors import (
    BackendFailed,
    EdgeLLMError,
    InvalidModelFile,
    InvalidParameter,
    ModelLoadError,
    ModelNotFound,
    Unsupported,
)
from edgellm.formats.ggml_types import GGMLType
from edgellm.pace import Pace

from .quant.ggml import library_file
from .quant.imatrix import ImportanceMatrix, InputSums

CHUNK = 512  # tokens of a context
FEWEST_ROWS = 16  # rows of activations below which a product does not count
ANSWERS: tuple[dict[str, type], ...] = ({"done": int, "of": int}, {"wrote": str})  # of the child
LOGIT_BYTES = 64 << 20  # of one pass: all positions ask for logits, else the last layer would skip them


def collect(
    model_path: str | os.PathLike[str],
    text_path: str | os.PathLike[str],
    *,
    chunks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportanceMatrix:
    """Run a GGUF model over a UTF-8 text file and return what its weights multiply.

    The text is cut into contexts of 512 tokens (fewer if the model was trained with fewer); two are the least. chunks:
    at most so many of them; 20 to 200 are enough. `progress` gets the contexts done and their number, at most 20 times
    a second and at the end; an exception it raises stops the child, too.

    Raises ModelNotFound, InvalidParameter (a text that is too short or not UTF-8), ModelLoadError, BackendFailed,
    InvalidModelFile (a model that computes NaN), Unsupported.
    """
    if chunks is not None:
        arguments.whole("chunks", chunks, 1)
    if progress is not None:
        arguments.function("progress", progress)
    model, text = arguments.path("model_path", model_path), arguments.path("text_path", text_path)
    if not os.path.isfile(model):
        raise ModelNotFound(f"{model}: no such file; calibration needs a GGUF file")
    raw = arguments.utf8_file("the calibration text", text)
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        result, given = Path(folder) / "imatrix.gguf", Path(folder) / "text"
        given.write_bytes(raw)  # it may have come through a pipe, and can be read once
        job: dict[str, Any] = {"model": os.fspath(model), "text": os.fspath(given), "name": os.fspath(text)}
        job |= {"chunks": chunks or 0, "result": os.fspath(result)}
        pace = Pace()
        with Child(f"{__spec__.name}:run_child", job) as child:
            while (report := child.receive(None, *ANSWERS)) is not None and "wrote" not in report:
                if progress is not None and pace.due(surely=report["done"] >= report["of"]):
                    progress(report["done"], report["of"])
            if report is None:
                words = "\n".join(child.end.words[-8:])
                raise BackendFailed(f"{model}: the child process that calibrates {child.end}; its last words:\n{words}")
        return ImportanceMatrix.read(result)


# The child process


def run_child(parent: Parent, model: str, text: str, name: str, chunks: int, result: str) -> None:
    """The body of the child. name: where the text was. chunks: contexts at most (0: all). result: where to write the
    matrix."""
    from edgellm import machine
    from edgellm.backends.llamacpp import library

    lib = library.load_library()
    model_params = library.model_params()
    with library.capture_log() as lines:
        loaded = lib.llama_model_load_from_file(os.fsencode(model), model_params)
    if not loaded:
        words = "\n".join(line.rstrip() for line in list(lines)[-8:])
        raise ModelLoadError(f"{model}: llama.cpp does not load it, so it cannot be calibrated. It says:\n{words}")
    vocab = lib.llama_model_get_vocab(loaded)
    size = min(CHUNK, lib.llama_model_n_ctx_train(loaded))
    tokens = _tokenize(lib, vocab, Path(text).read_bytes())
    total = len(tokens) // size
    if total < 2:
        raise InvalidParameter(
            f"{name}: the calibration text has {len(tokens)} tokens, and two contexts of {size} are the least; use a "
            "longer text"
        )
    total = min(chunks or total, total)
    micro_batch = max(FEWEST_ROWS, min(size, LOGIT_BYTES // (4 * lib.llama_vocab_n_tokens(vocab)) // 16 * 16))

    sums = _Sums()
    callback = lib.ggml_backend_sched_eval_callback(sums.callback)  # lives as long as this frame
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = size, micro_batch, micro_batch, 1
    params.n_threads = params.n_threads_batch = machine.usable_cores()
    params.offload_kqv = params.op_offload = False  # activations stay in host memory, where we read them
    params.cb_eval = callback
    context = lib.llama_init_from_model(loaded, params)
    if not context:
        raise BackendFailed(f"{model}: llama.cpp makes no context for it; is there enough memory?")
    for chunk in range(total):
        ids = tokens[chunk * size : (chunk + 1) * size]
        if lib.llama_vocab_get_add_bos(vocab):
            ids[0] = lib.llama_vocab_bos(vocab)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for at in range(0, size, micro_batch):
            _decode(lib, context, ids[at : at + micro_batch], sums)
        parent.say(done=chunk + 1, of=total)
    if not sums.found:
        raise Unsupported(f"{model}: none of its products has weights of a layer; it cannot be calibrated")
    ImportanceMatrix(sums.entries(), total, size, (Path(name).name,)).write(result)
    parent.say(wrote=result)


def _tokenize(lib: Any, vocab: Any, raw: bytes) -> list[int]:
    ids = (lib.llama_token * (len(raw) + 8))()
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, False)
    if count < 0:
        raise InvalidParameter(f"the calibration text of {len(raw)} bytes is too long to tokenize; use a part of it")
    return list(ids[:count])


def _decode(lib: Any, context: Any, ids: list[int], sums: _Sums) -> None:
    """One pass that asks for the logits of all positions. Raises what the callback met."""
    kept = (lib.llama_token * len(ids))(*ids)  # the batch only points to them
    wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
    batch = lib.llama_batch_get_one(kept, len(ids))
    batch.logits = wanted
    code = lib.llama_decode(context, batch)
    if sums.error is not None:
        raise sums.error
    if code != 0:
        raise BackendFailed(f"llama_decode returned {code} while calibrating")


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, up to the name. `_check_layout` compares it with the library's own reading."""


_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),  # elements, the row first
    ("nb", ctypes.c_size_t * 4),  # bytes from one to the next
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


@dataclass
class _Sums:
    """The sums of squares of every weight, filled by llama.cpp's callback."""

    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    error: EdgeLLMError | None = None  # an exception cannot cross llama.cpp: it waits here
    _checked: bool = False

    def __post_init__(self) -> None:
        self._ggml = ctypes.CDLL(str(library_file()))
        self._ggml.ggml_op_name.restype = ctypes.c_char_p
        self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_nelements.restype = ctypes.c_int64
        self._ggml.ggml_get_data.restype = ctypes.c_void_p

    def callback(self, address: int, ask: bool, _user_data: Any) -> bool:
        """With `ask`: whether the tensor is wanted. Without: take it. False then stops the pass."""
        try:
            if self.error is not None:
                return False
            tensor = _Tensor.from_address(address)
            if ask:
                return self._wanted(tensor)
            self._take(tensor)
        except EdgeLLMError as error:
            self.error = error
        except Exception as error:
            self.error = BackendFailed(f"reading llama.cpp's tensors failed: {type(error).__name__}: {error}")
        return self.error is None

    def entries(self) -> dict[str, InputSums]:
        return {
            name: InputSums(sums.astype(np.float32), counts.astype(np.float32))
            for name, (sums, counts) in self.found.items()
        }

    def _wanted(self, tensor: _Tensor) -> bool:
        operation = self._operation(tensor)
        if operation not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        if not self._checked:
            self._check_layout(tensor)
        activations = tensor.src[1].contents
        if activations.type != GGMLType.F32 or not _weight_name(tensor).startswith("blk."):
            return False
        return operation == "MUL_MAT_ID" or activations.ne[1] >= FEWEST_ROWS

    def _take(self, tensor: _Tensor) -> None:
        """Add the squares of one product's activations."""
        weight, activations = tensor.src[0].contents, tensor.src[1].contents
        name, values = _weight_name(tensor), _array(activations, np.dtype(np.float32))
        matrices = weight.ne[2] * weight.ne[3]
        if name not in self.found:
            self.found[name] = np.zeros((matrices, activations.ne[0])), np.zeros(matrices)
        sums, counts = self.found[name]
        if self._operation(tensor) == "MUL_MAT_ID":
            # activations: (tokens, experts used or 1, columns); chosen: (tokens, experts used)
            chosen = _array(tensor.src[2].contents, np.dtype(np.int32))[0, 0]
            values = values[0]
            for slot in range(chosen.shape[1]):
                rows = values[:, slot % values.shape[1]]
                for expert in np.unique(chosen[:, slot]):
                    _add(sums, counts, expert, rows[chosen[:, slot] == expert])
        else:
            for i3 in range(values.shape[0]):
                for i2 in range(values.shape[1]):
                    matrix = i3 % weight.ne[3] * weight.ne[2] + i2 % weight.ne[2]
                    _add(sums, counts, matrix, values[i3, i2])
        if not np.isfinite(sums).all():
            raise InvalidModelFile(
                f"the model computes infinite values or NaN before {name}; its weights are damaged: fetch it again"
            )

    def _operation(self, tensor: _Tensor) -> str:
        name: bytes = self._ggml.ggml_op_name(tensor.op)
        return name.decode()

    def _check_layout(self, tensor: _Tensor) -> None:
        """A product and its sources, read through our struct and through the library's functions."""
        for each in (tensor, tensor.src[0].contents, tensor.src[1].contents):
            where = ctypes.byref(each)
            elements = int(np.prod(list(each.ne)))
            ours = (each.name, elements, each.data)
            ggml = self._ggml
            theirs = (ggml.ggml_get_name(where), ggml.ggml_nelements(where), ggml.ggml_get_data(where))
            if ours != theirs:
                raise Unsupported(
                    f"this llama.cpp lays out its tensors in another way ({ours} is {theirs}); "
                    "calibrate with the version of llama-cpp-python that edgellm asks for"
                )
        self._checked = True


def _weight_name(tensor: _Tensor) -> str:
    """The name of a product's weights, without what the scheduler adds to copies: CPU#blk.0.attn_q.weight#0."""
    name: str = tensor.src[0].contents.name.decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


def _array(tensor: _Tensor, kind: np.dtype[Any]) -> NDArray[Any]:
    """A tensor in host memory, as a view of four dimensions in numpy order."""
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    if not tensor.data:
        raise BackendFailed(f"llama.cpp computed {tensor.name!r} without leaving it in memory")
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + kind.itemsize
    memory = (ctypes.c_char * span).from_address(tensor.data)
    view: NDArray[Any] = np.ndarray(shape, kind, memory, 0, strides)
    return view


def _add(
    sums: NDArray[np.float64], counts: NDArray[np.float64], matrix: int, rows: NDArray[np.float32]
) -> None:  # rows: (n, columns)
    sums[matrix] += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
    counts[matrix] += len(rows)
