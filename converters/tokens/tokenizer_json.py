"""tokenizer.json: its model, normalizer, pre-tokenizer and post-processor, as far as llama.cpp can do the same.

Three kinds are read: byte-level BPE; BPE over ▁-text with byte fallback, which mostly is a SentencePiece vocabulary
whose scores became an order of merges; and WordPiece. The format is that of the `tokenizers` library
(https://huggingface.co/docs/tokenizers/api/tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.tokenizers.pre import ignores_merges, recognise
from edgellm.tokenizers.vocabulary import SPACE, BaseVocabulary, TokenType

UNMERGED = -1e6  # the score of a token that no merge makes
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def read_tokenizer_json(document: Mapping[str, Any], *, pre: str | None, clean_up_spaces: bool) -> BaseVocabulary:
    """The base vocabulary of a parsed tokenizer.json; pre overrides the recognised pre-tokenizer of byte-level BPE.

    Raises Unsupported for what llama.cpp cannot do, InvalidModelFile for tokens and merges that do not fit together.
    """
    model = document.get("model")
    if not isinstance(model, Mapping):
        raise _damaged("there is no 'model'")
    kind = model.get("type", "BPE" if "merges" in model else None)
    vocabulary = model.get("vocab")
    if kind not in ("BPE", "WordPiece"):
        raise _unsupported(f"a {kind} model; BPE and WordPiece can be converted")
    if not isinstance(vocabulary, dict) or not all(type(n) is int and n >= 0 for n in vocabulary.values()):
        raise _damaged("model.vocab does not map tokens to ids")
    tokens = {number: text for text, number in vocabulary.items()}
    if len(tokens) != len(vocabulary):
        raise _damaged("two tokens have the same id")
    if kind == "WordPiece":
        return _wordpiece(document, model, tokens)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unsupported("BPE with marked word parts or word ends, which llama.cpp does not have")
    merges = list(_merges(model.get("merges") or [], vocabulary))
    steps = [*_nodes(document.get("pre_tokenizer")), *_nodes(document.get("decoder"))]
    if any(node.get("type") == "ByteLevel" for node in steps):
        return _byte_level(document, model, tokens, merges, pre, clean_up_spaces)
    if model.get("byte_fallback"):
        return _sentencepiece(document, model, tokens, merges)
    raise _unsupported("BPE that is neither byte-level nor falls back to bytes, which llama.cpp cannot do")


def surroundings(document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The special tokens, as strings, that the post-processor puts before and after a single text."""
    before: list[str] = []
    after: list[str] = []
    for node in _nodes(document.get("post_processor")):
        kind = node.get("type")
        if kind == "TemplateProcessing":
            target = before
            for item in node.get("single", []):
                if "Sequence" in item:
                    target = after
                elif "SpecialToken" in item:
                    target.append(str(item["SpecialToken"].get("id")))
        elif kind in ("RobertaProcessing", "BertProcessing"):
            before.append(str(node["cls"][0]))
            after.append(str(node["sep"][0]))
        elif kind != "ByteLevel":
            raise _unsupported(f"the post-processor {kind!r} is not known")
    return before, after


def _byte_level(
    document: Mapping[str, Any],
    model: Mapping[str, Any],
    tokens: dict[int, str],
    merges: list[tuple[str, str]],
    pre: str | None,
    clean_up_spaces: bool,
) -> BaseVocabulary:
    notes = []
    for node in _nodes(document.get("normalizer")):
        if node.get("type") not in _UNICODE_FORMS:
            raise _unsupported(f"the normalizer {_shown(node)} changes texts, llama.cpp's gpt2 vocabulary cannot")
        notes.append(
            f"texts are brought to Unicode {node['type']} first by the tokenizer, llama.cpp takes them as they are"
        )
    ignore = bool(model.get("ignore_merges"))
    if pre is None:
        pre = recognise(document.get("pre_tokenizer"), ignore_merges=ignore, clean_up_spaces=clean_up_spaces)
    if ignore and not ignores_merges(pre):
        notes.append(f"the tokenizer takes a piece that is a token as it is, llama.cpp merges it up under {pre!r}")
    if ignores_merges(pre) and not ignore:
        notes.append(f"the tokenizer merges every piece up, llama.cpp takes one that is a token as it is under {pre!r}")
    types = dict.fromkeys(tokens, int(TokenType.NORMAL))
    return BaseVocabulary(
        "gpt2", tokens, types, pre=pre, merges=[f"{left} {right}" for left, right in merges], notes=notes
    )


