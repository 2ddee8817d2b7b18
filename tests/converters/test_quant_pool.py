"""Quantizers: the child process gives the same bytes, and leaves nothing behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.quant import ggml, pool
from edgellm.converters.quant.pool import Quantizers
from edgellm.errors import BackendFailed, Closed, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

Rows = NDArray[np.float32]


def gaussian(n: int, columns: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.F16, GGMLType.F32], ids=lambda k: k.name)
def test_the_bytes_are_those_of_one_call(kind: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [gaussian(n, 512, n) for n in (100, 1, 37)]
    with Quantizers(threads=3) as quantizers:
        whole = np.concatenate(list(quantizers.run("w", kind, chunks)))
        again = np.concatenate(list(quantizers.run("w", kind, iter(chunks))))
    np.testing.assert_array_equal(whole, ggml.quantize(kind, np.concatenate(chunks)))
    np.testing.assert_array_equal(again, whole)


def test_many_pieces_come_in_order_with_importance() -> None:
    rows, importance = gaussian(9000, 1024), gaussian(1, 1024, 5)[0] ** 2
    with Quantizers() as quantizers:
        pieces = list(quantizers.run("w", GGMLType.Q8_0, [rows[:5000], rows[5000:]], importance))
        weighted = list(quantizers.run("w", GGMLType.Q4_0, [rows[:500]], importance))
    assert len(pieces) > 2 * pool.SLOTS
    np.testing.assert_array_equal(np.concatenate(pieces), ggml.quantize(GGMLType.Q8_0, rows, importance))
    np.testing.assert_array_equal(np.concatenate(weighted), ggml.quantize(GGMLType.Q4_0, rows[:500], importance))


def test_no_more_than_the_slots_is_read_ahead() -> None:
    read = 0

    def chunks() -> Iterator[Rows]:
        nonlocal read
        for _ in range(8):
            read += 1
            yield np.ones((1, 1024), np.float32)

    with Quantizers(threads=1) as quantizers:
        for done, _ in enumerate(quantizers.run("w", GGMLType.Q8_0, chunks())):
            assert read <= done + pool.SLOTS + 1
    assert read == 8


def test_an_empty_tensor_starts_no_child() -> None:
    with Quantizers() as quantizers:
        assert list(quantizers.run("w", GGMLType.Q4_K, [])) == []
        assert list(quantizers.run("w", GGMLType.Q4_K, [np.empty((0, 256), np.float32)])) == []
        assert len(list(quantizers.run("w", GGMLType.BF16, [gaussian(2, 256)]))) == 1
        assert quantizers._child is None


def dead(child: pool._Child) -> bool:
    return child.process._process.poll() is not None


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(kind: GGMLType, value: float) -> None:
    rows = gaussian(4, 256)
    rows[2, 7] = value
    with Quantizers(threads=1) as quantizers, pytest.raises(InvalidModelFile, match=r"blk\.0\.attn_v\.weight"):
        list(quantizers.run("blk.0.attn_v.weight", kind, [rows]))


def test_weights_too_large_for_their_type() -> None:
    rows = np.full((4, 256), 3e38, np.float32)
    with Quantizers(threads=1) as quantizers, pytest.raises(InvalidModelFile, match=r"blk\.0\.x: .*Q8_0"):
        list(quantizers.run("blk.0.x", GGMLType.Q8_0, [rows]))
    with Quantizers(threads=1) as quantizers, pytest.raises(InvalidModelFile, match=r"blk\.0\.x: .*F16"):
        list(quantizers.run("blk.0.x", GGMLType.F16, [rows]))


def test_a_child_that_dies_is_an_error_that_names_the_tensor() -> None:
    with Quantizers(threads=1) as quantizers:
        run = quantizers.run("blk.7.ffn_up.weight", GGMLType.Q4_0, (gaussian(2048, 1024) for _ in range(20)))
        next(run)
        child = quantizers._child
        assert child is not None
        child.process._process.kill()
        with pytest.raises(BackendFailed, match=r"blk\.7\.ffn_up\.weight: .*Q4_0 ended with code"):
            list(run)
        assert quantizers._child is None
        with pytest.raises(Closed):
            list(quantizers.run("w", GGMLType.Q4_0, [gaussian(1, 256)]))


@pytest.mark.skipif(sys.platform == "win32", reason="the exit code of abort() differs")
def test_a_failed_assertion_inside_ggml_is_an_error() -> None:
    """A type that ggml refuses without importance; nothing of ours would ask for it."""
    with Quantizers(threads=1) as quantizers:
        child, rows = quantizers._open(), gaussian(1, 256)
        child.send(GGMLType.IQ2_XXS, 0, rows, None)
        with pytest.raises(BackendFailed, match=rf"w: .*IQ2_XXS ended with code {-signal.SIGABRT}: .*imatrix != NULL"):
            child.receive("w", GGMLType.IQ2_XXS, 0, 1, 66)


def test_an_error_of_the_source_ends_the_child() -> None:
    def broken() -> Iterator[Rows]:
        yield gaussian(1, 256)
        yield gaussian(1, 256)
        raise OSError("the disk is gone")

    quantizers = Quantizers(threads=1)
    run = quantizers.run("w", GGMLType.Q4_0, broken())
    with pytest.raises(OSError, match="the disk is gone"):
        list(run)
    with pytest.raises(Closed):
        list(quantizers.run("w", GGMLType.Q4_0, [gaussian(1, 256)]))


def test_a_run_that_is_abandoned_ends_the_child() -> None:
    quantizers = Quantizers(threads=1)
    run = quantizers.run("w", GGMLType.Q4_0, (gaussian(1, 256) for _ in range(9)))
    next(run)
    child = quantizers._child
    assert child is not None
    assert not dead(child)
    run.close()  # type: ignore[attr-defined]
    assert dead(child)


def test_what_cannot_be_quantized() -> None:
    with Quantizers(threads=1) as quantizers, pytest.raises(InvalidParameter, match="multiples of 256"):
        list(quantizers.run("w", GGMLType.Q4_K, [gaussian(1, 288)]))
    with Quantizers(threads=1) as quantizers, pytest.raises(Unsupported, match="IQ1_S is not offered"):
        list(quantizers.run("w", GGMLType.IQ1_S, [gaussian(1, 256)]))
    with pytest.raises(InvalidParameter, match="threads=0"):
        Quantizers(threads=0)


def test_a_frozen_application_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with Quantizers() as quantizers, pytest.raises(Unsupported, match="frozen program"):
        list(quantizers.run("w", GGMLType.Q4_0, [gaussian(1, 256)]))


# A script without a main guard that quantizes for ever, and says when it has begun.
SCRIPT = """
import itertools
import numpy as np
from edgellm.converters.quant.pool import Quantizers
from edgellm.formats.ggml_types import GGMLType
rows = np.ones((2048, 1024), np.float32)
with Quantizers(2) as quantizers:
    for piece in quantizers.run("w", GGMLType.Q4_K, itertools.repeat(rows)):
        print(quantizers._child.process._process.pid, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_a_script_that_is_stopped_leaves_nothing(tmp_path: Path, end: str) -> None:
    script = tmp_path / "convert.py"
    script.write_text(SCRIPT, encoding="utf-8")
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(getattr(signal, end))
        _, words = process.communicate(timeout=60)
    assert process.returncode == -getattr(signal, end) or "KeyboardInterrupt" in words
    assert gone(child)
    if os.path.isdir("/dev/shm"):
        assert not {name for name in set(os.listdir("/dev/shm")) - before if "edgellm" in name}


def gone(pid: int) -> bool:
    """Whether a process that is not ours has ended, within 30 seconds."""
    import time

    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
