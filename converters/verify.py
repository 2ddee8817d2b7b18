"""verify: the written model against its source, tensor by tensor, and whether it runs.

Three questions: does every weight say what the source says (bit for bit where the plan promised it, else within what
its type can do), does the engine load the file and predict finite logits, and how far are its predictions from the
source's. Only the last one gives a grade, on the scale of `edgellm eval`: weights of one error make models of any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import edgellm
from edgellm.errors import (
    CannotWrite,
    InvalidModelFile,
    InvalidParameter,
    ModelLoadError,
    NotEnoughMemory,
    ResourceError,
    UnsafeModel,
    Unsupported,
)
from edgellm.formats.tensor import Tensor, chunks

from .gguf.source import GGUFTensor
from .plan import Planned
from .yardstick import N_CTX, PREDICTIONS, TEXT, grade_of

# Relative errors beyond which a tensor cannot be what it is said to be. Rows in another order give 1.4; the worst rows
# that a type can meet stay below.
_LIMITS = {"F32": 1e-6, "F16": 0.02, "BF16": 0.01, "Q8_0": 0.03, "Q6_K": 0.1, "Q5_": 0.16, "Q4_": 0.32, "IQ4": 0.32}
_LIMITS |= {"Q3_": 0.6, "Q2_": 0.9, "": 1.2}  # the last one for what only copies can be
_WEIGHTED = 1.2
_EVAL = "`edgellm eval RESULT --against SOURCE --text FILE` does"
RUN_TOKENS = 128  # that a result must predict with finite logits
PATIENCE = 300.0  # seconds that measuring may take


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
    """Also: the distance from the source, over so many predictions; None where it was not measured, and ungraded says
    why.

    ran: what was run, or why nothing was. rounded: it computes with fewer bits than its weights have: products or kept
    keys and values of 8 bits.
    """

    ran: str
    rounded: bool = False
    mean_kl: float | None = None
    mean_kl_error: float | None = None
    top1_agreement: float | None = None
    predictions: int = 0
    ungraded: str = ""

    @property
    def lossless(self) -> bool:
        """Whether all is as in the source, so that there is no distance to measure."""
        return 0 < self.tensors == self.exact and not self.rounded

    @property
    def grade(self) -> str | None:
        """ "lossless", or what `grade_of` calls the divergence from the source; None where it was not measured."""
        if self.lossless:
            return "lossless"
        return None if self.mean_kl is None else grade_of(self.mean_kl)

    @property
    def summary(self) -> str:
        """One line."""
        parts = [f"{self.exact} of {self.tensors} tensors exact" if self.tensors else "no tensor was compared"]
        if self.exact < self.tensors:
            worst = f"worst {100 * self.worst:.2f} %, {self.worst_name}"
            parts.append(f"error of the others {100 * self.rmse:.2f} % ({worst})")
        if self.mean_kl is not None and self.top1_agreement is not None:
            parts.append(
                f"mean KL {self.mean_kl:.3g} ± {self.mean_kl_error:.2g} and top-1 {100 * self.top1_agreement:.0f} % "
                f"over {self.predictions} predictions"
            )
        parts.append(self.ran)
        if self.ungraded:
            parts.append(f"no grade: {self.ungraded}")
        return (f"{self.grade}: " if self.grade else "") + "; ".join(parts)

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
        energy += float(np.vdot(ours, ours))
        theirs -= ours
        error += float(np.vdot(theirs, theirs))
    return same, error, energy


def run(
    result: AbstractContextManager[Path],
    source: AbstractContextManager[Path],
    compared: Compared,
    report: Callable[[str, int, int], None],
    *,
    rounded: bool = False,
) -> Verification:
    """Load what was written and predict a short text; beside its source, if they differ.

    result, source: give what an engine runs (see `gguf.target.runnable`); the source is entered only if it is needed.

    Raises ModelLoadError, InvalidModelFile when the result does not run. Too little memory, and a kind of model that
    the engine does not run, are no fault of the file: `ran` says so, and `ungraded` why the source was not run.
    """
    done = Verification(**asdict(compared), ran="", rounded=rounded)
    try:
        with result as path:
            info = edgellm.inspect(path)
            if not info.can_generate:
                return _unmeasured(replace(done, ran="not run: it gives vectors or scores and predicts nothing"))
            with _load(path, N_CTX) as model:
                started = time.monotonic()
                tokens = model.encode(TEXT)[: min(RUN_TOKENS, model.n_ctx)]
                if not all(np.isfinite(rows).all() for rows in model.logits(tokens)):
                    raise InvalidModelFile(f"{path.name}: the model computes infinite logits or NaN; nothing was kept")
                each = (time.monotonic() - started) / len(tokens)
                done = replace(done, ran=f"it runs, {len(tokens)} tokens give finite logits")
                return done if done.lossless else _measured(done, model, source, each, report)
    except (NotEnoughMemory, Unsupported, CannotWrite) as error:
        return _unmeasured(replace(done, ran=f"not run: {error}"))


def _load(path: Path, ctx: int) -> edgellm.Model:
    """Nothing is kept of what it computes; its context is no longer than it was trained for."""
    nothing = edgellm.CacheParams(memory=0, disk=0)
    return edgellm.load(path, ctx=min(ctx, edgellm.inspect(path).n_ctx_train), cache=nothing)


def _unmeasured(done: Verification) -> Verification:
    return done if done.lossless else replace(done, ungraded="only a measured divergence is graded")


def _measured(
    done: Verification,
    model: edgellm.Model,
    source: AbstractContextManager[Path],
    seconds: float,
    report: Callable[[str, int, int], None],
) -> Verification:
    """With the distance from the source; seconds: what a token took the model."""
    from .evaluate import evaluations  # brings the engine, which converting does without

    text = model.encode(TEXT, special=False)
    expected = 3 * seconds * min(2 * PREDICTIONS, len(text))  # twice for the source: it has more bits
    if expected > PATIENCE:
        return replace(done, ungraded=f"measuring it would take about {expected / 60:.0f} minutes here; {_EVAL}")
    started = time.monotonic()
    try:
        with source as path, _load(path, model.n_ctx) as base:
            n_ctx = min(model.n_ctx, base.n_ctx, len(text) // 2)
            chunks = -(-PREDICTIONS // (n_ctx // 2 - 1))
            report("measuring", 0, chunks)
            with closing(evaluations(model, TEXT, base=base, n_ctx=n_ctx, chunks=chunks)) as steps:
                for found in steps:
                    report("measuring", found.done, found.chunks)
                    if found.done < found.chunks and time.monotonic() - started > PATIENCE:
                        return replace(done, ungraded=f"measuring it took more than {PATIENCE:.0f} s; {_EVAL}")
    except (ResourceError, ModelLoadError, UnsafeModel, Unsupported, InvalidParameter) as error:
        return replace(done, ungraded=f"the source cannot be run beside it: {error}")
    return replace(
        done,
        ran="it runs",
        mean_kl=found.mean_kl,
        mean_kl_error=found.mean_kl_error,
        top1_agreement=found.top1_agreement,
        predictions=found.tokens,
    )
