"""edgellm's own kernels for quantized products, inside of ONNX Runtime, against numpy."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from backend_cases import PARAMS, feed, fresh, onnx_quantized, prompt
from numpy.typing import NDArray

from edgellm import _native
from edgellm.backends import open_backend
from edgellm.backends.onnx import kernels, library
from edgellm.backends.onnx.backend import OnnxBackend
from edgellm.errors import Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Graph, Initializer, Node, Value
from edgellm.formats.onnx_writer import write_onnx

library.load_library()
ours_are_faster = pytest.mark.skipif(not library.kernel_set(), reason="this processor has none of the kernels")
SETS = _native.kernel_sets()

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """W (rows, columns) as MatMulNBits holds it."""

    rows: int
    columns: int
    block: int
    bits: int
    codes: NDArray[np.uint8]  # (rows, columns), one to a byte
    scales: F32  # (rows, blocks)
    zeros: NDArray[np.uint8] | None  # (rows, blocks)
    bias: F32 | None

    @property
    def kept(self) -> NDArray[np.float64]:
        """(rows, columns / 32): the scales as halves, times a power of two."""
        power = 2.0 ** np.clip(14 - np.floor(np.log2(np.abs(self.scales).max())), 0, 100)
        return np.repeat((self.scales * power).astype(np.float16).astype(np.float64) / power, self.block // 32, axis=1)

    @property
    def shifted(self) -> NDArray[np.int64]:
        """(rows, columns / 32, 32): codes less their zeros."""
        zeros = np.full(self.scales.shape, 8 if self.bits == 4 else 128) if self.zeros is None else self.zeros
        all_zeros = np.repeat(zeros.astype(np.int64), self.block // 32, axis=1)
        return self.codes.reshape(self.rows, -1, 32).astype(np.int64) - all_zeros[..., None]

    def initializers(self) -> Iterator[Initializer]:
        blocks = self.columns // self.block
        yield _constant("B", _packed(self.codes, self.bits).reshape(self.rows, blocks, -1))
        yield _constant("S", self.scales)
        if self.zeros is not None:
            yield _constant("Z", _packed(self.zeros, self.bits))
        if self.bias is not None:
            yield _constant("bias", self.bias)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << 4


def _constant(name: str, array: NDArray[Any]) -> Initializer:
    dtype = {"u": "UINT8", "f": "FLOAT"}[array.dtype.kind]
    return Initializer(name, dtype, array.shape, lambda: iter([array]))


def random_weights(
    rows: int, columns: int, block: int, bits: int = 4, zeros: bool = False, bias: bool = False
) -> Weights:
    rng = np.random.default_rng([rows, columns, block, bits])
    blocks = columns // block
    return Weights(
        rows,
        columns,
        block,
        bits,
        rng.integers(0, 1 << bits, (rows, columns), np.uint8),
        rng.normal(0, 0.1, (rows, blocks)).astype(np.float32),
        rng.integers(0, 16, (rows, blocks), np.uint8) if zeros else None,
        rng.normal(0, 1, rows).astype(np.float32) if bias else None,
    )


def graph_of(w: Weights, level: int = 4) -> Graph:
    inputs = ["x", "B", "S", "Z" if w.zeros is not None else "", "", "bias" if w.bias is not None else ""]
    while not inputs[-1]:
        inputs.pop()
    attributes = {"K": w.columns, "N": w.rows, "bits": w.bits, "block_size": w.block, "accuracy_level": level}
    node = Node("MatMulNBits", tuple(inputs), ("y",), "com.microsoft", "product", attributes)
    x, y = Value("x", "FLOAT", ("a", "b", w.columns)), Value("y", "FLOAT", ("a", "b", w.rows))
    return Graph("test", (x,), (y,), (node,), tuple(w.initializers()))


def _session(folder: Path, w: Weights, n_vocab: int | None = None, threads: int = 2, kernel_set: str = SETS[0]) -> Any:
    path = folder / "model.onnx"
    write_onnx(path, graph_of(w))
    with ONNXFile.open(path) as file:
        [node] = kernels.ours(file.graph, threads, n_vocab).nodes
        assert (node.domain, node.attributes["bytes"]) == (kernels.OURS, n_vocab == w.rows)
        model = _rewritten(file, threads, n_vocab, kernel_set)
    return _open(model, folder, threads)


def _rewritten(file: ONNXFile, threads: int = 2, n_vocab: int | None = None, kernel_set: str = SETS[0]) -> bytes:
    """The model with our product, whether it would be chosen or not."""
    [node] = file.graph.nodes
    changed = kernels.product(node, threads, logits=node.attributes["N"] == n_vocab, kernel_set=kernel_set)
    return file.rewritten(replace(file.graph, nodes=(changed,)), file.path.parent)


def _open(model: bytes, folder: Path, threads: int = 2) -> Any:
    options = library.load_library().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = library.FATAL
    kernels.register(options, folder)
    return library.load_library().InferenceSession(model, options, providers=[library.CPU])


def _x(*shape: int) -> F32:
    return np.random.default_rng(shape).normal(0, 1, shape).astype(np.float32)


def _run(session: Any, x: F32) -> F32:
    (y,) = session.run(None, {"x": x})
    assert isinstance(y, np.ndarray)
    return y


def _in_bytes(w: Weights, x: F32) -> NDArray[np.float64]:
    """What native/kernels/activations.h says of bytes, its sums in 64 bits."""
    blocks = x.reshape(*x.shape[:-1], -1, 32).astype(np.float32)
    most = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(blocks * inverse).astype(np.int64)
    sums = np.einsum("...bk,nbk->...nb", codes, w.shifted).astype(np.float64)
    y = np.einsum("...nb,nb,...b->...n", sums, w.kept, (most[..., 0] / np.float32(127)).astype(float))
    return y if w.bias is None else y + w.bias


def _bfloat16(values: F32) -> NDArray[np.float64]:
    whole = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (whole + 0x7FFF + (whole >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def _in_bfloat16(w: Weights, x: F32) -> NDArray[np.float64]:
    values = (w.shifted * w.kept[..., None]).astype(np.float32).reshape(w.rows, w.columns)
    y = _bfloat16(x) @ _bfloat16(values).T
    return y if w.bias is None else y + w.bias


CASES = [
    (16, 32, 32, {}),
    (48, 64, 32, {"zeros": True}),
    (17, 96, 32, {"bias": True}),
    (33, 256, 128, {"zeros": True, "bias": True}),
    (40, 128, 64, {"bits": 8}),
    (1, 512, 256, {"bits": 8, "bias": True}),
    (100, 2144, 32, {"zeros": True, "bias": True}),  # columns in two panels, the last one smaller
    (600, 576, 64, {}),  # several panels of rows
]


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize(("rows", "columns", "block", "more"), CASES)
def test_one_row_is_multiplied_in_bytes(
    rows: int, columns: int, block: int, more: dict[str, Any], kernel_set: str, tmp_path: Path
) -> None:
    w = random_weights(rows, columns, block, **more)
    session = _session(tmp_path, w, kernel_set=kernel_set)
    for batch in (1, 2, 3, 7, 13, 30):  # every number of rows that share a reading of W
        x = _x(batch, 1, columns)
        y = _run(session, x)
        np.testing.assert_allclose(y, _in_bytes(w, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "block", "more"), CASES)
def test_rows_of_a_text_are_multiplied_in_bfloat16(
    rows: int, columns: int, block: int, more: dict[str, Any], tmp_path: Path
) -> None:
    w = random_weights(rows, columns, block, **more)
    session = _session(tmp_path, w)
    expected = _in_bfloat16 if _native.bfloat16_kernels() else _in_bytes
    for length in (2, 15, 16, 17, 33, 70):
        x = _x(2, length, columns)
        np.testing.assert_allclose(_run(session, x), expected(w, x), rtol=1e-4, atol=2e-4)


def test_logits_are_multiplied_in_bytes_however_many_there_are(tmp_path: Path) -> None:
    w = random_weights(200, 64, 32)
    session = _session(tmp_path, w, n_vocab=200)
    x = _x(1, 40, 64)
    y = _run(session, x)
    np.testing.assert_allclose(y, _in_bytes(w, x), rtol=1e-4, atol=1e-4)
    for at in (0, 17, 39):
        assert (_run(session, x[:, at : at + 1]) == y[:, at]).all()


@pytest.mark.parametrize("more", [{}, {"zeros": True}, {"bits": 8}])
def test_a_row_has_the_same_bits_whatever_is_beside_it(more: dict[str, Any], tmp_path: Path) -> None:
    w = random_weights(330, 2080, 32, bias=True, **more)
    session, alone = _session(tmp_path, w), _session(tmp_path, w, threads=1)
    x = _x(1, 77, 2080)
    y = _run(session, x)
    assert (_run(alone, x) == y).all()
    for start, stop in ((0, 2), (3, 19), (16, 77), (40, 73)):
        assert (_run(session, x[:, start:stop]) == y[:, start:stop]).all()
    singles = _run(session, x.reshape(77, 1, -1))
    for start, stop in ((0, 1), (5, 12), (60, 77)):
        assert (_run(session, x.reshape(77, 1, -1)[start:stop]) == singles[start:stop]).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("largest", [1e-25, 1e-6, 0.02, 60_000.0, 1e30])
def test_scales_are_rounded_to_sixteen_bits(bits: int, largest: float, tmp_path: Path) -> None:
    w = random_weights(64, 256, 64, bits, zeros=bits == 4)
    scales = (largest * 2 ** np.random.default_rng(3).uniform(-48, 0, w.scales.shape)).astype(np.float32)
    scales[0] = largest
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    x = np.zeros((256, 1, 256), np.float32)
    np.fill_diagonal(x[:, 0], 127)  # whose codes are what they are
    for kept in (scales, halves) if np.isfinite(halves).all() and halves.any() else (scales,):
        exact = replace(w, scales=kept)
        y = _run(_session(tmp_path, exact), x)[:, 0].T.astype(np.float64)
        of_columns = np.repeat(kept.astype(np.float64), 64, axis=1)
        whole = 127.0 * exact.shifted.reshape(64, 256)
        rounding = 2**-11 * of_columns + 2**-39 * largest if kept is scales else 0
        assert (np.abs(y - whole * of_columns) <= np.abs(whole) * (rounding + 2e-7 * of_columns)).all()


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    w = random_weights(40, 64, 32)
    for bad in (np.inf, np.nan):
        w.scales[17, 1] = bad
        with pytest.raises(Exception, match="MatMulNBits: a scale or a number is not finite"):
            _session(tmp_path, w)


def test_zeros_and_extremes(tmp_path: Path) -> None:
    w = random_weights(20, 64, 32, bias=True)
    session = _session(tmp_path, w)
    assert w.bias is not None
    for shape in ((1, 1, 64), (1, 5, 64)):
        assert (_run(session, np.zeros(shape, np.float32)) == w.bias).all()
    assert _run(session, np.zeros((0, 3, 64), np.float32)).shape == (0, 3, 20)
    huge = np.full((1, 1, 64), 3e38, np.float32)
    assert np.isfinite(_run(session, huge / np.float32(1e6))).all()
    for bad in (np.nan, np.inf):  # nothing sensible can come of them; the process lives
        x = _x(1, 4, 64)
        x[0, 1, 3] = bad
        y = _run(session, x)
        assert np.isfinite(y[0, [0, 2, 3]]).all()


def test_what_the_kernels_cannot_do_stays_with_onnx_runtime() -> None:
    def chosen(w: Weights, level: int = 4) -> bool:
        graph = graph_of(w, level)
        return kernels.ours(graph, 2, None) is not graph

    assert chosen(random_weights(16, 64, 32))
    assert not chosen(random_weights(16, 64, 32), level=0)  # exact
    assert not chosen(random_weights(16, 64, 16))  # blocks of less than 32
    eight = random_weights(16, 64, 32, bits=8)
    assert not chosen(Weights(16, 64, 32, 8, eight.codes, eight.scales, np.ones((16, 2), np.uint8), None))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    w = random_weights(16, 64, 32)
    graph = graph_of(w)
    short = Initializer("B", "UINT8", (16, 2, 15), lambda: iter([np.zeros((16, 2, 15), np.uint8)]))
    for wrong in (short, _constant("S", w.scales[:, :1])):
        broken = tuple(wrong if each.name == wrong.name else each for each in graph.initializers)
        path = tmp_path / "broken.onnx"
        write_onnx(path, Graph("test", graph.inputs, graph.outputs, graph.nodes, broken))
        with ONNXFile.open(path) as file:
            model = _rewritten(file)
        with pytest.raises(Exception, match="has another type or size"):
            _open(model, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("K", 0), ("K", 1 << 62), ("N", 1 << 62), ("bits", 3), ("block_size", -32), ("block_size", 48)]
)
def test_numbers_that_cannot_be_are_refused(name: str, value: int, tmp_path: Path) -> None:
    graph = graph_of(random_weights(16, 64, 32))
    node = graph.nodes[0]
    lying = Node(node.op, node.inputs, node.outputs, node.domain, node.name, {**node.attributes, name: value})
    path = tmp_path / "lying.onnx"
    write_onnx(path, Graph("test", graph.inputs, graph.outputs, (lying,), graph.initializers))
    with ONNXFile.open(path) as file:
        model = _rewritten(file)
    with pytest.raises(Exception, match="MatMulNBits"):
        _open(model, tmp_path)


@ours_are_faster
@pytest.mark.parametrize("kernel_set", [each for each in SETS if each in library.FASTER])
def test_prompts_in_bytes_beside_the_attention_of_onnx_runtime(
    kernel_set: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = onnx_quantized(tmp_path)
    with closing(open_backend(path, PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        expected = fresh(backend, prompt(100))
    every = kernels.product
    monkeypatch.setattr(kernels, "product", lambda node, threads, logits: every(node, threads, logits=True))
    monkeypatch.setattr(library, "kernel_set", lambda: kernel_set)
    monkeypatch.setattr(_native, "attends_in_onnx", lambda: False)
    with closing(open_backend(path, PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        assert backend.rewritten is not None
        assert backend.rewritten.operators == {kernels.PRODUCT}
        assert f"|{kernel_set} " in backend.state_key
        row = fresh(backend, prompt(100))
        np.testing.assert_allclose(row, expected, atol=0.05)
        sequence = backend.new_sequence()
        feed(backend, sequence, prompt(100)[:36])
        assert (feed(backend, sequence, prompt(100)[36:]) == row).all()


@ours_are_faster
def test_a_model_of_4_bits_goes_through_the_kernels(tmp_path: Path) -> None:
    with closing(open_backend(onnx_quantized(tmp_path), PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        assert backend.rewritten is not None
        assert (kernels.ATTENTION in backend.rewritten.operators) == _native.attends_in_onnx()
        assert kernels.PRODUCT in backend.rewritten.operators
        assert library.kernel_names() in backend.state_key


def test_an_old_onnx_runtime_runs_no_kernels_or_embeddings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    eight, four = (
        onnx_quantized(tmp_path / "a", "int8"),
        onnx_quantized(tmp_path / "b", "int4_s"),
    )  # bits of the embedding
    monkeypatch.setattr(library, "version", lambda: (1, 22))
    with closing(open_backend(eight, PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        assert backend.rewritten is None
    with pytest.raises(Unsupported, match="its embedding has 4 bits, which ONNX Runtime reads rightly from"):
        open_backend(four, PARAMS)
    monkeypatch.setattr(library, "version", lambda: (1, 27))
    open_backend(four, PARAMS).close()


@ours_are_faster
def test_a_model_with_its_weights_inside(tmp_path: Path) -> None:
    path = onnx_quantized(tmp_path)
    with closing(open_backend(path, PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        expected = fresh(backend, prompt(40))
    [graph], [data] = (path / "onnx").glob("*.onnx"), (path / "onnx").glob("*data")
    onnx.save(onnx.load(graph), graph)
    data.unlink()
    with closing(open_backend(path, PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        assert backend.rewritten is not None
        assert backend.rewritten.operators
        assert (fresh(backend, prompt(40)) == expected).all()


@ours_are_faster
def test_an_exact_model_does_not(tmp_path: Path) -> None:
    with closing(open_backend(onnx_quantized(tmp_path, exact=True), PARAMS)) as backend:
        assert isinstance(backend, OnnxBackend)
        assert backend.rewritten is None
        assert library.kernel_names() not in backend.state_key


@ours_are_faster
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_mapped_weights_leave_memory_once_laid_out(tmp_path: Path) -> None:
    path = onnx_quantized(tmp_path)
    [data] = (path / "onnx").glob("*data")

    def mapped() -> list[int]:
        """Resident KiB of every mapping of the file."""
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
        starts = [at for at, line in enumerate(smaps) if line.endswith(str(data))]
        return [int(next(line for line in smaps[at:] if line.startswith("Rss:")).split()[1]) for at in starts]

    with data.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as host:
        host[5000] ^= 1  # a page of the host's own, which the file does not have
        before = bytes(host)
        others = mapped()
        with closing(open_backend(path, PARAMS)) as backend:
            assert isinstance(backend, OnnxBackend)
            assert backend.rewritten is not None
            with ONNXFile.open(backend.rewritten.file.path) as file:
                sizes = {each.name: each.nbytes for each in file.graph.initializers}
            weights = sum(sizes[name] for name in backend.rewritten.weights)
            assert weights > data.stat().st_size * 0.6
            assert sum(mapped()) - sum(others) < data.stat().st_size * 0.5 / 1024
            row = fresh(backend, prompt(40))
        assert mapped() == others
        assert bytes(host) == before
    assert np.isfinite(row).all()


def test_weights_may_lie_anywhere_in_the_file(tmp_path: Path) -> None:
    w = random_weights(48, 64, 32, zeros=True, bias=True)
    path = tmp_path / "model.onnx"
    write_onnx(path, graph_of(w))
    expected, x = _run(_session(tmp_path, w), _x(1, 3, 64)), _x(1, 3, 64)
    with ONNXFile.open(path) as file:
        graph = kernels.ours(file.graph, 2, None)
        assert kernels.multiplied(graph) == {"B", "S", "Z", "bias"}
        model = _rewritten(file)
        shifted = {}
        for name in "B", "S", "Z", "bias":
            values = file.array(name)
            room = np.zeros(values.nbytes + 1, np.uint8)
            room[1:] = values.reshape(-1).view(np.uint8)
            shifted[name] = room[1:].view(values.dtype).reshape(values.shape)  # at an odd address
        options = library.load_library().SessionOptions()
        kernels.register(options, tmp_path)
        weights = {name: library.load_library().OrtValue.ortvalue_from_numpy(each) for name, each in shifted.items()}
        kernels.Rewritten(model, tmp_path, graph, file, weights).lend(options)
        session = library.load_library().InferenceSession(model, options, providers=[library.CPU])
        assert (_run(session, x) == expected).all()
