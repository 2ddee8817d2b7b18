"""Rope: rotary position embeddings, as config.json (transformers 4 and 5) and GGUF describe them.

Scaling stretches the angles of a longer context: `linear` (https://arxiv.org/abs/2306.15595), `yarn`
(https://arxiv.org/abs/2309.00071), `llama3` (the Llama 3.1 model card; in GGUF the tensor `rope_freqs.weight`) and
`longrope` (https://arxiv.org/abs/2402.13753; in GGUF `rope_factors_long.weight` and `rope_factors_short.weight`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidModelFile, Unsupported
from ..formats.ggml_types import GGMLType
from ..formats.gguf import GGUFFile
from .config import Config, shortest

Scaling = Literal["none", "linear", "yarn", "llama3", "longrope"]
FAST = 32.0  # turns, YaRN's own number
THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")  # what θ is called
FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Rope:
    """dim: rotated elements of a head, from its first; base: θ; local_base: θ of windowed layers where it differs.

    factor: of the stretch; original: the context before it. magnitude: what cos and sin are multiplied with.
    low, high: the wavelengths, as shares of `original`, between which llama3 blends. short, long: longrope's divisors
    of the frequencies, (dim/2,), up to and beyond `original`. every: 4 when each fourth layer has no rotation. fast:
    turns within `original` above which YaRN leaves a frequency alone. temperature: what q grows by beyond `original`:
    it is multiplied with 1 + temperature · log(1 + floor(position / original)). neighbours: in Hugging Face's order of
    rows the two elements of a pair stand side by side, not in the two halves of what rotates. only_windowed: of a model
    with windowed layers, only those rotate.
    """

    base: float
    dim: int
    local_base: float | None = None
    scaling: Scaling = "none"
    factor: float = 1.0
    original: int = 0
    magnitude: float = 1.0
    low: float = 1.0
    high: float = 4.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    every: int = 0
    fast: float = FAST
    temperature: float = 0.0
    neighbours: bool = False
    only_windowed: bool = False

    def __post_init__(self) -> None:
        least = min(self.base, self.factor, self.magnitude, self.fast)
        if least <= 0 or not 0 <= self.temperature <= 1e3 or self.dim < 2 or self.dim % 2 or self.high <= self.low:
            raise InvalidModelFile(f"{self.dim} rotated elements: a rotary embedding that cannot be: {self}")


def usual_magnitude(scaling: str, factor: float, original: int) -> float:
    """The magnitude that each paper recommends; YaRN section 3.4, LongRoPE section 3.3."""
    if factor <= 1.0 or scaling not in ("yarn", "longrope"):
        return 1.0
    if scaling == "yarn":
        return 0.1 * math.log(factor) + 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original))


def llama3_factors(rope: Rope) -> NDArray[np.float32]:
    """What each frequency is divided by: 1 for short waves, `factor` for long ones, blended between. (dim/2,)"""
    waves = 2.0 * np.pi * rope.base ** (np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    share = np.clip((rope.original / waves - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return (1.0 / ((1.0 - share) / rope.factor + share)).astype(np.float32)


def frequencies(rope: Rope, *, long: bool = False) -> NDArray[np.float64]:
    """Radians per position of each pair of elements, (dim/2,). long: by longrope's factors for contexts beyond
    `original`."""
    plain: NDArray[np.float64] = rope.base ** -(np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return plain / llama3_factors(rope).astype(np.float64)
    if rope.scaling == "longrope":
        return plain / np.array(rope.long if long else rope.short, np.float64)
    if rope.scaling == "yarn":
        stretched = _yarn_ramp(rope)
        return plain * (stretched / rope.factor + 1.0 - stretched)
    return plain


def _yarn_ramp(rope: Rope) -> NDArray[np.float64]:
    """How far each frequency is stretched, 0 to 1: not above `fast` turns within `original`, wholly below one turn.

    YaRN section 3.2, with the bounds rounded outwards as transformers does.
    """

    def pair(turns: float) -> float:
        return rope.dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = max(math.floor(pair(rope.fast)), 0), min(math.ceil(pair(1)), rope.dim - 1)
    ramp: NDArray[np.float64] = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return ramp


def from_config(config: Config, dim: int, n_ctx: int, base: float = 10000.0, partial: float = 1.0) -> Rope:
    """Read the rotary keys of a config.json in either spelling.

    dim: elements of a head; base and partial: the family's defaults for θ and for the share of a head that rotates.
    Raises Unsupported for a scaling, or a key of one, that is not known.
    """
    new, old = config.maybe("rope_parameters", dict), config.maybe("rope_scaling", dict)
    given: dict[str, Any] = dict(new or old or {})
    local: dict[str, Any] = {}
    if "full_attention" in given or "sliding_attention" in given:
        local = dict(given.pop("sliding_attention", None) or {})
        given |= given.pop("full_attention", None) or {}
    theta = next((found for key in THETAS if (found := config.maybe(key, float)) is not None), base)
    share = config.take("partial_rotary_factor", float, config.take("rotary_pct", float, partial))
    local_theta = config.maybe("rope_local_base_freq", float) or config.maybe("local_rope_theta", float)
    original = config.take("original_max_position_embeddings", int, n_ctx)
    inner = Config(given, f"{config.where}: rope scaling")
    theta = inner.take("rope_theta", float, theta)
    share = inner.take("partial_rotary_factor", float, share)
    if not 0.0 <= share <= 2.0:
        raise InvalidModelFile(f"{config.where}: partial_rotary_factor = {share}, a share of a head")
    rotated = int(dim * share)
    if local:
        windowed = Config(local, f"{config.where}: rope of the windowed layers")
        windowed.expect("rope_type", "default")
        local_theta = windowed.take("rope_theta", float, local_theta or theta)
        windowed.finish(frozenset())
    kind = str(inner.take("rope_type", str, inner.take("type", str, "default")))
    name = {"default": "none", "su": "longrope"}.get(kind, kind)
    rope = _scaled(inner, name, Rope(theta, rotated, local_theta, original=original), n_ctx)
    inner.finish(frozenset())
    return rope


def _scaled(inner: Config, kind: str, plain: Rope, n_ctx: int) -> Rope:
    base, rotated, local = plain.base, plain.dim, plain.local_base
    if kind == "none":
        inner.maybe("factor", float)
        original = inner.take("original_max_position_embeddings", int, plain.original)
        temperature = inner.take("llama_4_scaling_beta", float, 0.0)
        if not temperature:
            return Rope(base, rotated, local)
        return Rope(base, rotated, local, original=_stretchable(inner, original), temperature=temperature)
    if kind == "linear":
        return Rope(base, rotated, local, "linear", inner.take("factor", float))
    original = _stretchable(inner, inner.take("original_max_position_embeddings", int, plain.original))
    if kind == "llama3":
        factor = inner.take("factor", float)
        low, high = inner.take("low_freq_factor", float), inner.take("high_freq_factor", float)
        return Rope(base, rotated, local, "llama3", factor, original, low=low, high=high)
    if kind == "yarn":
        for key, fixed in (("beta_slow", 1), ("truncate", True), ("max_position_embeddings", n_ctx)):
            inner.expect(key, fixed, None)  # llama.cpp reads none of them
        factor, fast = inner.take("factor", float), inner.take("beta_fast", float, FAST)
        temperature = inner.take("llama_4_scaling_beta", float, 0.0)
        magnitude = inner.maybe("attention_factor", float)
        scale, scale_all = inner.maybe("mscale", float), inner.maybe("mscale_all_dim", float)
        if not all(0.0 <= each <= 1e3 for each in (scale or 0.0, scale_all or 0.0)):
            raise InvalidModelFile(f"{inner.where}: mscale = {scale}, mscale_all_dim = {scale_all}, expected 0 to 1000")
        if magnitude is None and scale and scale_all:
            more = 0.1 * math.log(max(factor, 1.0))
            magnitude = (more * scale + 1.0) / (more * scale_all + 1.0)
        if magnitude is None:
            magnitude = usual_magnitude("yarn", factor, original)
        return Rope(base, rotated, local, "yarn", factor, original, magnitude, fast=fast, temperature=temperature)
    if kind == "longrope":
        factor = inner.take("factor", float, n_ctx / original)
        magnitude = inner.take("attention_factor", float, usual_magnitude("longrope", factor, original))
        keys = ("short_factor", "long_factor")
        short, long = (tuple(Config({k: x}, inner.where).take(k, float) for x in inner.take(k, list)) for k in keys)
        if len(short) != rotated // 2 or len(long) != rotated // 2:
            raise InvalidModelFile(f"{inner.where}: {len(short)} and {len(long)} factors, expected {rotated // 2}")
        return Rope(base, rotated, local, "longrope", factor, original, magnitude, short=short, long=long)
    raise Unsupported(f"{inner.where}: the type {kind!r} is not known; linear, yarn, llama3 and longrope are")


def _stretchable(config: Config, original: int) -> int:
    if not 2 <= original <= 1 << 31:
        raise InvalidModelFile(f"{config.where}: an original context of {original} tokens")
    return original


def to_config(rope: Rope, n_ctx: int, *, tempered: bool = False) -> dict[str, Any]:
    """The keys of config.json in the spelling that transformers 4 and 5 both read, without the share that rotates.

    n_ctx: positions the model was made for. tempered: of a family that has a temperature.
    """
    keys: dict[str, Any] = {"rope_theta": rope.base}
    if rope.local_base is not None:
        keys["rope_local_base_freq"] = rope.local_base
    if rope.scaling == "none" and not tempered:
        return keys | {"rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling != "none":
        scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if tempered:
        scaling |= {
            "llama_4_scaling_beta": rope.temperature,
            "original_max_position_embeddings": rope.original or n_ctx,
        }
    elif rope.scaling != "linear":
        scaling["original_max_position_embeddings"] = rope.original
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    if rope.scaling == "longrope":
        scaling |= {"short_factor": list(rope.short), "long_factor": list(rope.long)}
    if rope.fast != FAST:
        scaling["beta_fast"] = rope.fast
    if not math.isclose(rope.magnitude, usual_magnitude(rope.scaling, rope.factor, rope.original), rel_tol=1e-6):
        scaling["attention_factor"] = rope.magnitude
    return keys | {"rope_scaling": scaling}


def share(rope: Rope, head_dim: int) -> float:
    """What to write for the rotated share of a head, so that int(head_dim * share) is rope.dim again."""
    found = rope.dim / head_dim
    return found if int(head_dim * found) == rope.dim else math.nextafter(found, 2.0)


def to_metadata(rope: Rope, *, tempered: bool = False) -> dict[str, Any]:
    """The GGUF keys below the architecture's name. tempered: of a family that has a temperature.

    llama.cpp multiplies YaRN's usual magnitude in by itself; `attn_factor` is what comes on top of it. In a tempered
    family it divides that by the same formula with the factor's logarithm multiplied.
    """
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.base)}
    if rope.local_base is not None:
        keys["rope.freq_base_swa"] = float(rope.local_base)
    if rope.scaling in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": float(rope.factor)}
    if rope.scaling == "longrope":
        keys |= {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": float(rope.magnitude)}
    if rope.scaling in ("yarn", "longrope", "llama3") or rope.temperature:
        keys["rope.scaling.original_context_length"] = rope.original
    if rope.scaling == "yarn":
        above = rope.magnitude / usual_magnitude("yarn", rope.factor, rope.original)
        if tempered and above < 1.0 < rope.factor:
            keys["rope.scaling.yarn_log_multiplier"] = shortest((1.0 / above - 1.0) / (0.1 * math.log(rope.factor)))
        elif not math.isclose(above, 1.0, rel_tol=1e-6):
            keys["rope.scaling.attn_factor"] = above
    if tempered:
        keys |= {"rope.scaling.yarn_beta_fast": rope.fast, "rope.scaling.yarn_beta_slow": 1.0}
        keys["attention.temperature_scale"] = rope.temperature
    return keys


def extra(rope: Rope) -> list[tuple[str, NDArray[np.float32]]]:
    """The tensors that carry the scaling in GGUF: (name, (dim/2,) float32)."""
    if rope.scaling == "llama3":
        return [(FREQS, llama3_factors(rope))]
    if rope.scaling == "longrope":
        return [(LONG, np.array(rope.long, np.float32)), (SHORT, np.array(rope.short, np.float32))]
    return []


def from_metadata(
    config: Config, file: GGUFFile, dim: int, n_ctx: int, local_base: float | None = None, *, tempered: bool = False
) -> Rope:
    """Read the GGUF keys and tensors that `to_metadata` and `extra` write; dim: elements of a head.

    local_base: θ of windowed layers where the file does not say. Raises Unsupported where the tensors are not what any
    scaling known here gives.
    """
    rotated = config.take("rope.dimension_count", int, dim)
    base = shortest(config.take("rope.freq_base", float, 10000.0))
    local = config.maybe("rope.freq_base_swa", float)
    local_base = local_base if local is None else shortest(local)
    kind = config.take("rope.scaling.type", str, "none")
    factor = shortest(config.take("rope.scaling.factor", float, config.take("rope.scale_linear", float, 1.0)))
    original = config.maybe("rope.scaling.original_context_length", int)
    above = config.take("rope.scaling.attn_factor", float, 1.0)
    config.maybe("rope.scaling.finetuned", bool)
    fast, temperature = FAST, 0.0
    if tempered:
        fast = shortest(config.take("rope.scaling.yarn_beta_fast", float, FAST))
        temperature = shortest(config.take("attention.temperature_scale", float, 0.0))
        multiplier = max(config.take("rope.scaling.yarn_log_multiplier", float, 0.0), 0.0)
        above /= 0.1 * multiplier * math.log(max(factor, 1.0)) + 1.0
    said = config.take("rope.scaling.yarn_attn_factor", float, 1.0)  # in whose place llama.cpp puts the usual one
    if kind != "yarn" or not math.isclose(said, usual_magnitude("yarn", factor, 0), rel_tol=1e-4):
        config.expect("rope.scaling.yarn_attn_factor", 1.0)
    for key, fixed in (("ext_factor", 1.0), ("beta_fast", FAST), ("beta_slow", 1.0)):
        if key != "beta_fast" or not tempered:
            config.expect(f"rope.scaling.yarn_{key}", fixed)
    if FREQS in file.tensors:
        return _llama3(Rope(base, rotated, local_base, "llama3", original=original or 0), _vector(file, FREQS, rotated))
    if LONG in file.tensors and SHORT in file.tensors:
        original = _stretchable(config, original or n_ctx)
        long, short = (tuple(shortest(x) for x in _vector(file, name, rotated)) for name in (LONG, SHORT))
        factor = n_ctx / original
        usual = usual_magnitude("longrope", factor, original)
        magnitude = usual if math.isclose(above, usual, rel_tol=1e-6) else shortest(above)
        return Rope(base, rotated, local_base, "longrope", factor, original, magnitude, short=short, long=long)
    if kind == "yarn":
        original = _stretchable(config, original or n_ctx)
        magnitude = usual_magnitude("yarn", factor, original)
        magnitude = shortest(magnitude * above) if above != 1.0 else magnitude
        return Rope(base, rotated, local_base, "yarn", factor, original, magnitude, fast=fast, temperature=temperature)
    if kind not in ("none", "linear"):
        raise Unsupported(f"{config.where}: rope.scaling.type {kind!r} without its tensors cannot be converted")
    stretch: Scaling = "linear" if factor != 1.0 else "none"
    if temperature:
        original = _stretchable(config, original or n_ctx)
        return Rope(base, rotated, local_base, stretch, factor, original, temperature=temperature)
    return Rope(base, rotated, local_base, stretch, factor)


def _vector(file: GGUFFile, name: str, rotated: int) -> NDArray[np.float32]:
    info, shape = file.tensors[name], (rotated // 2,)
    if info.type is not GGMLType.F32 or info.shape != shape:
        found = f"{info.type.name} {info.shape}"
        raise InvalidModelFile(f"{file.path}: tensor {name!r} is {found}, expected F32 {shape}")
    return file.data(name).view(np.float32)


def _llama3(rope: Rope, factors: NDArray[np.float32]) -> Rope:
    """The parameters behind a `rope_freqs.weight`: blended shares are linear in the frequency, which gives two of them.

    A file that does not say the original context leaves one free; 8192 is Llama 3's.
    """
    factor = shortest(float(factors.max()))
    original = rope.original or 8192
    waves = 2.0 * np.pi * rope.base ** (np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    guesses = [(1.0, 4.0)]
    blended = np.nonzero((factors > 1.0) & (factors < factors.max()))[0]
    if factor > 1.0 and rope.base > 1.0 and len(blended) > 1:
        share = (1.0 / factors[blended].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, offset = np.polyfit(original / waves[blended], share, 1)
        if slope > 0:
            low, high = -offset / slope, (1.0 - offset) / slope
            guesses += [(round(low, 3), round(high, 3)), (low, high)]
    for low, high in guesses:
        found = Rope(rope.base, rope.dim, rope.local_base, "llama3", factor, original, low=low, high=high)
        if np.allclose(llama3_factors(found), factors, rtol=1e-5, atol=0):
            return found
    raise Unsupported(f"{FREQS}: these factors are not those of llama3 scaling, which config.json could describe")
