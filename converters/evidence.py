"""How much text it takes for figures to tell something: what a warning of `edgellm eval` says.

A standard error shrinks with the square root of the number of predictions, so the one that was measured tells how many
it takes for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from .evaluate import Evaluation

PERPLEXITY, KL = 0.02, 0.1  # standard errors that let figures be compared, as shares: of another text, of a grade
_APART = 2.0  # standard errors between two figures that differ


def shortcomings(found: Mapping[str, Evaluation], n_ctx: int) -> list[str]:
    """What the text is too short for, and how many tokens it takes; found: by the name of the model, measured on the
    same text in contexts of n_ctx tokens."""
    if not found:
        return []
    said = []
    worst = max(found.values(), key=lambda each: _relative_kl(each) or 0.0)
    relative = _relative_kl(worst)
    if relative is not None:
        if relative > KL:
            needed = _tokens(worst, n_ctx, relative / KL)
            said.append(f"mean KL is known to ± {100 * relative:.0f} %; for ± {100 * KL:.0f} % it takes {needed}")
    else:
        worst = max(found.values(), key=lambda each: each.perplexity_error / each.perplexity)
        relative = worst.perplexity_error / worst.perplexity
        if relative > PERPLEXITY:  # nan, of an infinite perplexity, is not
            needed = _tokens(worst, n_ctx, relative / PERPLEXITY)
            said.append(
                f"perplexity is known to ± {100 * relative:.1f} % (what another text of its kind might give); for "
                f"± {100 * PERPLEXITY:.0f} % it takes {needed}"
            )
    return said + _indistinct(found, n_ctx)


def _indistinct(found: Mapping[str, Evaluation], n_ctx: int) -> list[str]:
    """The neighbours in mean KL whose order may be chance."""
    compared = {name: each for name, each in found.items() if each.mean_kl is not None}
    known = sorted((each.mean_kl or 0.0, each.mean_kl_error or 0.0, name) for name, each in compared.items())
    said = []
    for (kl, error, name), (other_kl, other_error, other) in pairwise(known):
        distance, doubt = other_kl - kl, _APART * math.hypot(error, other_error)
        if 0 < distance < doubt:
            needed = _tokens(found[name], n_ctx, doubt / distance)
            said.append(f"{name} and {other} are too near to each other to say which is better; that takes {needed}")
    return said


def _relative_kl(found: Evaluation) -> float | None:
    """The standard error as a share; None where there is no mean KL or it is 0."""
    return found.mean_kl_error / found.mean_kl if found.mean_kl and found.mean_kl_error is not None else None


def _tokens(found: Evaluation, n_ctx: int, factor: float) -> str:
    """A text with which standard errors are so many times smaller."""
    predictions = found.tokens * factor**2
    exact = predictions / (n_ctx // 2 - 1) * n_ctx
    scale = 10.0 ** max(0, math.floor(math.log10(exact)) - 1)
    return f"a text of {int(math.ceil(exact / scale) * scale):,} tokens"