def _sentencepiece(
    document: Mapping[str, Any], model: Mapping[str, Any], tokens: dict[int, str], merges: list[tuple[str, str]]
) -> BaseVocabulary:
    unknown = model.get("unk_token")
    types = dict.fromkeys(tokens, int(TokenType.NORMAL))
    special = {}
    for number, text in tokens.items():
        if _BYTE.fullmatch(text):
            types[number] = int(TokenType.BYTE)
        elif text == unknown:
            types[number] = int(TokenType.UNKNOWN)
            special["unk"] = number
    prefix, notes = _spaces(document, tokens)
    added = {str(token.get("content")) for token in document.get("added_tokens") or []}
    try:
        scores = _scores(tokens, types, merges, added)
    except _NotSentencePieceError as why:
        return _ranked(BaseVocabulary("gemma4", tokens, types, pre="gemma4", special=special), merges, prefix, str(why))
    return BaseVocabulary("llama", tokens, types, scores=scores, special=special, add_space_prefix=prefix, notes=notes)


class _NotSentencePieceError(Exception):
    """The merges do not follow from scores."""


def _ranked(base: BaseVocabulary, merges: list[tuple[str, str]], prefix: bool, why: str) -> BaseVocabulary:
    """llama.cpp's gemma4 vocabulary keeps the merges, but cuts at line ends and puts no space in front."""
    crossing = next((pair for pair in merges if "\n" in "".join(pair) and set("".join(pair)) != {"\n"}), None)
    if prefix or crossing is not None:
        raise _unsupported(
            "BPE with byte fallback that llama.cpp cannot do: it is no SentencePiece vocabulary, as "
            f"{why}, and {f'it merges {crossing} across a line end' if crossing else 'a space is put before a text'}"
        )
    base.merges = [f"{left} {right}" for left, right in merges]
    return base


def _spaces(document: Mapping[str, Any], tokens: Mapping[int, str]) -> tuple[bool, list[str]]:
    """Whether a space is put in front of a text, after checking that spaces become ▁ and nothing else happens."""
    prefix, replaced, notes = False, False, []
    for node in _nodes(document.get("normalizer")):
        if node.get("type") == "Prepend" and node.get("prepend") == SPACE:
            prefix = True
        elif node.get("type") == "Replace" and node.get("pattern") == {"String": " "} and node.get("content") == SPACE:
            replaced = True
        else:
            raise _unsupported(f"llama.cpp's llama vocabulary cannot do the normalizer {_shown(node)}")
    for node in _nodes(document.get("pre_tokenizer")):
        if node.get("type") == "Metaspace" and node.get("replacement", SPACE) == SPACE:
            scheme = node.get("prepend_scheme", "always" if node.get("add_prefix_space", True) else "never")
            prefix, replaced = prefix or scheme != "never", True
            if node.get("split", True) and any(SPACE in text[1:] for text in tokens.values()):
                raise _unsupported("texts are cut at every space though tokens hold several, llama.cpp cannot")
            if scheme == "first":
                notes.append("the tokenizer puts a space before a text only, llama.cpp also behind each special token")
            if scheme != "never":
                notes.append("the tokenizer puts no second space before a text that starts with one, llama.cpp does")
        elif node.get("type") == "Split" and replaced and node.get("pattern") == {"String": " "}:
            continue  # no space is left to cut at
        else:
            raise _unsupported(f"llama.cpp's llama vocabulary cannot do the pre-tokenizer {_shown(node)}")
    if not replaced:
        raise _unsupported("falls back to bytes but writes no ▁ for a space, which llama.cpp cannot do")
    return prefix, notes


