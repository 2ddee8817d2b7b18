"""The C++: its layout, what clang-tidy says of it, and its kernels under sanitizers and on other processors."""

from __future__ import annotations

import os
import platform
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
UNITS = [path for path in SOURCES if path.suffix == ".cpp"]
ARM_UNITS = [path for path in UNITS if "neon" in path.name or "arm" in path.name]
ARM_COMPILER = "aarch64-linux-gnu-g++"


def emulator() -> str | None:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


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


def configure(folder: Path, flags: str, *more: str) -> Path:
    """The folder, CMake having been run for it."""
    run(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS={flags}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DEDGELLM_TESTS=ON", "-DEDGELLM_WERROR=ON",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *more,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    return configure(tmp_path_factory.mktemp("build"), flags)


@pytest.fixture(scope="module")
def threads_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = ("AVX2", "AVX_VNNI", "AVX_VNNI_AS_AVX512", "AVX512_VNNI", "AMX_BF16", "PCLMUL", "NEON_DOT", "NEON_I8MM")
    plain = [f"-DEDGELLM_{name}=OFF" for name in sets]  # threads do the same with every set
    return configure(tmp_path_factory.mktemp("threads"), "-fsanitize=thread -O1", *plain)


@pytest.fixture(scope="module")
def arm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that CMake was run for, with a compiler for 64-bit Arm."""
    if platform.machine() != "x86_64" or not (shutil.which(ARM_COMPILER) and emulator()):
        pytest.skip("needs an x86-64 machine with Debian's g++-aarch64-linux-gnu and qemu-user-static")
    return configure(
        tmp_path_factory.mktemp("arm"), "-O1 -DEDGELLM_PLAIN_LOOPS=",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static",
        f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
    )  # fmt: skip


def test_the_layout_of_the_code() -> None:
    assert len(SOURCES) > 20
    run("clang-format", "--dry-run", "--Werror", *SOURCES)


def tidy(build: Path, units: list[Path]) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda path: run("clang-tidy", "--quiet", "-p", build, path), units))


def test_clang_tidy(build: Path) -> None:
    tidy(build, [path for path in UNITS if path not in ARM_UNITS])


def test_clang_tidy_for_arm(arm_build: Path) -> None:
    assert ARM_UNITS
    tidy(arm_build, ARM_UNITS)


def run_test(build: Path, program: str, *through: str) -> str:
    """What a test in C++ prints, all of which must hold."""
    run("cmake", "--build", build, "--target", program)
    options = {"UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
    said = run(*through, str(build / program), **options)
    assert ", 0 failed" in said
    return said


@pytest.mark.parametrize("program", ["onnx_kernels_test", "kernel_sets_test", "engine_test", "choose_test"])
def test_native_code_under_sanitizers(build: Path, program: str) -> None:
    run_test(build, program)


@pytest.mark.parametrize("program", ["kernel_sets_test", "engine_test"])
def test_native_code_under_a_thread_sanitizer(threads_build: Path, program: str) -> None:
    run_test(threads_build, program)


@pytest.mark.parametrize(
    ("processor", "sets"),
    [("max", "neon_i8mm neon_dot scalar"), ("neoverse-n1", "neon_dot scalar"), ("cortex-a72", "scalar")],
)
def test_kernel_sets_of_arm(arm_build: Path, processor: str, sets: str) -> None:
    assert run_test(arm_build, "kernel_sets_test", str(emulator()), "-cpu", processor).startswith(f"{sets} \n")


def test_tokens_are_the_same_on_arm(build: Path, arm_build: Path) -> None:
    here = run_test(build, "choose_test")
    assert "tokens " in here
    assert run_test(arm_build, "choose_test", str(emulator())) == here


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
