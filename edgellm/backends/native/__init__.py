"""GGUF models on edgellm's own engine: decoders, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.params import KvType, LoadParams

NAME = "edgellm's own"

if TYPE_CHECKING:
    from edgellm.backends.native.backend import NativeBackend
    from edgellm.formats.gguf import GGUFFile


def open_native(file: GGUFFile, params: LoadParams, progress: Callable[[float], None] | None = None) -> NativeBackend:
    """Open the model of a GGUF file, which may be closed afterwards. `progress` is called with the loaded share, 0 to
    1; an exception it raises stops the load.

    Raises InvalidModelFile, UnsafeModel, ModelLoadError, NotEnoughMemory, and Unsupported for what the engine cannot
    run.
    """
    from edgellm.backends.native import checks, loading
    from edgellm.backends.native.backend import NativeBackend
    from edgellm.backends.native.vocabulary import open_vocabulary

    if why := checks.cannot(file, params):
        raise Unsupported(
            f"{file.path}: edgellm's own engine does not run it: {why}; leave backend at auto, or say llamacpp"
        )
    plan = loading.plan(file, params)
    vocabulary = open_vocabulary(file, trust=params.trust)
    try:
        if vocabulary.n_vocab != plan.hyper.n_vocab:
            raise InvalidModelFile(
                f"{file.path}: {vocabulary.n_vocab} tokens for {plan.hyper.n_vocab} rows of embeddings; the file is "
                "damaged: fetch or convert it again"
            )
        model = loading.model(file, plan, progress or (lambda share: None))
        return NativeBackend(model, vocabulary, plan)
    except BaseException:
        vocabulary.close()
        raise


def why_not(file: GGUFFile, params: LoadParams) -> str | None:
    """Why llama.cpp is to run a file where nobody asks for an engine, in words; None: this one is."""
    from edgellm.backends.native import checks

    return checks.why_not(file, params)


def kv_bytes_per_token(file: GGUFFile, kv_type: KvType | None) -> int:
    """What a token takes in the cache of a model that this engine runs; None: of the type that nobody asked for."""
    from edgellm.architectures import from_metadata
    from edgellm.backends.native import loading

    return loading.kv_bytes_per_token(from_metadata(file)[1], kv_type or loading.KV_TYPE)


def engine_report() -> dict[str, Any]:
    """How the engine runs here, as plain values."""
    from edgellm.backends.native import checks

    return {"name": NAME, "kernel_sets": checks.kernel_sets()}
