"""TextTokenizer: a tokenizer.json through the `tokenizers` package, which only this file imports.

Format: https://huggingface.co/docs/tokenizers (the Rust library's own serialization). What the files beside it add is
taken as transformers takes it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from edgellm.errors import BackendFailed, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.files import read_file
from edgellm.tokenizers.begin import begun
from edgellm.tokenizers.pieces import Spelling

MAX_BYTES = 256 << 20  # of a tokenizer.json; the largest known has 35 MB
INSIDE = -1  # see `edgellm.backends.base`
PROBES = ("a", "0", ".", "\u7684")  # texts of which a vocabulary writes one as itself
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


class TextTokenizer:
    """See `edgellm.backends.base.Tokenizer`. Made by `open_tokenizer`.

    n_vocab: ids that the model knows, the library's or more. bos_id, eos_id: what the file or its configuration name,
    None without one.
    """

    def __init__(self, library: Any, config: Mapping[str, Any], spelling: Spelling) -> None:
        self._library = library
        self._lock = threading.RLock()  # how control tokens are read is a setting of the library's object
        self._spelling = spelling
        added = self._added_tokens()
        # Without those that are looked for in the normalized text: they are written as words are, ▁ and all.
        self._added = {
            token: (each.content, each.special)
            for token, each in added
            if each.special or library.id_to_token(token) in (None, each.content)
        }
        self._pieces: dict[int, bytes] = {}
        self.n_vocab = max((library.get_vocab_size(), *(token + 1 for token, _ in added)))
        self.bos_id, self.eos_id = (self._id(config.get(name)) for name in ("bos_token", "eos_token"))
        self.begin, self.end = self._around()
        if config.get("add_bos_token") is True and self.bos_id is not None and self.bos_id not in self.begin:
            self.begin = (self.bos_id, *self.begin)
        if config.get("add_eos_token") is True and self.eos_id is not None and self.eos_id not in self.end:
            self.end = (*self.end, self.eos_id)
        self._first_lead, self._later_lead = self._leads()

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text is not valid Unicode: {error}") from error
        with self._lock:
            before = self._library.encode_special_tokens  # of a call that a signal handler has interrupted
            self._library.encode_special_tokens = not special
            try:
                tokens = self._ids(text)
            finally:
                self._library.encode_special_tokens = before
        return begun(tokens, self.begin if bos else (), lambda token: self.piece(token, special=True))

    def _ids(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is not an Exception
            raise BackendFailed(f"a text of {len(text)} characters cannot be tokenized: {str(error)[:200]}") from None
        return ids

    def joined(self, first: list[int], second: list[int]) -> tuple[list[int], int]:
        """See `edgellm.backends.base.Tokenizer`."""
        begin, middle, end, behind = self._pair
        if not middle:
            raise Unsupported("this tokenizer puts nothing between two texts, so that no model could tell them apart")
        tokens = [*begin, *first, *middle, *second, *end]
        return tokens, len(tokens) if behind is None else len(begin) + len(first) + behind

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise InvalidParameter(f"token {token} is outside the vocabulary of {self.n_vocab}")
        key = token if special else ~token
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._piece(token, special)
        if token in self._added:
            return piece
        if self._spelling.suffix:  # the space goes in front of the next word, where one is known to come
            if before == INSIDE:
                return piece + b" " if self._ends_word(token) else piece
            return b" " + piece if before is not None and self._ends_word(before) else piece
        if before is None or (before in self.begin and not special):
            return piece.removeprefix(self._first_lead)
        return piece.removeprefix(self._later_lead) if before in self._added else piece

    def widen(self, n_vocab: int) -> None:
        """The model has so many ids; those that the file does not know stand for nothing."""
        self.n_vocab = max(self.n_vocab, n_vocab)

    def id_of(self, token: str) -> int | None:
        """The id of a token's exact text."""
        return _id_of(self._library, token)

    @property
    def added(self) -> dict[str, int]:
        """The texts and ids of the tokens that no merging makes: control tokens and what a user defined."""
        return {added.content: token for token, added in self._added_tokens()}

    def marks(self, template: str) -> set[str]:
        """See `edgellm.backends.base.Tokenizer`."""
        added = [each for _, each in self._added_tokens()]
        return {each.content for each in added if each.special or (each.content.strip() and each.content in template)}

    def _piece(self, token: int, special: bool) -> bytes:
        added = self._added.get(token)
        if added is not None:
            content, control = added
            return b"" if control and not special else content.encode("utf-8", "replace")
        text = self._library.id_to_token(token)
        return b"" if text is None else self._spelling.spell(text)

    def _ends_word(self, token: int) -> bool:
        text = None if token in self._added else self._library.id_to_token(token)
        return text is not None and self._spelling.ends_word(text)

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the file puts in front of a text and behind it."""
        for probe in PROBES:
            made = self._library.encode(probe, add_special_tokens=True)
            mask: list[int] = made.special_tokens_mask
            if 0 in mask:
                first, last = mask.index(0), len(mask) - mask[::-1].index(0)
                return tuple(made.ids[:first]), tuple(made.ids[last:])
        return (), ()

    @cached_property
    def _pair(self) -> tuple[list[int], list[int], list[int], int | None]:
        """The tokens in front of two texts, between them and behind them, and how many of those between are of the
        first kind, None: all tokens are."""
        for probe in PROBES:
            made = self._library.encode(probe, probe, add_special_tokens=True)
            texts: list[int | None] = made.sequence_ids
            if {0, 1} <= set(texts):
                start, stop = texts.index(0), len(texts) - texts[::-1].index(0)
                again, last = texts.index(1), len(texts) - texts[::-1].index(1)
                kinds = made.type_ids[stop : again + 1]
                behind = kinds.index(1) if 1 in kinds else None
                return made.ids[:start], made.ids[stop:again], made.ids[last:], behind
        return [], [], [], None

    def _leads(self) -> tuple[bytes, bytes]:
        """What is written in front of a text, and of a part of it behind an added token."""
        first = _lead_of(self, "")
        for _, added in self._added_tokens():
            if not (added.single_word or added.rstrip or added.lstrip):
                return first, _lead_of(self, added.content)
        return first, first

    def _added_tokens(self) -> list[tuple[int, Any]]:
        return list(self._library.get_added_tokens_decoder().items())

    def _id(self, token: object) -> int | None:
        """The id of a token that a configuration names: its text, or an object with its content."""
        if isinstance(token, Mapping):
            token = token.get("content")
        return self.id_of(token) if isinstance(token, str) else None


def _lead_of(tokenizer: TextTokenizer, added: str) -> bytes:
    """What encoding writes in front of a text that follows an added token, "" for none."""
    skipped = 1 if added else 0
    for probe in PROBES:
        tokens = tokenizer.encode(added + probe, special=True)[skipped:]
        written = b"".join(tokenizer.piece(token, special=True) for token in tokens).rstrip(b" ")
        if tokens and written.endswith(probe.encode()):
            return written.removesuffix(probe.encode())
    return b""


def open_tokenizer(path: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer of a tokenizer.json. config: what tokenizer_config.json and special_tokens_map.json say, {} without
    them.

    Raises InvalidModelFile for a file that is damaged, Unsupported when the package is missing.
    """
    tokenizers = _package(str(path))
    try:
        raw = read_file(path, MAX_BYTES)
    except OSError as error:
        raise InvalidModelFile(f"{path}: cannot be read: {error.strerror}") from error
    with _checked(str(path)):
        text = raw.decode("utf-8")
        document = json.loads(text)
        library = tokenizers.Tokenizer.from_str(text)
    return _made(library, document, config, str(path))


