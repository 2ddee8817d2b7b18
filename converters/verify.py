"""verify: the written model against its source, tensor by tensor, and whether it runs.

Three questions: does every weight say what the source says (bit for bit where the plan promised it, else within what
its type can do), does the engine load the file and predict finite logits, and, where the source runs too, how far are
the two models' predictions apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgellm
from edgellm.errors import InvalidModelFile, NotEnoughMemory, Unsupported

from .checkpoint import GGUFTensor
from .plan import Planned
from .tensor import Tensor, chunks

# Relative errors beyond which a tensor cannot be what it is said to be. Rows in another order give 1.4; the worst rows
# that a type can meet stay below.
_LIMITS = {"F32": 1e-6, "F16": 0.02, "BF16": 0.01, "Q8_0": 0.03, "Q6_K": 0.1, "Q5_": 0.16, "Q4_": 0.32, "IQ4": 0.32}
_LIMITS |= {"Q3_": 0.6, "Q2_": 0.9, "": 1.2}  # the last one for what only copies can be
_WEIGHTED = 1.2
# of the divergence from the source, and of the weights' relative error where only that is known
_GRADES = (("excellent", 0.005, 0.01), ("very good", 0.02, 0.04), ("good", 0.05, 0.08), ("fair", 0.1, 0.16))
N_CTX, CHUNKS = 128, 6
TEXT = """\
The harbour lay quiet in the early morning. Two boats had come back during the night, and their crews were already
carrying crates of mackerel up the stone steps to the market hall. Anna counted them as they passed: twelve,
thirteen, fourteen. She wrote the number in her book, closed it, and looked out over the water. "It will rain
before noon," said the old man beside her. "It always does when the gulls sit on the wall." She laughed, because he
said this every day.

Water expands when it freezes, which is unusual. Most liquids shrink as they become solid, since their molecules
move closer together. In ice, however, every molecule is held by four neighbours in an open lattice that takes more
room than the liquid does. This is why ice floats, why pipes burst in winter, and why lakes freeze from the top
while fish live on in the cold water below. If it were otherwise, the oceans would have filled with ice from the
bottom long ago.

