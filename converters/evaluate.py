"""How well a model predicts a text, and how far its predictions are from those of another model.

The rules are those of llama.cpp's perplexity tool (tools/perplexity/README.md), so that figures can be compared. The
text is encoded once and cut into contexts of `n_ctx` tokens; what remains is dropped. Each context is computed by
itself, its first token replaced by the one that the model begins with, if it has one. The first half is what the
predictions of the second half are made from:

    position   0 ........ n_ctx/2 ........ n_ctx - 2   n_ctx - 1
    scored                   x  x  x  x  x  x             (each for the token after it)

With p the base's and q the model's probabilities of the next token, t the token that follows:

    perplexity        exp(mean(-log q(t)))
    KL divergence     sum over the vocabulary of p (log p - log q), in nats
    top-1 agreement   share of positions where both have the same likeliest token
    RMS delta p       root of the mean of (q(t) - p(t))², a share (0.01 is one percentage point)

Both models run side by side and no logits are stored. What is kept are five values per scored position; the log
softmax is exact and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgellm import Model, arguments
from edgellm.errors import ContextOverflow, InvalidModelFile, InvalidParameter
from edgellm.pace import paced

from .yardstick import N_CTX, grade_of

FEWEST = 2  # contexts that a text must fill
PROBES = 256  # tokens whose text is compared between two vocabularies
BLOCK = 1 << 20  # logits that are taken to float64 at once, per model

Logits = NDArray[np.float32]  # (n, n_vocab) float32


@dataclass(frozen=True, slots=True)
class Scores:
    """What is kept of each scored position, all (n,) float64. All but the first with a base only, else empty.

    nll: -log q(t). kl: divergence from the base. delta_p: q(t) - p(t). same_top: 1 where the likeliest tokens agree.
    base_nll: -log p(t).
    """

    nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    delta_p: NDArray[np.float64]
    same_top: NDArray[np.float64]
    base_nll: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measured on `tokens` predictions, after `done` of `chunks` contexts. What compares is None without a base.

    An error is the standard error of the mean that its figure is made from, carried over to the figure; predictions
    count as independent of each other. Twice of it is a confidence interval of about 95 %.
    """

    done: int
    chunks: int
    tokens: int
    perplexity: float
    perplexity_error: float
    mean_kl: float | None = None
    mean_kl_error: float | None = None
    median_kl: float | None = None
    p999_kl: float | None = None
    top1_agreement: float | None = None
    top1_agreement_error: float | None = None
    rms_delta_p: float | None = None
    rms_delta_p_error: float | None = None
    base_perplexity: float | None = None
    base_perplexity_error: float | None = None

    @property
    def grade(self) -> str | None:
        """What `grade_of` calls the mean KL; None without a base."""
        return None if self.mean_kl is None else grade_of(self.mean_kl)

    def to_dict(self) -> dict[str, float | int]:
        """The figures and their errors as plain values; without a base, no KL keys."""
        names = [name for name in self.__slots__ if name not in ("done", "chunks")]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def evaluate(
    model: Model,
    text: str,
    *,
    base: Model | None = None,
    n_ctx: int = N_CTX,
    chunks: int | None = None,
    progress: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measure `model` on `text`, against `base` if one is given.

    n_ctx: tokens of a context. chunks: at most so many contexts, from the beginning of the text. `progress` gets the
    figures so far, at most 20 times a second and at the end; an exception it raises stops the evaluation.

    Raises InvalidParameter (a text shorter than two contexts, models with different vocabularies), ContextOverflow (a
    model was loaded with less than n_ctx), InvalidModelFile (a model computes NaN), Closed, BackendFailed.
    """
    report = None if progress is None else paced(progress, lambda each: each.done == each.chunks)
    result: Evaluation | None = None
    with closing(evaluations(model, text, base=base, n_ctx=n_ctx, chunks=chunks)) as steps:
        for result in steps:
            if report is not None:
                report(result)
    assert result is not None  # there is at least one context
    return result


def evaluations(
    model: Model, text: str, *, base: Model | None = None, n_ctx: int = N_CTX, chunks: int | None = None
) -> Generator[Evaluation]:
    """`evaluate` step by step: the figures so far, after every context. Close it to stop. Raises what `evaluate` does.

    What is wrong with the arguments is raised here and not by the first step.
    """
    arguments.instance("model", model, Model)
    if base is not None:
        arguments.instance("base", base, Model)
    arguments.whole("n_ctx", n_ctx, 16)
    if chunks is not None:
        arguments.whole("chunks", chunks, 1)
    for each in (model, base):
        if each is not None and each.n_ctx < n_ctx:
            trained = each.info.n_ctx_train
            advice = f"load it with ctx={n_ctx}" if n_ctx <= trained else f"it was trained for {trained}"
            raise ContextOverflow(
                f"contexts of {n_ctx} tokens do not fit the {each.n_ctx} of {each.info.path}: {advice}, or evaluate "
                "with a smaller ctx",
                needed=n_ctx,
                n_ctx=each.n_ctx,
            )
    tokens = model.encode(text, special=False)
    if base is not None:
        _check_same_vocabulary(model, base, text, tokens)
    total = len(tokens) // n_ctx
    if total < FEWEST:
        raise InvalidParameter(
            f"the text has {len(tokens)} tokens, and {FEWEST} contexts of {n_ctx} need {FEWEST * n_ctx}; use a longer "
            "text or a smaller ctx"
        )
    return _run(model, base, tokens, n_ctx, total if chunks is None else min(chunks, total))


def score_rows(logits: Logits, targets: NDArray[np.int64], base: Logits | None = None) -> Scores:
    """Score rows of logits: (n, n_vocab) float32 of the model and of the base, and the tokens that follow, (n,)."""
    rows = np.arange(len(logits))
    nothing = np.zeros(0)
    shifted, log_sum = _shift(logits)
    log_q = shifted[rows, targets] - log_sum
    if base is None:
        return Scores(-log_q, nothing, nothing, nothing, nothing)
    base_shifted, base_log_sum = _shift(base)
    log_p = base_shifted[rows, targets] - base_log_sum
    base_shifted_minus = base_shifted - shifted  # log p - log q, but for the log sums
    np.exp(base_shifted, out=base_shifted)
    kl = np.einsum("ij,ij->i", base_shifted, base_shifted_minus) / np.exp(base_log_sum) - base_log_sum + log_sum
    same_top = (logits.argmax(axis=1) == base.argmax(axis=1)).astype(np.float64)
    return Scores(-log_q, kl, np.exp(log_q) - np.exp(log_p), same_top, -log_p)


def summarize(scores: Scores, done: int, chunks: int) -> Evaluation:
    """The figures of all scored positions together."""
    plain = Evaluation(done, chunks, len(scores.nll), *_perplexity(scores.nll))
    if not len(scores.kl):
        return plain
    mean_kl, mean_kl_error = _mean(scores.kl)
    mean_square, mean_square_error = _mean(scores.delta_p**2)
    rms = math.sqrt(mean_square)
    agreement = float(scores.same_top.mean())
    base_perplexity, base_perplexity_error = _perplexity(scores.base_nll)
    return replace(
        plain,
        mean_kl=mean_kl,
        mean_kl_error=mean_kl_error,
        median_kl=float(np.median(scores.kl)),
        p999_kl=float(np.quantile(scores.kl, 0.999)),
        top1_agreement=agreement,
        top1_agreement_error=math.sqrt(agreement * (1 - agreement) / (plain.tokens - 1)),
        rms_delta_p=rms,
        rms_delta_p_error=0.5 / rms * mean_square_error if rms else 0.0,
        base_perplexity=base_perplexity,
        base_perplexity_error=base_perplexity_error,
    )


def _perplexity(nll: NDArray[np.float64]) -> tuple[float, float]:
    """And its standard error."""
    mean, error = _mean(nll)
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return perplexity, perplexity * error


def _run(model: Model, base: Model | None, tokens: list[int], n_ctx: int, chunks: int) -> Generator[Evaluation]:
    first_id = model.info.bos_id if model.encode("")[:1] == [model.info.bos_id] else None
    found: list[Scores] = []
    for chunk in range(chunks):
        context = tokens[chunk * n_ctx : (chunk + 1) * n_ctx]
        targets = np.array(context[n_ctx // 2 + 1 :])
        if first_id is not None:
            context[0] = first_id
        at = 0
        with closing(_side_by_side(model, base, context, n_ctx // 2)) as slices:
            for logits, base_logits in slices:
                n = min(len(logits), len(targets) - at)  # the last token of a context has none after it
                if n > 0:
                    found.append(
                        score_rows(logits[:n], targets[at : at + n], None if base_logits is None else base_logits[:n])
                    )
                at += n
        scores = Scores(*(np.concatenate([getattr(s, name) for s in found]) for name in Scores.__slots__))
        _check_finite(model, base, scores, chunk)
        found = [scores]
        yield summarize(scores, chunk + 1, chunks)


def _side_by_side(
    model: Model, base: Model | None, tokens: list[int], start: int
) -> Generator[tuple[Logits, Logits | None]]:
    """Rows of both models for the same positions, in blocks of BLOCK logits, from position `start` on."""
    streams = [each.logits(tokens, start=start) for each in (model, base) if each is not None]
    try:
        rows = [next(stream) for stream in streams]
        while n := min(max(1, BLOCK // rows[0].shape[1]), *map(len, rows)):
            yield rows[0][:n], None if base is None else rows[1][:n]
            rows = [_rest(each[n:], stream) for each, stream in zip(rows, streams, strict=True)]
    finally:
        for stream in streams:
            stream.close()


def _rest(rows: Logits, stream: Iterator[Logits]) -> Logits:
    """`rows`, or the next slice when there are none left; empty at the end."""
    return rows if len(rows) else next(stream, rows)


def _shift(logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits minus their row's largest, (n, n_vocab), and the log of the sum of their exponentials, (n,)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted, np.log(np.exp(shifted).sum(axis=1))


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values) - 1))


def _check_finite(model: Model, base: Model | None, scores: Scores, chunk: int) -> None:
    for values in (scores.nll, scores.kl):
        if not np.isfinite(values).all():
            paths = model.info.path if base is None else f"{model.info.path} or {base.info.path}"
            raise InvalidModelFile(
                f"{paths} computes logits that are not numbers (context {chunk + 1} of the text); its weights are "
                "damaged: fetch or convert it again"
            )


def _check_same_vocabulary(model: Model, base: Model, text: str, tokens: list[int]) -> None:
    """Sizes, the text of some tokens, and the encoding of the whole text."""
    names = f"{model.info.path} and {base.info.path}"
    advice = "compare a model with one that it was made from"
    n_vocab = model.info.n_vocab
    if n_vocab != base.info.n_vocab:
        raise InvalidParameter(f"{names} have vocabularies of {n_vocab} and {base.info.n_vocab} tokens; {advice}")
    for token in range(0, n_vocab, max(1, n_vocab // PROBES)):
        ours, theirs = (each.decode([token], special=True) for each in (model, base))
        if ours != theirs and ours and theirs:  # rows that pad a vocabulary have a made-up text in some formats
            raise InvalidParameter(f"token {token} is {ours!r} and {theirs!r} in {names}; {advice}")
    if tokens != base.encode(text, special=False):
        raise InvalidParameter(f"{names} cut the text into different tokens; {advice}")