def _scores(
    tokens: Mapping[int, str], types: Mapping[int, int], merges: list[tuple[str, str]], added: set[str]
) -> dict[int, float]:
    """SentencePiece scores with which llama.cpp merges in the same order: minus the rank of a token among the results.

    llama.cpp joins two neighbours whenever the whole is a token, best score first, so the merges must say the same:
    every way to cut a token in two tokens is one, and those of a token stand together. So it is in files that were made
    from a SentencePiece model. (Two cuts of one token that overlap, as ab|a|ba, may still be taken otherwise.)
    """
    plain = {text for number, text in tokens.items() if types[number] == TokenType.NORMAL and text not in added}
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        whole = left + right
        if whole in plain and whole != last:
            if whole in ranks:
                raise _NotSentencePieceError(f"the merges that give {whole!r} do not stand together")
            last, ranks[whole] = whole, len(ranks)
    known = set(merges)
    for whole in plain:
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in plain and right in plain and (left, right) not in known:
                raise _NotSentencePieceError(f"{left!r} and {right!r} make {whole!r}, but there is no such merge")
    return {number: float(-ranks[text]) if text in ranks else UNMERGED for number, text in tokens.items()}


def _wordpiece(document: Mapping[str, Any], model: Mapping[str, Any], tokens: dict[int, str]) -> BaseVocabulary:
    if model.get("continuing_subword_prefix", "##") != "##":
        raise _unsupported("WordPiece whose word parts do not start with ##, which llama.cpp cannot do")
    normalizers = list(_nodes(document.get("normalizer")))
    if len(normalizers) != 1 or normalizers[0].get("type") != "BertNormalizer":
        raise _unsupported("WordPiece without BERT's normalizer, which llama.cpp always applies")
    normalizer = normalizers[0]
    if not normalizer.get("clean_text", True) or not normalizer.get("handle_chinese_chars", True):
        raise _unsupported(f"llama.cpp always cleans texts and cuts Chinese, not so {_shown(normalizer)}")
    if [node.get("type") for node in _nodes(document.get("pre_tokenizer"))] != ["BertPreTokenizer"]:
        raise _unsupported("WordPiece without BERT's pre-tokenizer, which llama.cpp always applies")
    for name in ("lowercase", "strip_accents"):
        if not isinstance(normalizer.get(name), (bool, NoneType)):
            raise _damaged(f"normalizer: {name} is {_shown(normalizer[name])}, not true or false")
    lowercase = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    index = {text: number for number, text in tokens.items()}
    special = {"unk": index[model["unk_token"]]} if model.get("unk_token") in index else {}
    types = dict.fromkeys(tokens, int(TokenType.NORMAL))
    return BaseVocabulary(
        "bert", tokens, types, special=special, lowercase=lowercase, strip_accents=lowercase if strip is None else strip
    )


def _merges(listed: list[Any], vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Merges as pairs; they are stored as "a b" or, newer, as [a, b]. A space inside a piece is written Ġ."""
    for item in listed:
        pair = item.split(" ") if isinstance(item, str) else item
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise _damaged(f"{str(item)[:80]!r} is not a merge of two pieces")
        left, right = pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise _damaged(f"the merge {item!r} is not of tokens")
        yield left.replace(" ", "Ġ"), right.replace(" ", "Ġ")


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """The leaves of a tree of Sequence nodes, in order."""
    if node is None:
        return
    if not isinstance(node, Mapping):
        raise _damaged(f"{_shown(node)} where a step belongs")
    if node.get("type") == "Sequence":
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            for child in node.get(name) or []:
                yield from _nodes(child)
    else:
        yield node


def _shown(node: object) -> str:
    return str(dict(node) if isinstance(node, Mapping) else node)[:200]


def _unsupported(what: str) -> Unsupported:
    return Unsupported(f"tokenizer.json: {what}")


def _damaged(what: str) -> InvalidModelFile:
    return InvalidModelFile(f"tokenizer.json: {what}; fetch the file again")
