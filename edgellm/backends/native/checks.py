"""cannot, why_not: whether edgellm's own engine runs a GGUF file, and if not, why, in words.

All that a header may say is held against the family's table first (backends/llamacpp/checks.py): keys in ranges, each
tensor with its shape. So what the engine is given fits, whatever the file is. Damage inside of the weights is found
when they are laid out.
"""

from __future__ import annotations

from edgellm import _native
from edgellm.architectures import Hyper
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.checks import check_model
from edgellm.backends.llamacpp.info import pooling
from edgellm.budget import default_context
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.params import LoadParams

FAMILIES = frozenset({  # general.architecture; Mistral and Mixtral are a llama there
    "llama", "smollm3", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "granite", "olmo2",
    "gpt2", "gptneox", "starcoder2", "mistral3", "ernie4_5", "glm4", "cohere2",
    "exaone4",
})  # fmt: skip
TYPES = frozenset({  # native/kernels/storage.h
    GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1,
    GGMLType.Q8_0, GGMLType.IQ4_NL, GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K,
})  # fmt: skip
HEAD_STEP, LARGEST_HEAD = 16, 256  # native/kernels/paged_attention.h
PORTABLE = "scalar"  # the kernels without any instruction set


def why_not(file: GGUFFile, params: LoadParams) -> str | None:
    """Why another engine is to run a file where nobody asks for one; None: this one is."""
    if why := cannot(file, params):
        return why
    if kernel_sets()[0] == PORTABLE and library.installed():
        return "there are no kernels for the instructions of this processor"
    if params.gpu_layers == "auto" and _gpu():
        return "llama.cpp can use a GPU here"
    return None


def cannot(file: GGUFFile, params: LoadParams) -> str | None:
    """Why the engine cannot run a file as it is asked to; None: it can."""
    if params.gpu_layers not in ("auto", 0):
        return f"gpu_layers is {params.gpu_layers}, and it computes on the CPU"
    if params.flash_attention is not None:
        return "flash_attention is asked for or forbidden, and its attention knows no other way"
    name = file.get("general.architecture", str, "")
    if name not in FAMILIES:
        return f"it does not know {name[:64]!r} models, but {', '.join(sorted(FAMILIES))}"
    try:
        if pooling(file):
            return "it makes no vectors of texts"
        reasons, hyper = check_model(file)
    except InvalidModelFile as error:
        return str(error)
    if reasons or hyper is None:
        return reasons[0][:200]
    return _lacking(file, hyper, default_context(hyper.n_ctx_train, params.ctx))


def _lacking(file: GGUFFile, hyper: Hyper, ctx: int) -> str | None:
    for tensor in file.tensors.values():
        if tensor.type not in TYPES:
            return f"tensor {tensor.name} is stored as {tensor.type.name}, which it does not multiply"
    head = hyper.head_dim
    if head % HEAD_STEP or head > LARGEST_HEAD:
        return f"heads of {head} elements, and it attends to multiples of {HEAD_STEP} up to {LARGEST_HEAD}"
    if hyper.rope is not None and hyper.rope.base <= 1.0:
        return f"a rotary embedding of θ = {hyper.rope.base:g}"
    if hyper.rope is not None and hyper.rope.temperature and ctx > hyper.rope.original:
        most = hyper.rope.original
        return f"queries grow beyond {most} tokens, which it does not compute; it runs contexts up to that (ctx={most})"
    return None


def kernel_sets() -> list[str]:
    """The sets of kernels that this processor has, the fastest first."""
    return _native.kernel_sets()


def _gpu() -> bool:
    """Whether llama.cpp finds a GPU that layers can go to."""
    try:
        return bool(library.load_library().llama_supports_gpu_offload())
    except Unsupported:
        return False
