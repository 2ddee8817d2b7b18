"""make_safe: a file that `checks.py` does not know to be safe is loaded and run in a child process first.

    check_header ── no reasons ──▶ load here
        │ reasons
        ▼
    child process: load, a few passes, tokenize, detokenize ──▶ passed, refused, crashed, out of memory, too slow

What passed or crashed is remembered by fingerprint, llama.cpp version and platform, so a file is tried once. The child
has a time limit, on Linux a limit on its memory, and is the first that the kernel kills when memory runs out. Only its
word counts: a file that no child has answered for is not loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgellm import machine
from edgellm.backends.llamacpp import library, verdicts
from edgellm.backends.llamacpp.checks import EDITION, check_header
from edgellm.backends.llamacpp.reason import reason, refusal
from edgellm.child import Child, End, Parent
from edgellm.errors import BackendFailed, ModelLoadError, NotEnoughMemory, UnsafeModel, Unsupported
from edgellm.formats.gguf import GGUFFile

VERDICTS = "verdicts.json"
SECONDS, BYTES_PER_SECOND = 60, 20e6  # the child's time: a start, and the slowest disk
SPARE_MEMORY = 4 << 30  # what a trial may use beyond twice the file (weights and their repacked copy)

PASSED, NO_MEMORY = "passed", "no memory"  # what the child answers; or how far it came:
FAILED = {"load": "refused the file", "context": "makes no context for it", "pass": "cannot compute with it"}
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "not enough memory", "unable to allocate")

_logger = logging.getLogger("edgellm.llamacpp")


def make_safe(file: GGUFFile, *, trust: bool, extra_bufts: bool) -> None:
    """Return when `file` may be loaded in this process; `trust` takes the caller's word for it.

    Raises UnsafeModel (the child crashed or hung), UnsupportedArchitecture and ModelLoadError (the engine refused the
    file, in its own words), InvalidModelFile, NotEnoughMemory.
    """
    if trust:
        return
    header = f"{file.fingerprint} header {EDITION}"
    if header in verdicts.known(VERDICTS):
        return
    reasons = check_header(file)
    if not reasons:
        verdicts.keep(VERDICTS, header, "")
        return
    _logger.info("%s is tried in a child process first: %s", file.path, "; ".join(reasons))
    key = f"{file.fingerprint} {library.version()} {sys.platform} extra={extra_bufts}"
    crash = verdicts.known(VERDICTS).get(key)
    if crash is None:
        crash = _try(file, extra_bufts)
        verdicts.keep(VERDICTS, key, crash)
    if crash:
        raise UnsafeModel(
            f"{file.path}: loading it crashed a child process ({crash}); the file is damaged or made to do harm: fetch "
            "it from a source you trust, or pass trust=True (--trust) to load it here all the same"
        )


def _try(file: GGUFFile, extra_bufts: bool) -> str:
    """What the child did: "" passed, else how it crashed. Raises for every other end."""
    path, size = file.path, sum(part.stat().st_size for part in file.paths)
    limit = SECONDS + size / BYTES_PER_SECOND
    job = {"path": os.fspath(path), "extra_bufts": extra_bufts, "memory": 2 * size + SPARE_MEMORY}
    try:
        child = Child(f"{__spec__.name}:run_child", job, environment=library.ENVIRONMENT)
    except Unsupported as error:
        raise UnsafeModel(
            f"{path}: unusual files are tried in a child process before they are loaded, and none can be had here: "
            f"{error}; or pass trust=True (--trust) to load the file all the same"
        ) from error
    with child:
        try:
            answer = child.receive(limit, {"found": str})
        except BackendFailed as error:  # not llama.cpp's doing: Python's own
            raise ModelLoadError(
                f"{path}: the child process that tries unusual files failed by itself ({error}); reinstall edgellm, or "
                "pass trust=True (--trust) to load the file all the same"
            ) from error
        if answer is not None and answer["found"] == PASSED:
            return ""
        end = child.end
    if end.seconds is not None:
        raise UnsafeModel(f"{path}: the child process that tried it did not finish in {end.seconds:.0f} s")
    return _judge(path, answer["found"] if answer else None, end)


def _judge(path: Path, found: str | None, end: End) -> str:
    """Turn the answer of a file that did not pass, or none, and the end of the child into a verdict or an error."""
    words = reason(end.words)
    starved = any(sign in line.lower() for line in end.words[-20:] for sign in _OUT_OF_MEMORY)
    if found == NO_MEMORY or end.killed or starved:
        raise NotEnoughMemory(
            f"{path}: memory ran out in the child process that tried it: {words or 'the system ended it'}; close other "
            "programs"
        )
    if found in FAILED:
        raise refusal(path, FAILED[found], words)
    if end.crash is not None:
        return f"{end.crash}; its last words: {words}" if words else end.crash
    if end.strange:
        words = str(end)
    raise ModelLoadError(
        f"{path}: the child process that tries unusual files failed by itself (exit status {end.status}); pass "
        f"trust=True (--trust) to load the file all the same. It said: {words}"
    )


def run_child(parent: Parent, path: str, extra_bufts: bool, memory: int) -> None:
    """The body of the child process. memory: bytes that it may take."""
    library.load_library()  # what it takes itself is not the file's doing
    _restrict(memory)
    try:
        found = _trial(os.fsencode(path), extra_bufts)
    except MemoryError:
        found = NO_MEMORY
    parent.say(found=found)


def _restrict(memory: int) -> None:
    """On Linux: at most `memory` bytes more than now, and the first to be killed."""
    if sys.platform != "linux":
        return
    import resource

    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    available = machine.memory().available or memory
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (used + min(memory, available),) * 2)


def _trial(path: bytes, extra_bufts: bool) -> str:
    """Load, tokenize, run passes of many and of single tokens, detokenize. Returns PASSED or a key of FAILED."""
    lib = library.load_library()
    lib.llama_log_set(lib.llama_log_callback(), None)  # NULL: straight to stderr, so that last words arrive
    model_params = library.model_params()
    model_params.use_extra_bufts = extra_bufts
    model = lib.llama_model_load_from_file(path, model_params)
    if not model:
        return "load"
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 64, 64
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        return "context"
    encoder = not lib.llama_get_memory(context)  # it keeps no state and gives embeddings
    lib.llama_set_embeddings(context, encoder)
    vocab = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocab)
    if count < 1:
        return "pass"
    tokens = _tokenize(lib, vocab)
    stride = max(1, count // 61)
    for size in (1, 33, 8, 1, 5, 64, 1):
        ids = [(tokens[i % len(tokens)] if tokens and i % 2 else i * stride) % count for i in range(size)]
        kept = (lib.llama_token * size)(*ids)  # the batch only points to it
        batch = lib.llama_batch_get_one(kept, size)
        if lib.llama_decode(context, batch) != 0:
            return "pass"
        if not encoder and not lib.llama_get_logits_ith(context, -1):
            return "pass"
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
            got = lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), False, special)
            found += ids[: max(got, 0)]
    count = lib.llama_vocab_n_tokens(vocab)
    piece = ctypes.create_string_buffer(4096)
    for token in (*found, *range(0, count, max(1, count // 8192))):
        lib.llama_token_to_piece(vocab, token, piece, len(piece), 0, True)
    return found