def make_tokenizer(document: Mapping[str, Any], where: str) -> TextTokenizer:
    """The tokenizer that the object of a tokenizer.json describes, without writing and reading the text of it, which
    takes seconds where there are 260,000 tokens. `where` names its source in messages. Raises what `open_tokenizer`
    does.
    """
    tokenizers = _package(where)
    with _checked(where):
        model = dict(document["model"])
        kind, vocab = model.pop("type"), model.pop("vocab")
        if kind == "BPE":
            made = tokenizers.models.BPE(vocab, list(map(tuple, model.pop("merges"))), **model)
        else:
            prefix, longest = model.pop("continuing_subword_prefix"), model.pop("max_input_chars_per_word")
            made = tokenizers.models.WordPiece(
                vocab, continuing_subword_prefix=prefix, max_input_chars_per_word=longest, **model
            )
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        library = tokenizers.Tokenizer.from_str(json.dumps({**document, "added_tokens": [], "model": empty}))
        library.model = made
        added = [tokenizers.AddedToken(each["content"], **_flags(each)) for each in document["added_tokens"]]
        library.add_special_tokens([each for each in added if each.special])
        library.add_tokens([each for each in added if not each.special])
    return _made(library, document, {}, where)


def _package(where: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise Unsupported(
            f"{where}: reading it needs the package tokenizers, which does not load here ({error}); "
            "install it with: pip install tokenizers"
        ) from error
    return tokenizers


@contextmanager
def _checked(where: str) -> Iterator[None]:
    """What the library says of a file that is none, as InvalidModelFile."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        raise InvalidModelFile(f"{where}: no tokenizer: {str(error)[:200]}; fetch or write the file again") from None


def _made(library: Any, document: Mapping[str, Any], config: Mapping[str, Any], where: str) -> TextTokenizer:
    from tokenizers import AddedToken

    library.no_truncation()
    library.no_padding()
    _add_tokens(library, config, AddedToken, where)
    _spell_out(library, AddedToken)
    return TextTokenizer(library, config, Spelling(document, library, where))


def _add_tokens(library: Any, config: Mapping[str, Any], make: Any, where: str) -> None:
    """Tokens that the configuration knows to be added or special and tokenizer.json does not. A token keeps the id that
    tokenizer.json gives it; none is made up for one that has no id."""
    known = {added.content: added for added in library.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    try:
        entries = sorted((int(token), entry["content"], entry) for token, entry in listed.items())
        for token, content, entry in entries:
            added = make(content, **_flags(entry))
            if content in known:
                if repr(known[content]) == repr(added):
                    continue
                added.special = added.special or known[content].special
            if library.token_to_id(content) is not None or token == library.get_vocab_size():
                (library.add_special_tokens if added.special else library.add_tokens)([added])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidModelFile(f"{where}: added_tokens_decoder of tokenizer_config.json is damaged: {error}") from None
    others = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    named = [config.get(name) for name in NAMED] + (list(others) if isinstance(others, list) else [])
    known = {added.content: added for added in library.get_added_tokens_decoder().values()}
    for each in named:
        text = each.get("content") if isinstance(each, Mapping) else each
        if not isinstance(text, str) or (text in known and known[text].special) or _id_of(library, text) is None:
            continue
        flags = _flags(each) if isinstance(each, Mapping) else {"normalized": False}
        library.add_special_tokens([make(text, **{**flags, "special": True})])


def _spell_out(library: Any, make: Any) -> None:
    """Have control tokens looked for in the text itself and not in what a normalizer makes of it, where that leaves
    their own texts alone: else one in capitals, or in wide characters, would be a control token that nobody wrote."""
    normalizer = library.normalizer
    for added in library.get_added_tokens_decoder().values() if normalizer is not None else ():
        if added.special and added.normalized and normalizer.normalize_str(added.content) == added.content:
            flags = {flag: getattr(added, flag) for flag in FLAGS}
            library.add_special_tokens([make(added.content, **{**flags, "normalized": False})])


def _id_of(library: Any, text: str) -> int | None:
    try:
        found: int | None = library.token_to_id(text)
    except UnicodeEncodeError:  # half of a surrogate pair is in it, so no token is called so
        return None
    return found


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: entry[flag] for flag in FLAGS if isinstance(entry.get(flag), bool)}
