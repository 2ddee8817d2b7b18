"""What a backend says of itself holds, and its tokenizer gives back what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_cases import Case, feed, prompt

import edgellm
from edgellm.backends import inspect
from edgellm.backends.base import Backend
from edgellm.errors import InvalidParameter, Unsupported


def test_the_numbers_agree(opened: Backend) -> None:
    info = opened.info
    assert 16 <= opened.n_ctx <= info.n_ctx_train
    assert opened.micro_batch % 4 == 0
    assert opened.micro_batch > 0
    assert 8 <= opened.max_rows <= opened.micro_batch
    assert opened.max_sequences >= 2
    assert opened.threads >= 1
    assert opened.state_key
    assert info.fingerprint
    assert info.stop_ids <= set(range(info.n_vocab))
    for token in (info.bos_id, info.eos_id):
        assert token is None or 0 <= token < info.n_vocab
    assert info.kv_bytes_per_token >= 0


def test_what_is_known_before_opening_is_what_is_known_after(case: Case, path: Path, opened: Backend) -> None:
    if opened.name == "echo":
        pytest.skip("it has no file")
    before, after = inspect(path), opened.info
    for name in (
        "architecture",
        "fingerprint",
        "n_ctx_train",
        "n_embd",
        "n_layer",
        "can_embed",
        "can_rerank",
        "n_vocab",
    ):
        assert getattr(before, name) == getattr(after, name), name


def test_every_token_has_bytes(opened: Backend) -> None:
    tokenizer, n_vocab = opened.tokenizer, opened.info.n_vocab
    shown = [tokenizer.piece(token, special=True) for token in range(n_vocab)]
    assert all(isinstance(piece, bytes) for piece in shown)
    assert any(shown)
    for token in opened.info.stop_ids:
        assert tokenizer.piece(token) == b""
    for outside in (-1, n_vocab):
        with pytest.raises(InvalidParameter):
            tokenizer.piece(outside)


def test_a_text_comes_back(case: Case, opened: Backend) -> None:
    tokenizer = opened.tokenizer
    assert tokenizer.encode("") == []
    if case.text is not None:
        tokens = tokenizer.encode(case.text)
        assert b"".join(map(tokenizer.piece, tokens)).decode() == case.text
        assert max(tokens) < opened.info.n_vocab
    with pytest.raises(InvalidParameter):
        tokenizer.encode("\ud800")


def test_verbs_that_it_has_not_are_refused(case: Case, path: Path, opened: Backend) -> None:
    assert (opened.info.can_embed, opened.info.can_generate) == (case.embeds, case.generates)
    if not case.embeds:
        with pytest.raises(Unsupported):
            opened.embed([[5, 6]])
    if case.generates:
        sequence = opened.new_sequence()
        assert np.isfinite(feed(opened, sequence, prompt(20))).all()
        sequence.close()
        return
    with pytest.raises(Unsupported, match="embed"):
        opened.new_sequence()
    with edgellm.load(path, case.params) as model:
        uses = (model.generate, model.stream, model.score, model.logits, model.chat)
        for use in uses:
            with pytest.raises(Unsupported, match=r"is an encoder.*model\.embed"):
                use(prompt(9))  # type: ignore[operator]
        with pytest.raises(Unsupported, match="is an encoder"):
            model.load_chat(path)
        assert model.embed([prompt(9)]).shape == (1, model.info.n_embd)
