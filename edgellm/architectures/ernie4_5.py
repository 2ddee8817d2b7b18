"""ERNIE 4.5, dense: a Llama that rotates neighbours with Hugging Face as well, so that no rows change places."""

from __future__ import annotations

from .architecture import Architecture
from .llama import FEED_FORWARD, FFN_NORM, NORM, PROJECTIONS, SILU

ERNIE4_5 = Architecture(
    gguf="ernie4_5",
    model_type="ernie4_5",
    classname="Ernie4_5ForCausalLM",
    onnx_type="decoder",
    layer=(NORM, *PROJECTIONS, FFN_NORM, *FEED_FORWARD[::2]),
    expect={**SILU, "use_bias": (False,)},
    defaults={"head_dim": 128, "rms_norm_eps": 1e-5},
    tied=True,
    rope_base=5e5,
    neighbours=True,
)
