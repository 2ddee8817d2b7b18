"""Windows: which layers see only the latest tokens, as config.json and GGUF say it."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidModelFile, Unsupported
from .config import Config
from .hyper import Hyper

SLIDING, FULL = "sliding_attention", "full_attention"
PATTERN = "attention.sliding_window_pattern"


def pattern(n_layer: int, every: int) -> tuple[bool, ...]:
    """Which layers see a window: all but each `every`-th."""
    return tuple((i + 1) % every != 0 for i in range(n_layer)) if every else (True,) * n_layer


def from_config(config: Config, fields: dict[str, Any], every: int) -> tuple[bool, ...]:
    """The windowed layers of a config.json; all but each `every`-th where it does not say."""
    key = "_sliding_window_pattern" if "_sliding_window_pattern" in config else "sliding_window_pattern"
    given = config.values.get(key)
    n_layer: int = fields["n_layer"]
    if isinstance(given, str):  # "LLLG", over and over
        config.take(key, str)
        if not given or set(given) - set("LG"):
            raise InvalidModelFile(f"{config.where}: {key} is {given[:40]!r}, expected letters L and G")
        windowed = tuple(given[i % len(given)] == "L" for i in range(n_layer))
    else:
        config.maybe("sliding_window_pattern", int)
        windowed = pattern(n_layer, config.take(key, int, every))
    kinds = config.take("layer_types", list, [])
    windowed = tuple(kind == SLIDING for kind in kinds) or windowed
    if len(windowed) != n_layer or any(kind not in (SLIDING, FULL) for kind in kinds):
        raise Unsupported(f"{config.where}: layer_types {str(kinds)[:200]} of {n_layer} layers")
    if any(windowed) and not fields["window"]:
        raise Unsupported(f"{config.where}: layer_types has windowed layers, but sliding_window is missing")
    return windowed if fields["window"] else ()


def to_config(hyper: Hyper) -> dict[str, Any]:
    """The key of config.json that names each layer's kind."""
    kinds = [SLIDING if one else FULL for one in hyper.windowed]
    return {"layer_types": kinds or [FULL] * hyper.n_layer}


def from_metadata(config: Config, n_layer: int, every: int) -> tuple[bool, ...]:
    """The windowed layers of a GGUF file that has a window."""
    given = config.values.get(PATTERN, every)
    if isinstance(given, int) and not isinstance(given, bool):
        return pattern(n_layer, config.take(PATTERN, int, every))
    windowed = tuple(bool(item) for item in config.take(PATTERN, list))
    if len(windowed) != n_layer:
        raise InvalidModelFile(f"{config.where}: sliding_window_pattern has {len(windowed)} layers")
    return windowed


def to_metadata(hyper: Hyper, every: int) -> dict[str, Any]:
    """The key of a GGUF file where the windowed layers are not the usual ones."""
    usual = hyper.windowed in ((), pattern(hyper.n_layer, every))
    return {} if usual else {PATTERN: [bool(one) for one in hyper.windowed]}
