"""What the distance between two models is measured with when nobody gives a text, and what it is called.

TEXT (yardstick.txt) is prose, dialogue, a letter, code, tables, sums and some languages, written for this: two contexts
of 512 tokens with common vocabularies. Grades depend on it, and so do the scales of an int8 KV cache
(onnx/kv_scales.py).
"""

from __future__ import annotations

from importlib.resources import files

TEXT = files("edgellm.converters").joinpath("yardstick.txt").read_text(encoding="utf-8")
# the largest mean KL divergence, in nats, that has the name; what is beyond the last one is "poor"
GRADES = (("excellent", 0.005), ("very good", 0.02), ("good", 0.05), ("fair", 0.1))
N_CTX = 512  # tokens of a context, as `edgellm eval` takes them; fewer where a model has fewer
PREDICTIONS = 510  # at least, so that the standard error of a mean KL is about a twentieth of it


def grade_of(mean_kl: float) -> str:
    """ "excellent", "very good", "good", "fair" or "poor"."""
    return next((name for name, most in GRADES if mean_kl <= most), "poor")
