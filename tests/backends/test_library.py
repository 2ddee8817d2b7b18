"""Loading llama.cpp: quiet, once, and never into an AMX kernel that crashes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellm import _native
from edgellm.backends.llamacpp import amx, library
from edgellm.backends.llamacpp.ggml import Ggml
from edgellm.backends.stderr import sifted
from edgellm.child import End
from edgellm.errors import BackendFailed, Unsupported

SYSTEM_INFO_AMX = b"CPU : AVX2 = 1 | AMX_INT8 = 1 | REPACK = 1 | "


def python(program: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "EDGELLM_HOME": str(home), **environment},
    )


def amx_can_run() -> bool:
    built = sys.platform == "linux" and b"AMX_INT8 = 1" in library.load_library().llama_print_system_info()
    return built and "amx_int8" in _native.cpu_features()


@pytest.fixture
def needs_amx() -> None:
    if not amx_can_run():
        pytest.skip("needs a CPU with AMX and a llama.cpp built for it")


# --- loading ------------------------------------------------------------------------------------------------------


def test_one_library_for_all_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        modules = list(pool.map(lambda _: library.load_library(), range(8)))
    assert all(module is modules[0] for module in modules)
    assert modules[0].__name__ == "llama_cpp.llama_cpp"


def test_the_environment_is_set_before_openmp_starts(edgellm_home: Path) -> None:
    program = "from edgellm.backends.llamacpp import library; library.load_library()"
    done = python(program, edgellm_home, OMP_DISPLAY_ENV="VERBOSE")
    if "OPENMP DISPLAY ENVIRONMENT" not in done.stderr:
        pytest.skip("this llama.cpp does not use GNU OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
    chosen = python(program, edgellm_home, OMP_DISPLAY_ENV="VERBOSE", GOMP_SPINCOUNT="7")
    assert "GOMP_SPINCOUNT = '7'" in chosen.stderr


def test_loading_prints_nothing(tmp_path: Path) -> None:
    program = (
        "from edgellm.backends.llamacpp import library as l\n"
        "params = l.model_params()\n"
        "with l.capture_log() as lines:\n"
        "    assert not l.load_library().llama_model_load_from_file(b'/nowhere/model.gguf', params)\n"
        "assert any('nowhere' in line for line in lines), lines\n"
    )
    done = python(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_log_lines_are_joined_and_kept_by_the_thread_that_asked(caplog: pytest.LogCaptureFixture) -> None:
    sink = library.load_library().edgellm_log_sink
    caplog.set_level(logging.DEBUG, "edgellm.llamacpp")
    with ThreadPoolExecutor(1) as pool, library.capture_log() as outer:
        with library.capture_log() as inner:
            sink(2, b"half a line, ", None)
            sink(5, b"and its end\nnext\n", None)
            pool.submit(sink, 2, b"from elsewhere\n", None).result()
        sink(4, b"bad \xff byte\n", None)
    sink(2, b"after\n", None)
    assert list(inner) == ["half a line, and its end", "next"]
    assert list(outer) == ["half a line, and its end", "next", "bad \ufffd byte"]
    assert "from elsewhere" in caplog.messages
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_the_log_capture_is_bounded() -> None:
    sink = library.load_library().edgellm_log_sink
    with library.capture_log() as lines:
        for number in range(2 * library.KEPT_LINES):
            sink(2, b"%d\n" % number, None)
    assert len(lines) == library.KEPT_LINES
    assert lines[-1] == str(2 * library.KEPT_LINES - 1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ImportError('no such module')", "pip install 'edgellm[llamacpp]'"),
        ("raise RuntimeError('libllama.so: cannot open')", "rebuild it for this machine with: pip install"),
    ],
)
def test_a_library_that_does_not_load_says_what_to_do(tmp_path: Path, body: str, says: str) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(body, encoding="utf-8")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edgellm.backends.llamacpp import library\n"
        "print(library.engine_report()['error'])\n"
        "library.load_library()\n"
    )
    done = python(program, tmp_path)
    assert says in done.stdout
    assert Unsupported.__name__ in done.stderr.splitlines()[-1]


def test_system_info_is_parsed() -> None:
    parsed = library.parse_system_info("CUDA : ARCHS = 800,900 | USE_GRAPHS = 1 | CPU : AVX = 1 | FMA = 1 | ")
    assert parsed == {"CPU": {"AVX": "1", "FMA": "1"}, "CUDA": {"ARCHS": "800,900", "USE_GRAPHS": "1"}}


def test_the_report_is_plain_and_true() -> None:
    report = library.engine_report()
    assert json.loads(json.dumps(report)) == report
    assert report["version"] == sys.modules["llama_cpp"].__version__
    assert Path(report["library"]).is_file()
    assert report["features"]["CPU"]


def test_only_the_library_makes_model_parameters() -> None:
    folder = Path(library.__file__).parent
    users = [file.name for file in folder.glob("*.py") if "llama_model_default_params" in file.read_text("utf-8")]
    assert users == ["library.py"]


# --- the guard, in this process -----------------------------------------------------------------------------------


def test_model_parameters_obey_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    library.load_library()
    for use in (True, False):
        monkeypatch.setattr(library, "_extra", amx.ExtraBuffers(use=use, without_amx=True, amx="crashes", reason=""))
        assert library.model_params().use_extra_bufts is use


def test_no_amx_kernel_is_in_reach_after_the_guard() -> None:
    extra = library.extra_buffers()
    names = Ggml(library.load_library()).extra_buffers(refusing=False)
    assert extra.use is False or extra.without_amx is ("AMX" not in names)
    if extra.amx != "ok":
        assert extra.without_amx


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f16", 1e-3), ("q8_0", 0.02), ("q4_0", 0.2), ("q4_K", 0.2), ("q6_K", 0.05)]
)
def test_the_product_of_the_proof_is_a_product(kind: str, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((64, 512)).astype(np.float32)
    activations = rng.standard_normal((5, 512)).astype(np.float32)
    ours = Ggml(library.load_library()).product(amx.TYPES[kind], weights, activations, through_amx=False)
    exact = activations @ weights.T
    assert np.linalg.norm(ours - exact) <= tolerance * np.linalg.norm(exact)


# --- the guard, decided -------------------------------------------------------------------------------------------


class FakeGgml:
    """What llama.cpp would list: AMX unless it was refused, or the permission was there already."""

    held = False

    def __init__(self, _: Any) -> None: ...

    def extra_buffers(self, *, refusing: bool) -> list[str]:
        return ["CPU_REPACK"] if refusing and not self.held else ["AMX", "CPU_REPACK"]


@pytest.fixture
def amx_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """An AMX build on an AMX machine, with nothing remembered."""
    if sys.platform != "linux":
        pytest.skip("the guard proves AMX builds on Linux only")
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    monkeypatch.setattr(amx, "Ggml", FakeGgml)
    monkeypatch.setattr(amx._native, "cpu_features", lambda: ["amx_int8"])
    return SimpleNamespace(
        _lib=SimpleNamespace(_name=library.load_library()._lib._name), llama_print_system_info=lambda: SYSTEM_INFO_AMX
    )


def child(monkeypatch: pytest.MonkeyPatch, code: int, answer: Any = None) -> list[Any]:
    """Replace the child process by one that answers, raises or ends so; returns the list of its starts."""
    starts: list[Any] = []

    @contextmanager
    def start(target: str, job: Any) -> Iterator[Any]:
        def receive(limit: float, *forms: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        starts.append(target)
        yield SimpleNamespace(receive=receive, end=End(code, None, ("last words",)))

    monkeypatch.setattr(amx, "Child", start)
    return starts


@pytest.mark.parametrize(
    ("code", "answer", "verdict", "without"),
    [
        (-11, None, "crashes", True),
        (-4, None, "crashes", True),
        (0, {"verdict": "wrong", "detail": ""}, "wrong", True),
        (0, {"verdict": "ok", "detail": ""}, "ok", False),
    ],
)
def test_a_verdict_is_asked_once_and_remembered(
    monkeypatch: pytest.MonkeyPatch, amx_machine: Any, code: int, answer: Any, verdict: str, without: bool
) -> None:
    starts = child(monkeypatch, code, answer)
    for _ in range(2):
        extra = amx.guard(amx_machine, "1.0")
        assert (extra.use, extra.without_amx, extra.amx) == (True, without, verdict)
    assert len(starts) == 1
    amx.guard(amx_machine, "1.1")
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("code", "answer", "reason"),
    [
        (1, BackendFailed("ImportError: numpy"), "ImportError: numpy"),
        (0, Unsupported("no Python interpreter is found"), "no Python interpreter is found"),
        (0, {"verdict": "splendid", "detail": ""}, "splendid"),
        (0, None, "ended with code 0: last words"),
        (3, None, "ended with code 3"),
        (-9, None, "ended with code -9"),
    ],
)
def test_a_failed_child_leaves_amx_off_and_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, amx_machine: Any, code: int, answer: Any, reason: str
) -> None:
    starts = child(monkeypatch, code, answer)
    for _ in range(2):
        extra = amx.guard(amx_machine, "1.0")
        assert (extra.use, extra.without_amx, extra.amx) == (True, True, "unproven")
        assert reason in extra.reason
    assert len(starts) == 2


def test_a_permission_held_already_costs_the_repacked_kernels(
    monkeypatch: pytest.MonkeyPatch, amx_machine: Any
) -> None:
    child(monkeypatch, -11)
    monkeypatch.setattr(FakeGgml, "held", True)
    extra = amx.guard(amx_machine, "1.0")
    assert (extra.use, extra.without_amx) == (False, True)
    assert "asked for AMX before" in extra.reason


def test_a_machine_without_amx_needs_no_child(monkeypatch: pytest.MonkeyPatch, amx_machine: Any) -> None:
    starts = child(monkeypatch, -11)
    monkeypatch.setattr(amx._native, "cpu_features", lambda: ["avx512f"])
    extra = amx.guard(amx_machine, "1.0")
    assert (extra.use, extra.without_amx, extra.amx, starts) == (True, True, "absent", [])


def test_a_build_without_amx_is_left_alone(monkeypatch: pytest.MonkeyPatch, amx_machine: Any) -> None:
    starts = child(monkeypatch, -11)
    amx_machine.llama_print_system_info = lambda: b"CPU : AVX2 = 1 | REPACK = 1 | "
    assert (amx.guard(amx_machine, "1.0").use, starts) == (True, [])


def test_an_api_that_changed_means_the_slow_way(monkeypatch: pytest.MonkeyPatch, amx_machine: Any) -> None:
    child(monkeypatch, -11)

    def missing(_: Any, *, refusing: bool) -> list[str]:
        raise AttributeError("undefined symbol: ggml_backend_dev_by_type")

    monkeypatch.setattr(FakeGgml, "extra_buffers", missing)
    extra = amx.guard(amx_machine, "1.0")
    assert (extra.use, extra.without_amx) == (False, True)
    assert "undefined symbol" in extra.reason


@pytest.mark.parametrize("text", ["{", "[]", '{"other": "ok"}', "\x00", "KEY: 1", "KEY: [1]"])
def test_a_damaged_memory_is_asked_again(monkeypatch: pytest.MonkeyPatch, amx_machine: Any, text: str) -> None:
    starts = child(monkeypatch, -11)
    if text.startswith("KEY"):
        text = f"{{{json.dumps(amx.build_key(amx_machine, '1.0'))}{text[3:]}}}"
    (Path(os.environ["EDGELLM_HOME"]) / amx.VERDICTS).write_text(text, encoding="utf-8")
    assert amx.guard(amx_machine, "1.0").amx == "crashes"
    assert amx.guard(amx_machine, "1.0").amx == "crashes"
    assert len(starts) == 1


def test_a_home_that_cannot_be_written_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, amx_machine: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    child(monkeypatch, -11)
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("EDGELLM_HOME", str(blocked / "home"))
    assert amx.guard(amx_machine, "1.0").amx == "crashes"
    assert "nothing is kept" in caplog.text


# --- the guard, for real ------------------------------------------------------------------------------------------

REPORT = (
    "import dataclasses, json\n"
    "from edgellm import _native\n"
    "from edgellm.backends.llamacpp import library as l\n"
    "from edgellm.backends.llamacpp.ggml import Ggml\n"
    "extra = dataclasses.asdict(l.extra_buffers())\n"
    "names = Ggml(l.load_library()).extra_buffers(refusing=False)\n"
    "print(json.dumps({**extra, 'names': names, 'permitted': _native.amx_permitted()}))\n"
)
REQUEST_AMX = "import ctypes; assert ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0\n"  # ARCH_REQ_XCOMP_PERM


@pytest.mark.usefixtures("needs_amx")
def test_the_kernel_refuses_amx_and_the_rest_stays(tmp_path: Path) -> None:
    done = python(REPORT, tmp_path)
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert list(json.loads((tmp_path / amx.VERDICTS).read_text(encoding="utf-8")).values()) == [report["amx"]]
    assert report["use"] is True
    assert "CPU_REPACK" in report["names"]
    broken = report["amx"] != "ok"
    assert ("AMX" not in report["names"]) == (not report["permitted"]) == report["without_amx"] == broken


@pytest.mark.usefixtures("needs_amx")
def test_a_permission_taken_before_is_noticed(tmp_path: Path) -> None:
    report = json.loads(python(REQUEST_AMX + REPORT, tmp_path).stdout)
    assert "AMX" in report["names"]
    assert report["use"] == (report["amx"] == "ok")


@pytest.mark.usefixtures("needs_amx")
def test_other_libraries_may_have_amx_afterwards(tmp_path: Path) -> None:
    done = python(REPORT + REQUEST_AMX + "print(_native.amx_permitted())", tmp_path)
    assert done.stdout.splitlines()[-1] == "True", done.stderr


@pytest.mark.usefixtures("needs_amx")
def test_what_others_write_to_stderr_meanwhile_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with sifted(amx.REFUSED, amx._logger):
        os.write(2, b"before\n" + amx.REFUSED + b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


def test_two_that_sift_stderr_at_once_give_it_back() -> None:
    inside, both = threading.Event(), threading.Event()

    def first() -> None:
        with sifted(b"", logging.getLogger()):
            inside.set()
            both.wait(0.2)  # comes only where two are let in

    def second() -> None:
        inside.wait()
        with sifted(b"", logging.getLogger()):
            both.set()
            threads[0].join()

    before = os.fstat(2).st_ino
    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.fstat(2).st_ino == before
