"""The one place that loads llama.cpp: quietly, once, and with AMX left out where this build of it would crash.

    load_library() ──▶ environment ──▶ import ──▶ log sink ──▶ AMX guard (amx.py) ──▶ the low-level module
    model_params() ──▶ load_library() and default parameters that obey the guard

Every model is loaded with `model_params()`, so none can be loaded before the guard was applied.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from edgellm import _native
from edgellm.backends.llamacpp import amx, signals
from edgellm.backends.llamacpp.amx import ExtraBuffers
from edgellm.backends.llamacpp.ggml import Device, Ggml
from edgellm.child import Parent
from edgellm.errors import EdgeLLMError, Unsupported

DISTRIBUTION = "llama-cpp-python"
INSTALL = "pip install 'edgellm[llamacpp]'"
MISSING = f"llama.cpp is not installed here: {INSTALL} compiles it for this machine"
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",  # OpenMP threads that spin longer starve every other process on the machine
    "GGML_NO_BACKTRACE": "1",  # or a failed assertion inside llama.cpp starts a debugger
}
KEPT_LINES = 400
CONTINUES = 5  # enum ggml_log_level: this text goes on where the last one ended

_logger = logging.getLogger("edgellm.llamacpp")
_lock = threading.RLock()
_module: Any = None
_extra: ExtraBuffers | None = None


class _Captures(threading.local):
    """Of one thread: its open captures, and a log line that has not ended yet."""

    def __init__(self) -> None:
        self.stack: list[deque[str]] = []
        self.line = ""


_captures = _Captures()
_NO_DEVICES = (ctypes.c_void_p * 1)()  # a list that ends at once; llama.cpp is given its address


def installed() -> bool:
    """Whether the package that brings llama.cpp is there; it may be broken all the same."""
    try:
        return find_spec("llama_cpp") is not None
    except ValueError:  # somebody put a module in its place, which knows nothing of itself
        return True


def load_library() -> Any:
    """The module `llama_cpp.llama_cpp`, loaded once per process and safe to load models with. From any thread.

    Raises Unsupported when the library is missing or cannot be loaded.
    """
    global _extra
    with _lock:
        library = _open()
        if _extra is None:
            _extra = amx.guard(library, version() or "unknown")
            _logger.debug("extra buffer types: %s", _extra.reason)
        return library


def extra_buffers() -> ExtraBuffers:
    """What was decided about kernels that need weights in a layout of their own. Raises what `load_library` does."""
    load_library()
    if _extra is None:
        raise RuntimeError("load_library() returned without a decision")
    return _extra


def model_params(gpu_layers: int = 0) -> Any:
    """llama_model_params: llama.cpp's defaults, `use_extra_bufts` from the guard. Raises what `load_library` does.

    gpu_layers: 0 leaves GPUs out altogether; llama.cpp would still multiply long prompts there, after copying weights.
    """
    params = load_library().llama_model_default_params()
    params.use_extra_bufts = extra_buffers().use
    params.n_gpu_layers = gpu_layers
    if not gpu_layers:
        params.devices = ctypes.addressof(_NO_DEVICES)
    return params


def devices() -> list[Device]:
    """What llama.cpp can compute on; [] where it does not tell. Raises what `load_library` does."""
    library = load_library()
    try:
        return Ggml(library).devices()
    except (AttributeError, OSError) as error:
        _logger.warning("llama.cpp does not tell its devices: %s", error)
        return []


@contextmanager
def capture_log() -> Iterator[deque[str]]:
    """Collects what llama.cpp logs on this thread inside the block, at most the last 400 lines."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    _captures.stack.append(lines)
    try:
        yield lines
    finally:
        _captures.stack.pop()


def build_name() -> str:
    """Names this build of llama.cpp, the CPU, and the kernels that are on: all that shapes computed state."""
    library, extra = load_library(), extra_buffers()
    return f"{amx.build_key(library, version() or 'unknown')} {extra.use} {extra.without_amx}"


def engine_report() -> dict[str, Any]:
    """What llama.cpp was built with and how it runs here, as plain values. A library that cannot load is an "error";
    for one that is not there "install" says how to get it."""
    report: dict[str, Any] = {"name": "llama.cpp", "package": DISTRIBUTION, "version": version()}
    if not installed():
        return {**report, "install": INSTALL}
    try:
        library = load_library()
    except EdgeLLMError as error:
        return {**report, "error": str(error)}
    built_with_amx = amx.built_in(library)
    return {
        **report,
        "library": library._lib._name,
        "features": parse_system_info(library.llama_print_system_info().decode()),
        "gpu_offload": bool(library.llama_supports_gpu_offload()),
        "devices": [asdict(device) for device in devices()],
        "extra_buffers": asdict(extra_buffers()),
        "rebuild": rebuild_command(amx.FLAGS_WITHOUT if built_with_amx else ""),
    }


def parse_system_info(text: str) -> dict[str, dict[str, str]]:
    """`CPU : AVX = 1 | FMA = 1 | ` as {"CPU": {"AVX": "1", "FMA": "1"}}; several backends follow one another."""
    backends: dict[str, dict[str, str]] = {}
    current = backends.setdefault("CPU", {})
    for part in text.split("|"):
        head, colon, rest = part.partition(" : ")
        if colon:
            current = backends.setdefault(head.strip(), {})
        name, equals, value = (rest if colon else part).partition(" = ")
        if equals:
            current[name.strip()] = value.strip()
    return backends


def prove_amx(parent: Parent) -> None:
    """The body of the child process that finds out whether AMX works: see amx.py."""
    parent.say(**amx.prove(_open()))


def _open() -> Any:
    """Import the library, with nothing decided about AMX yet."""
    global _module
    with _lock:
        if _module is not None:
            return _module
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from llama_cpp import llama_cpp as module
        except ImportError as error:
            raise Unsupported(
                MISSING if not installed() else f"llama.cpp is damaged here: {error}; {INSTALL}"
            ) from error
        except (OSError, RuntimeError) as error:  # its loader turns OSError into RuntimeError
            raise Unsupported(
                f"llama.cpp is installed but does not load: {error}; rebuild it for this machine with: "
                f"{rebuild_command()}"
            ) from error
        raised: list[BaseException] = []
        with signals.kept(raised):
            module.llama_log_set(_sink(module), None)
            module.llama_backend_init()
        _module = module
        if raised:
            raise raised[0]
        return module


def _sink(module: Any) -> Any:
    """The log callback. Kept referenced by the module; replaced by a C function before the interpreter ends."""

    def take(level: int, text: bytes | None, _: Any) -> None:
        begun = _captures.line if level == CONTINUES else ""
        *whole, _captures.line = (begun + (text or b"").decode("utf-8", "replace")).split("\n")
        for line in whole:
            if line.strip():
                _logger.debug("%s", line)
                for lines in _captures.stack:
                    lines.append(line)

    module.edgellm_log_sink = sink = module.llama_log_callback(take)
    silent = ctypes.cast(_native.discard_log, module.llama_log_callback)
    atexit.register(module.llama_log_set, silent, None)
    return sink


def rebuild_command(flags: str = "") -> str:
    """The command that builds llama.cpp anew on this machine, with compiler flags for C and C++."""
    variable = f"CMAKE_ARGS=\"-DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'\" " if flags else ""
    number = version()
    requirement = f"{DISTRIBUTION}=={number}" if number else DISTRIBUTION
    return f"{variable}pip install --force-reinstall --no-deps --no-cache-dir --no-binary {DISTRIBUTION} {requirement}"


def version() -> str | None:
    """Of the package that brings llama.cpp; None where its metadata is missing, as in some frozen programs."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
