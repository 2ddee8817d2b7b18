"""AMX in llama.cpp: prove it once per build in a child process, and leave it out of this process where it fails.

A build of llama.cpp for a CPU with AMX made by GCC 12 loads an empty tile configuration and dies with SIGSEGV at the
first matrix product of several tokens. Two facts allow a cure that costs nothing else:

- llama.cpp decides about AMX once per process, when its CPU backend first lists its extra buffer types: it asks the
  kernel for permission (arch_prctl ARCH_REQ_XCOMP_PERM) and goes without AMX, but with all its other kernels, when
  the kernel refuses.
- The kernel refuses while some thread has an alternate signal stack that is too small for an AMX signal frame
  (Linux Documentation/arch/x86/xstate.rst), which `_native.call_refusing_amx` arranges for the length of one call.

Where the process holds the permission already, another library having asked for it, `use_extra_bufts=False` remains:
safe too, but without llama.cpp's repacked kernels: 512 tokens of a Q4_0 model took 1.5 times as long.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgellm import _native
from edgellm.backends.llamacpp import verdicts
from edgellm.backends.llamacpp.ggml import Ggml
from edgellm.backends.stderr import sifted
from edgellm.child import Child
from edgellm.errors import EdgeLLMError, Unsupported

Verdict = Literal["ok", "crashes", "wrong"]
SAID: dict[str, str] = {
    "ok": "its AMX kernels compute correctly here",
    "crashes": "its AMX kernels crash in this build (GCC 12 does that)",
    "wrong": "its AMX kernels compute wrongly in this build",
}

FLAGS_WITHOUT = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
VERDICTS = "llamacpp-build.json"
CHILD_SECONDS = 120
CRASHES = {signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}  # not SIGKILL: memory may have run out
REFUSED = b"AMX is not ready to be used!\n"  # llama.cpp writes this to stderr, past its own log
TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8, "q4_K": 12, "q5_K": 13, "q6_K": 14, "iq4_xs": 23}  # enum ggml_type
TOLERANCE = 0.02  # relative error between two kernels that round differently; a wrong product has about 1

_logger = logging.getLogger("edgellm.llamacpp")


@dataclass(frozen=True, slots=True)
class ExtraBuffers:
    """use: the value for `llama_model_params.use_extra_bufts`. without_amx: no model here can reach an AMX kernel.

    amx is "absent" (this build or this machine has none), a verdict, or "unproven" when the child gave none.
    """

    use: bool
    without_amx: bool
    amx: str
    reason: str


def guard(library: Any, version: str) -> ExtraBuffers:
    """Decide about AMX and apply the decision to this process. Call it before the first model is loaded.

    version: of llama-cpp-python. Never raises: what cannot be found out means that AMX stays off.
    """
    if not built_in(library):
        return ExtraBuffers(use=True, without_amx=True, amx="absent", reason="this build of llama.cpp does not use AMX")
    if sys.platform != "linux":
        why = "an AMX build of llama.cpp can be proven on Linux only, and it stays off without its repacked kernels"
        return ExtraBuffers(use=False, without_amx=True, amx="unproven", reason=why)
    amx, why = "absent", "this machine does not offer it"
    try:
        if "amx_int8" in _native.cpu_features():
            amx, why = _verdict(library, version)
        with sifted(REFUSED, _logger):
            present = "AMX" in Ggml(library).extra_buffers(refusing=amx != "ok")
    except (AttributeError, OSError, RuntimeError) as error:
        why = f"AMX is left out, and the repacked kernels with it (slower): {error}"
        return ExtraBuffers(use=False, without_amx=True, amx="unproven" if amx == "ok" else amx, reason=why)
    if amx == "ok":
        why = why if present else "AMX is left out: the kernel refused it to this process"
        return ExtraBuffers(use=True, without_amx=not present, amx=amx, reason=why)
    if present:
        why += "; something in this process asked for AMX before, so the repacked kernels stay off with it (slower)"
    return ExtraBuffers(use=not present, without_amx=True, amx=amx, reason=f"AMX is left out: {why}")


def built_in(library: Any) -> bool:
    """Whether the compiler was allowed to use AMX in this build."""
    return b"AMX_INT8 = 1" in library.llama_print_system_info()


def build_key(library: Any, version: str) -> str:
    """Names a build of llama.cpp on a CPU; another build or another CPU has another key.

    By its content: frozen programs of one file unpack it anew at every start, with a new time.
    """
    folder = Path(library._lib._name).parent
    file = next(iter(sorted(folder.glob("*ggml-cpu*"))), Path(library._lib._name))
    return f"{version} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]} {_native.cpu_name()}"


def prove(library: Any) -> dict[str, str]:
    """Multiply through AMX and through the plain kernels: {"verdict", "detail"}. For a child process.

    Weights (rows, columns) of every type that AMX takes, activations of 1, 5 and 40 tokens: one row and several are
    different kernels.
    """
    import numpy as np

    ggml = Ggml(library)
    rows, columns = 64, 512
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    worst, where = 0.0, ""
    with sifted(REFUSED, _logger):
        if "AMX" not in ggml.extra_buffers(refusing=False):
            raise Unsupported("the kernel refused AMX to the child process")
    for name, kind in TYPES.items():
        for tokens in (1, 5, 40):
            activations = rng.standard_normal((tokens, columns)).astype(np.float32)
            plain = ggml.product(kind, weights, activations, through_amx=False)
            tiled = ggml.product(kind, weights, activations, through_amx=True)
            error = float(np.linalg.norm(tiled - plain) / np.linalg.norm(plain))
            error = error if np.isfinite(error) else np.inf
            if error >= worst:
                worst, where = error, f"{name}, {tokens} tokens"
    verdict: Verdict = "ok" if worst <= TOLERANCE else "wrong"
    return {"verdict": verdict, "detail": f"largest relative error {worst:.2g} ({where})"}


def _verdict(library: Any, version: str) -> tuple[str, str]:
    """The remembered verdict on this build or, once, a child's; and a sentence that says it."""
    key = build_key(library, version)
    known = verdicts.known(VERDICTS).get(key)
    if known in SAID:
        return known, SAID[known]
    verdict, failure = _ask_child()
    if verdict is None:
        _logger.warning("AMX stays off: %s", failure)
        return "unproven", failure
    verdicts.keep(VERDICTS, key, verdict)
    return verdict, SAID[verdict]


def _ask_child() -> tuple[Verdict | None, str]:
    """Run `prove` in a child process. None and the reason when the child could not tell."""
    try:
        with Child("edgellm.backends.llamacpp.library:prove_amx", {}) as child:
            answer = child.receive(CHILD_SECONDS, {"verdict": str})
            if answer is not None and answer["verdict"] in SAID:
                return answer["verdict"], ""
            failure = f"it answered {str(answer)[:100]}"
            if answer is None:
                if -child.end.status in CRASHES:
                    return "crashes", ""
                failure = f"it {child.end}"
    except EdgeLLMError as error:
        failure = str(error)
    return None, f"the process that was to prove its AMX kernels failed: {failure}"
