"""The C++: its layout, what clang-tidy says of it, and its kernels under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from source_tree import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flags of GCC and Clang on Linux")
SOURCES = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in (".cpp", ".h", ".inc"))
SOURCES = [path for path in SOURCES if path.parent.name != "onnxruntime"]  # theirs


def run(tool: str, *arguments: str | Path, **environment: str) -> str:
    """What a tool of the environment of the tests prints, which must succeed."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    found = shutil.which(tool, path=path)
    assert found, f"no {tool}: pip install '.[test]'"
    done = subprocess.run(
        [found, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, **environment},
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that CMake was run for, with sanitizers."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    return configured(tmp_path_factory.mktemp("build"), flags)


def configured(folder: Path, flags: str, *more: str) -> Path:
    run(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS={flags}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DEDGELLM_TESTS=ON", "-DEDGELLM_WERROR=ON",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *more,
    )  # fmt: skip
    return folder


def test_the_layout_of_the_code() -> None:
    assert len(SOURCES) > 20
    run("clang-format", "--dry-run", "--Werror", *SOURCES)


def test_clang_tidy(build: Path) -> None:
    units = [path for path in SOURCES if path.suffix == ".cpp"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda path: run("clang-tidy", "--quiet", "-p", build, path), units))


def test_kernels_under_sanitizers(build: Path) -> None:
    run("cmake", "--build", build, "--target", "kernels_test")
    assert ", 0 failed" in run(str(build / "kernels_test"), UBSAN_OPTIONS="print_stacktrace=1")


def test_the_engine_under_sanitizers(build: Path) -> None:
    run("cmake", "--build", build, "--target", "engine_test")
    assert ", 0 failed" in run(str(build / "engine_test"), UBSAN_OPTIONS="print_stacktrace=1")


def test_the_engine_under_a_thread_sanitizer(tmp_path: Path) -> None:
    sets = ("AVX2", "AVX_VNNI", "AVX_VNNI_AS_AVX512", "AVX512_VNNI", "AMX_BF16", "NEON_DOT", "NEON_I8MM")
    plain = [f"-DEDGELLM_{name}=OFF" for name in sets]  # threads do the same with every set
    folder = configured(tmp_path, "-fsanitize=thread -O1", *plain)
    run("cmake", "--build", folder, "--target", "engine_test")
    assert ", 0 failed" in run(str(folder / "engine_test"), TSAN_OPTIONS="halt_on_error=1")


def test_the_places_are_those_of_onnx_runtimes_header(build: Path) -> None:
    run("cmake", "--build", build, "--target", "ort_abi_test")
    wrong = (ROOT / "native/onnx/ort_abi.h").read_text(encoding="utf-8").replace("kInput = 90", "kInput = 89")
    (build / "onnx").mkdir()
    (build / "tests").mkdir()
    (build / "onnx/ort_abi.h").write_text(wrong, encoding="utf-8")
    test = (ROOT / "native/tests/ort_abi_test.cpp").read_text(encoding="utf-8")
    (build / "tests/ort_abi_test.cpp").write_text(test, encoding="utf-8")
    theirs = ROOT / "native/tests/onnxruntime"
    with pytest.raises(AssertionError, match="kInput"):
        run("c++", "-std=c++20", "-fsyntax-only", "-isystem", theirs, build / "tests/ort_abi_test.cpp")
