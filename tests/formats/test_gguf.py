"""The GGUF reader against the `gguf` package's writer, and against files that lie."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from edgellm.backends.llamacpp import library
from edgellm.errors import InvalidModelFile, ModelNotFound
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray
from edgellm.formats.gguf_writer import write_gguf


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(pairs: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def opened(folder: Path, raw: bytes) -> GGUFFile:
    path = folder / "made.gguf"
    path.write_bytes(raw)
    return GGUFFile.open(path)


def refused(folder: Path, raw: bytes) -> str:
    with pytest.raises(InvalidModelFile) as caught:
        opened(folder, raw)
    assert "made.gguf" in str(caught.value)
    return str(caught.value)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 1 << 31)
    writer.add_int32("a.i32", -5)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "grüße")
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_array("a.strings", ["x", "", "日本"])
    values = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    writer.add_tensor("plain", values)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(path) as file:
        meta = file.metadata
        assert [meta[f"a.{k}"] for k in ("u8", "i8", "u16", "i16", "u32", "i32")] == [200, -3, 60000, -300, 1 << 31, -5]
        assert (meta["a.u64"], meta["a.i64"], meta["a.f32"], meta["a.f64"]) == (1 << 63, -(1 << 62), 0.5, 0.1)
        assert meta["a.bool"] is True
        assert meta["a.text"] == "grüße"
        assert meta["a.ints"].tolist() == [1, -2, 3]
        assert meta["a.floats"].tolist() == [0.5, 1.5]
        words = meta["a.strings"]
        assert list(words) == [b"x", b"", "日本".encode()] == words[:]
        assert (words[2], words[-1], len(words)) == ("日本".encode(), "日本".encode(), 3)
        assert (file.kind("a.u16"), file.kind("a.strings"), file.kind("a.text")) == ("u16", "str[]", "str")
        assert file.tensors["plain"].shape == (2, 64)
        assert np.array_equal(file.data("plain").view(np.float32).reshape(2, 64), values)
        assert file.tensors["packed"].type is GGMLType.Q8_0
        assert file.data("packed").tobytes() == packed.tobytes()
        assert not file.data("plain").flags.writeable


def test_agrees_with_llama_cpp_on_a_real_model(smollm2: Path) -> None:
    lib = library.load_library()
    params = library.model_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(smollm2).encode(), params)
    vocab = lib.llama_model_get_vocab(model)
    text = ctypes.create_string_buffer(1 << 16)
    try:
        with GGUFFile.open(smollm2) as file:
            words = file.metadata["tokenizer.ggml.tokens"]
            assert len(words) == lib.llama_vocab_n_tokens(vocab)
            for token in range(0, len(words), 97):
                assert words[token] == lib.llama_vocab_get_text(vocab, token)
            scalars = [key for key in file.metadata if not file.kind(key).endswith("[]")]
            assert len(scalars) == lib.llama_model_meta_count(model)
            for key in scalars:
                lib.llama_model_meta_val_str(model, key.encode(), text, len(text))
                value = file.metadata[key]
                if isinstance(value, float):
                    assert float(text.value) == pytest.approx(value, abs=1e-6)
                else:
                    assert text.value.decode() == (str(value).lower() if isinstance(value, bool) else str(value))
    finally:
        lib.llama_model_free(model)


def test_get_insists_on_the_type(folder: Path) -> None:
    file = opened(folder, header([pair(b"n", 4, struct.pack("<I", 7)), pair(b"s", 8, string(b"x"))], []))
    assert file.get("n", int, None) == 7
    assert file.get("absent", int, 5) == 5
    for key, kind in (("n", str), ("n", bool), ("n", float), ("s", int)):
        with pytest.raises(InvalidModelFile, match=key):
            file.get(key, kind, None)


def test_what_is_not_utf8_in_a_text_is_replaced(folder: Path) -> None:
    file = opened(folder, header([pair(b"s", 8, string(b"\xff"))], []))
    assert file.metadata["s"] == "\ufffd"


def test_version_2_is_read(folder: Path) -> None:
    file = opened(folder, header([], [tensor()], 128, version=2))
    assert (file.version, file.tensors["t"].nbytes) == (2, 128)


U64_MAX = (1 << 64) - 1
ONE = struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "too few"),
        (b"GGUF", "too few"),
        (b"GGML" + bytes(60), "not a GGUF file"),
        (header([], [], version=1), "version 1"),
        (header([], [], version=4), "version 4"),
        (header([], [], version=3 << 24), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, U64_MAX, 0), "tensors do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, U64_MAX), "pairs do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + bytes(100), "pairs do not fit"),
        (header([pair(b"", 4, ONE)], []), "key of 0 bytes"),
        (header([struct.pack("<Q", U64_MAX) + bytes(40)], []), "a key of"),
        (header([pair(b"k\0", 4, ONE)], []), "zero byte"),
        (header([pair(b"\xff", 4, ONE)], []), "UTF-8"),
        (header([pair(b"k", 4, ONE)] * 2, []), "appears twice"),
        (header([pair(b"k", 13, bytes(8))], []), "unknown value type 13"),
        (header([pair(b"k", 7, b"\x02")], []), "truth value"),
        (header([pair(b"k", 8, struct.pack("<Q", U64_MAX))], [])[:60], "ends in the middle|beyond the end"),
        (header([pair(b"k", 8, struct.pack("<Q", 1 << 40))], []), "ends in the middle|beyond the end"),
        (header([pair(b"k", 9, struct.pack("<IQ", 4, 1 << 62))], []), "beyond the end|ends in the middle"),
        (header([pair(b"k", 9, struct.pack("<IQ", 8, 1 << 61))], []), "claims"),
        (header([pair(b"k", 9, struct.pack("<IQ", 8, 2) + string(b"a") + b"\xf8" + b"\xff" * 7)], []), "beyond"),
        (header([pair(b"k", 9, struct.pack("<IQ", 9, 1) * 1000)], []), "array of arrays"),
        (header([pair(b"general.alignment", 4, struct.pack("<I", 0))], []), "alignment 0"),
        (header([pair(b"general.alignment", 4, struct.pack("<I", 24))], []), "alignment 24"),
        (header([pair(b"general.alignment", 4, struct.pack("<I", 1 << 31))], []), "alignment"),
        (header([pair(b"general.alignment", 10, struct.pack("<Q", 32))], []), "alignment"),
        (header([], [tensor()] * 2, 256), "appears twice"),
        (header([], [tensor(b"")], 128), "name of 0 bytes"),
        (header([], [tensor(b"n" * 65)], 128), "name of 65 bytes"),
        (header([], [tensor(shape=(1,) * 5)], 128), "5 dimensions"),
        (header([], [tensor(shape=())], 128), "0 dimensions"),
        (header([], [tensor(shape=(0,))], 128), "impossible shape"),
        (header([], [tensor(shape=(1 << 63,))], 128), "impossible shape"),
        (header([], [tensor(shape=(1 << 40, 1 << 40))], 128), "not inside the file"),
        (header([], [tensor(kind=4)], 128), "unknown type 4"),
        (header([], [tensor(kind=99)], 128), "unknown type 99"),
        (header([], [tensor(shape=(33,), kind=8)], 128), "not a multiple of 32"),
        (header([], [tensor(offset=1)], 256), "multiple of 32"),
        (header([], [tensor(offset=U64_MAX - 31)], 256), "not inside"),
        (header([], [tensor(shape=(48,))], 128), "beyond the end"),
        (header([], [tensor(b"a"), tensor(b"b", offset=96)], 256), "overlaps"),
    ],
)  # fmt: skip
def test_lies_are_refused(folder: Path, raw: bytes, says: str) -> None:
    if raw[:4] == b"GGUF" and len(raw) > 64:
        raw += bytes(32)
    assert re.search(says, refused(folder, raw))


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"\x01"])
def test_little_of_a_damaged_key_is_shown(folder: Path, byte: bytes) -> None:
    """A key of which the length is damaged goes on over what follows it."""
    raw = header([pair(b"k" + byte * 5000, 13, ONE)], []) + bytes(64)
    assert len(refused(folder, raw)) < len(str(folder)) + 300


def test_a_folder_or_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        GGUFFile.open(tmp_path)
    with pytest.raises(ModelNotFound, match=r"none\.gguf"):
        GGUFFile.open(tmp_path / "none.gguf")


def test_a_hostile_string_array_costs_no_memory(folder: Path) -> None:
    count = (1 << 21) + 1
    path = folder / "made.gguf"
    path.write_bytes(header([pair(b"k", 9, struct.pack("<IQ", 8, count) + bytes(8 * count))], []))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelFile, match="claims"):
            GGUFFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_fingerprint_is_of_the_weights_not_of_the_path(tmp_path: Path) -> None:
    model = tiny("llama", seed=1)
    first = GGUFFile.open(model.write(tmp_path / "a.gguf")).fingerprint
    assert GGUFFile.open(model.write(tmp_path / "b.gguf")).fingerprint == first
    assert GGUFFile.open(tiny("llama", seed=2).write(tmp_path / "c.gguf")).fingerprint != first
    model.metadata["general.name"] = "other"
    assert GGUFFile.open(model.write(tmp_path / "d.gguf")).fingerprint != first


def split(folder: Path, count: int = 3, tensors: int = 3, **lies: int) -> Path:
    """A model in parts of one tensor each; `lies` replace what one part says of itself."""
    for index in range(count):
        meta = {"split.no": np.uint16(index), "split.count": np.uint16(lies.get(f"count{index}", count))}
        meta["split.no"] = np.uint16(lies.get(f"no{index}", index))
        meta["split.tensors.count"] = np.int32(lies.get("tensors", tensors))
        name = "same" if "same" in lies else f"t{index}"
        data = np.full(32, index, np.float32)
        write_gguf(folder / f"m-{index + 1:05d}-of-{count:05d}.gguf", meta, [(name, (32,), GGMLType.F32, data)])
    return folder / f"m-00001-of-{count:05d}.gguf"


@pytest.mark.skipif(os.name == "nt", reason="Windows cuts no file that is mapped")
def test_what_was_cut_off_meanwhile_is_not_read(tmp_path: Path) -> None:
    path = tiny("llama").write(tmp_path / "model.gguf")
    with GGUFFile.open(path) as file:
        first, last = min(file.tensors, key=lambda name: file.tensors[name].offset), list(file.tensors)[-1]
        whole = file.tensors[first]
        os.truncate(path, whole.offset + whole.nbytes)
        assert file.data(first).nbytes == whole.nbytes
        with pytest.raises(InvalidModelFile, match="was cut to"):
            file.data(last)
        with pytest.raises(InvalidModelFile, match="was cut to"):
            _ = file.fingerprint


def test_any_part_of_a_split_model_opens_the_whole(tmp_path: Path) -> None:
    first = split(tmp_path)
    for path in (first, tmp_path / "m-00002-of-00003.gguf"):
        with GGUFFile.open(path) as file:
            assert file.path == first
            assert [part.name[2:7] for part in file.paths] == ["00001", "00002", "00003"]
            assert [file.data(f"t{i}").view(np.float32)[0] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("lie", [{"tensors": 4}, {"no1": 2}, {"count2": 5}, {"same": 1}, {"no0": 1}])
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, lie: dict[str, int]) -> None:
    with pytest.raises(InvalidModelFile):
        GGUFFile.open(split(tmp_path, **lie))


def test_a_missing_or_renamed_part_is_named(tmp_path: Path) -> None:
    first = split(tmp_path)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFound, match="m-00002-of-00003"):
        GGUFFile.open(first)
    with pytest.raises(InvalidModelFile, match="00001-of-00003"):
        GGUFFile.open(first.rename(tmp_path / "renamed.gguf"))


RAW: dict[str, bytes] = {}


def raw_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if not RAW:
        path = tiny("gemma3").write(tmp_path_factory.mktemp("fuzz") / "x.gguf")
        with GGUFFile.open(path) as file:
            RAW["header"] = path.read_bytes()[: min(info.offset for info in file.tensors.values())]
        RAW["all"] = path.read_bytes()
    return RAW["all"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from(["bit", "byte", "u64", "cut", "insert"]),
                                st.integers(0, U64_MAX)), min_size=1, max_size=4))  # fmt: skip
def test_damage_gives_a_file_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, edits: list[tuple[int, str, int]]
) -> None:
    raw = bytearray(raw_model(tmp_path_factory))
    size = len(RAW["header"])
    for where, how, value in edits:
        at = where % size
        if how == "bit":
            raw[at] ^= 1 << value % 8
        elif how == "byte":
            raw[at] = value % 256
        elif how == "u64":
            raw[at : at + 8] = struct.pack("<Q", value)
        elif how == "cut":
            del raw[value % len(raw) :]
        else:
            raw[at:at] = bytes(value % 64)
        if len(raw) <= size:
            break
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)
    try:
        with GGUFFile.open(path) as file:
            for key in file.metadata:
                try:
                    value = file.metadata[key]
                except InvalidModelFile:
                    continue
                assert not isinstance(value, StringArray) or sum(map(len, value)) <= len(raw)
            for name, info in file.tensors.items():
                assert file.data(name).nbytes == info.nbytes <= len(raw)
    except InvalidModelFile:
        pass