def average(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else None

1. Preheat the oven to 200 degrees. 2. Mix 500 g of flour with 10 g of salt and 7 g of yeast. 3. Add 350 ml of warm
water and knead the dough for ten minutes. 4. Let it rest for one hour under a cloth. 5. Bake it for 35 minutes,
until the crust is brown and the loaf sounds hollow when you knock on it.

The committee met on Tuesday, 14 March, to discuss the budget for the coming year. Its chair explained that income
had fallen by 3.5 percent, mainly because fewer visitors had come in the summer, and proposed to close the museum
on Mondays. Several members disagreed. One of them pointed out that schools prefer Mondays for their excursions,
and that the savings would be small. After a long debate the proposal was rejected by seven votes to four, with one
abstention.
"""


@dataclass(frozen=True)
class Compared:
    """tensors, exact: how many there are, and how many are the source's numbers bit for bit.

    rmse: root mean square error of the weights that changed, as a share of their own root mean square; worst: the same
    of the worst tensor.
    """

    tensors: int
    exact: int
    rmse: float
    worst: float
    worst_name: str


@dataclass(frozen=True)
class Verification(Compared):
    """Also: mean_kl, top1_agreement: against the source, over so many predictions; None where it cannot run.

    ran: what was run, or why nothing was. kv_rounded: keys and values are kept in fewer bits than they are computed in.
    """

    ran: str
    kv_rounded: bool = False
    mean_kl: float | None = None
    top1_agreement: float | None = None
    predictions: int = 0

    @property
    def grade(self) -> str:
        """ "lossless", "excellent", "very good", "good", "fair" or "poor"; "unknown" where nothing was compared."""
        if not self.tensors:
            return "unknown"
        if self.exact == self.tensors and not self.kv_rounded:
            return "lossless"
        for name, kl, rmse in _GRADES:
            if (self.rmse <= rmse) if self.mean_kl is None else (self.mean_kl <= kl):
                return name
        return "poor"

    @property
    def summary(self) -> str:
        """One line."""
        if not self.tensors:
            return f"no tensor was compared; {self.ran}"
        parts = [f"{self.grade}: {self.exact} of {self.tensors} tensors exact"]
        if self.exact < self.tensors:
            worst = f"worst {100 * self.worst:.2f} %, {self.worst_name}"
            parts.append(f"error of the others {100 * self.rmse:.2f} % ({worst})")
        if self.mean_kl is not None and self.top1_agreement is not None:
            parts.append(
                f"KL {self.mean_kl:.4f} and top-1 {100 * self.top1_agreement:.0f} % over {self.predictions} tokens"
            )
        return "; ".join([*parts, self.ran])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"grade": self.grade, **asdict(self)}


def compare(
    expected: Mapping[str, Tensor],
    written: Mapping[str, Tensor],
    planned: Sequence[Planned],
    advance: Callable[[int], None],
    weighted: bool = False,
) -> Compared:
    """Read both sides, some rows at a time; `advance` gets the bytes that were read of the written side.

    weighted: an importance matrix said where errors may be large.

    Raises InvalidModelFile when a tensor is missing, of another type or shape, or does not say what the source says.
    """
    if set(written) != {tensor.name for tensor in planned}:
        raise InvalidModelFile(
            f"the file has {len(written)} tensors, not the {len(planned)} planned; nothing was kept, please report this"
        )
    exact, lost, power = 0, 0.0, 0.0
    worst, worst_name = 0.0, ""
    for one in planned:
        there = written[one.name]
        if (there.stored, tuple(there.shape)) != (one.target, one.shape):
            raise _mismatch(one, f"is {there.stored} {there.shape}")
        same, error, energy = _differences(expected[one.name], there)
        relative = (error / energy) ** 0.5 if energy else float(error > 0)
        if one.exact and not same:
            raise _mismatch(one, "differs from the source, and was promised not to")
        limit = _WEIGHTED if weighted else next(n for kind, n in _LIMITS.items() if one.target.startswith(kind))
        if not same and relative > limit:
            raise _mismatch(one, f"has an error of {100 * relative:.3g} %, more than its type explains")
        if same:
            exact += 1
        else:
            lost, power = lost + error, power + energy
        if relative > worst:
            worst, worst_name = relative, one.name
        advance(one.nbytes)
    return Compared(len(planned), exact, (lost / power) ** 0.5 if power else 0.0, worst, worst_name)


def _mismatch(one: Planned, what: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"tensor {one.name!r} ({one.source} to {one.target} {one.shape}) {what}; nothing was kept, please report this"
    )


def _differences(source: Tensor, there: Tensor) -> tuple[bool, float, float]:
    """Whether all numbers are the same bits; the sum of squared differences; the sum of the source's squares."""
    if isinstance(source, GGUFTensor) and isinstance(there, GGUFTensor) and source.type is there.type:
        same = all(np.array_equal(source.raw(part), there.raw(part)) for part in chunks(source))
        source.release()
        there.release()
        if same:
            return True, 0.0, 0.0
    same, error, energy = True, 0.0, 0.0
    for part in chunks(source):
        ours, theirs = source.rows(part), there.rows(part)
        same = same and np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
        energy += _squares(ours)
        theirs -= ours
        error += _squares(theirs)
    return same, error, energy


def _squares(values: NDArray[np.float32]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def run(path: Path, source: Path | None, compared: Compared, *, kv_rounded: bool = False) -> Verification:
    """Load what was written and predict a short text; beside its source, if that can be run and differs.

    Raises ModelLoadError, InvalidModelFile when it does not run. Too little memory, and a kind of model that the engine
    does not run, are no fault of the file: `ran` says so.
    """
    from .evaluate import evaluate  # brings the engine, which converting does without

    parts = {**asdict(compared), "kv_rounded": kv_rounded}
    info = edgellm.inspect(path)
    if not info.can_generate:
        return Verification(**parts, ran="not run: it makes embeddings and predicts nothing")
    if compared.exact == compared.tensors and not kv_rounded:
        source = None
    nothing = edgellm.CacheParams(memory=0, disk=0)
    try:
        models = [info] if source is None else [info, edgellm.inspect(source)]
        ctx = min(N_CTX, *(each.n_ctx_train for each in models))
        with edgellm.load(path, ctx=ctx, cache=nothing) as model:
            tokens = model.encode(TEXT)[:ctx]
            if not all(np.isfinite(rows).all() for rows in model.logits(tokens)):
                raise InvalidModelFile(f"{path.name}: the model computes infinite logits or NaN; nothing was kept")
            if source is None:
                return Verification(**parts, ran=f"it runs, {len(tokens)} tokens give finite logits")
            with edgellm.load(source, ctx=ctx, cache=nothing) as base:
                found = evaluate(model, TEXT, base=base, n_ctx=ctx, chunks=CHUNKS)
    except (NotEnoughMemory, Unsupported) as error:
        return Verification(**parts, ran=f"not run: {error}")
    agreement, count = found.top1_agreement, found.tokens
    return Verification(**parts, ran="it runs", mean_kl=found.mean_kl, top1_agreement=agreement, predictions=count)
