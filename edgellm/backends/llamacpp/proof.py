"""make_safe: a file that `checks.py` does not know to be safe is loaded and run in a child process first.

    check_header ── no reasons ──▶ load here
        │ reasons
        ▼
    child process: load, a few passes, tokenize, detokenize ──▶ passed, refused, crashed, out of memory, too slow

What passed or crashed is remembered by fingerprint, llama.cpp version and platform, so a file is tried once. The child
has a time limit, no core dumps, on Linux a limit on its memory, and is the first that the kernel kills when memory
runs out.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from edgellm import machine
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.checks import EDITION, check_header
from edgellm.backends.llamacpp.reason import reason, refusal
from edgellm.errors import ModelLoadError, NotEnoughMemory, UnsafeModel
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.writing import whole_file
from edgellm.home import home, make_folder, unkept

VERDICTS = "verdicts.json"
KEPT_VERDICTS = 4096
SECONDS, BYTES_PER_SECOND = 60, 20e6  # the child's time: a start, and the slowest disk
SPARE_MEMORY = 4 << 30  # what a trial may use beyond twice the file (weights and their repacked copy)
KEPT_LOG = 64 << 10

# Exit codes of the child. Windows' abort() exits with 3, Python's own failures with 1 and 2.
PASSED, REFUSED, NO_CONTEXT, NO_PASS, NO_MEMORY = 0, 10, 11, 12, 13
ABORTED = 3
_NTSTATUS = {
    0xC0000005: "access violation",
    0xC0000409: "abort",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap damage",
    0xC000001D: "illegal instruction",
    0xC0000094: "division by zero",
}
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "not enough memory", "unable to allocate")

_logger = logging.getLogger("edgellm.llamacpp")


def make_safe(file: GGUFFile, *, trust: bool, extra_bufts: bool) -> None:
    """Return when `file` may be loaded in this process; `trust` takes the caller's word for it.

    Raises UnsafeModel, UnsupportedArchitecture, ModelLoadError, InvalidModelFile, NotEnoughMemory.
    """
    if trust:
        return
    header = f"{file.fingerprint} header {EDITION}"
    if header in _verdicts():
        return
    reasons = check_header(file)
    if not reasons:
        _remember(header, "")
        return
    _logger.info("%s is tried in a child process first: %s", file.path, "; ".join(reasons))
    prove(file.path, file.fingerprint, extra_bufts=extra_bufts)


def prove(path: str | os.PathLike[str], fingerprint: str, *, extra_bufts: bool) -> None:
    """Load and run a file in a child process, once per file and build of llama.cpp.

    Raises UnsafeModel (the child crashed or hung), UnsupportedArchitecture and ModelLoadError (the engine refused the
    file, in its own words), NotEnoughMemory.
    """
    build = f"{metadata.version(library.DISTRIBUTION)} {sys.platform} extra={extra_bufts}"
    key = f"{fingerprint} {build}"
    known = _verdicts().get(key)
    if known is None:
        known = _try(Path(path), extra_bufts)
        _remember(key, known)
    if known:
        raise UnsafeModel(
            f"{path}: loading it crashed a child process ({known}); the file is damaged or made to do harm: fetch it "
            "from a source you trust, or pass trust=True (--trust) to load it here all the same"
        )


def _try(path: Path, extra_bufts: bool) -> str:
    """What the child did: "" passed, else how it crashed. Raises for every other end."""
    if getattr(sys, "frozen", False):
        raise UnsafeModel(
            f"{path}: a frozen application cannot try an unusual file in a child; pass trust=True to load it"
        )
    size = _bytes_of(path)
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__spec__.name} import child; child(sys.argv[1:])"
    with tempfile.TemporaryFile() as log:
        try:
            status = subprocess.run(
                [sys.executable, "-c", code, os.fspath(path), str(int(extra_bufts)), str(2 * size + SPARE_MEMORY)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=SECONDS + size / BYTES_PER_SECOND,
                env={**os.environ, **library.ENVIRONMENT},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise UnsafeModel(
                f"{path}: the child process that tried it did not finish in {error.timeout:.0f} s"
            ) from None
        log.seek(max(0, log.seek(0, os.SEEK_END) - KEPT_LOG))
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return _judge(path, status, lines)


def _judge(path: Path, status: int, lines: list[str]) -> str:
    """Turn an exit status and the native log into a verdict or an error."""
    if status == PASSED:
        return ""
    words = reason(lines)
    starved = any(sign in line.lower() for line in lines[-20:] for sign in _OUT_OF_MEMORY)
    if status in (NO_MEMORY, -getattr(signal, "SIGKILL", 0)) or starved:
        raise NotEnoughMemory(
            f"{path}: memory ran out in the child process that tried it: {words or 'the system ended it'}; close other "
            "programs"
        )
    if (crash := _crash_name(status)) is not None:
        return f"{crash}; its last words: {words}" if words else crash
    did = {REFUSED: "refused the file", NO_CONTEXT: "makes no context for it", NO_PASS: "cannot compute with it"}
    if status not in did:
        raise ModelLoadError(
            f"{path}: the child process that tries unusual files failed by itself (exit status {status}); pass "
            f"trust=True to load the file all the same. It said: {words}"
        )
    raise refusal(path, did[status], words)


def _crash_name(status: int) -> str | None:
    """The signal or exception that ended a process, None when it ended by itself."""
    if os.name == "nt":
        if status == ABORTED:
            return "abort"
        code = status & 0xFFFFFFFF
        return _NTSTATUS.get(code, f"exception {code:#x}") if code >= 0xC0000000 else None
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _bytes_of(path: Path) -> int:
    """Bytes of the file, or of all parts of a split one."""
    with GGUFFile.open(path) as file:
        return sum(part.stat().st_size for part in file.paths)


def _verdicts() -> dict[str, str]:
    """Remembered verdicts: key to "" (passed) or the crash. An unreadable file counts as an empty one."""
    try:
        found = json.loads(home(VERDICTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return {}
    return found


def _remember(key: str, verdict: str) -> None:
    """Add a verdict. Of two writers at once the later one wins, and the other's file is tried again some day."""
    kept = [(k, v) for k, v in _verdicts().items() if k != key][1 - KEPT_VERDICTS :]
    try:
        with whole_file(make_folder(home()) / VERDICTS) as file:
            file.write(json.dumps({**dict(kept), key: verdict}).encode())
    except OSError as error:  # a full or read-only disk, or a reader on Windows: the file will be tried again
        unkept(error)


def child(arguments: list[str]) -> None:
    """The body of the child process: path, extra_bufts (0 or 1), bytes it may take. Leaves with an exit code above."""
    path, extra_bufts, memory = arguments
    library.load_library()  # what it takes itself is not the file's doing
    _restrict(int(memory))
    try:
        status = _trial(os.fsencode(path), extra_bufts == "1")
    except MemoryError:
        status = NO_MEMORY
    sys.stderr.flush()
    os._exit(status)  # no destructors: what they might do wrong says nothing about the file


def _restrict(memory: int) -> None:
    """No core dumps, no crash dialogs; on Linux at most `memory` bytes more than now, and first to be killed."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        available = machine.memory().available or memory
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (used + min(memory, available),) * 2)


def _trial(path: bytes, extra_bufts: bool) -> int:
    """Load, tokenize, run passes of many and of single tokens, detokenize. Returns an exit code."""
    lib = library.load_library()
    lib.llama_log_set(lib.llama_log_callback(), None)  # NULL: straight to stderr, so that last words arrive
    model_params = library.model_params()
    model_params.use_extra_bufts = extra_bufts
    model = lib.llama_model_load_from_file(path, model_params)
    if not model:
        return REFUSED
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 64, 64
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        return NO_CONTEXT
    encoder = not lib.llama_get_memory(context)  # it keeps no state and gives embeddings
    lib.llama_set_embeddings(context, encoder)
    vocab = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocab)
    if count < 1:
        return NO_PASS
    tokens = _tokenize(lib, vocab)
    stride = max(1, count // 61)
    for size in (1, 33, 8, 1, 5, 64, 1):
        ids = [(tokens[i % len(tokens)] if tokens and i % 2 else i * stride) % count for i in range(size)]
        kept = (lib.llama_token * size)(*ids)  # the batch only points to it
        batch = lib.llama_batch_get_one(kept, size)
        if lib.llama_decode(context, batch) != 0:
            return NO_PASS
        if not encoder and not lib.llama_get_logits_ith(context, -1):
            return NO_PASS
    return PASSED


def _tokenize(lib: Any, vocab: Any) -> list[int]:
    """Token ids of texts that are hard on tokenizers; every token found and many others are turned into text."""
    import ctypes

    texts = [
        "",
        "".join(map(chr, range(256))),
        "Grüße, 世界! 👩‍👩‍👧 e\u0301\u200d\ufeff",
        "a" * 300,
        " \n\t" * 50,
        "<|x|><s></s>1234",
    ]
    found: list[int] = []
    for text in texts:
        raw = text.encode()
        for special in (False, True):
            ids = (lib.llama_token * (2 * len(raw) + 8))()
            got = lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), special, special)
            found += ids[: max(got, 0)]
    count = lib.llama_vocab_n_tokens(vocab)
    piece = ctypes.create_string_buffer(4096)
    for token in (*found, *range(0, count, max(1, count // 8192))):
        lib.llama_token_to_piece(vocab, token, piece, len(piece), 0, True)
    return found
