"""read_huggingface: the tokenizer of a Hugging Face folder, from all the files that have a say in it.

tokenizer.json | tokenizer.model                   tokens, merges or scores            (tokenizer_json, sentencepiece)
… added_tokens, added_tokens_decoder, added_tokens.json                                 control and user-defined tokens
tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json     special ids
chat_template.jinja > tokenizer_config.json > chat_template.json; additional_chat_templates/NAME.jinja
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.files import regular
from edgellm.formats.confined import file_in
from edgellm.formats.reading import reading
from edgellm.tokenizers.vocabulary import DEFAULT_TEMPLATE, MATCHED, SPACE, BaseVocabulary, TokenType, Vocabulary

from .sentencepiece import read_sentencepiece
from .tokenizer_json import UNMERGED, read_tokenizer_json, surroundings

_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class _Added:
    content: str
    special: bool
    lstrip: bool
    rstrip: bool


def read_huggingface(folder: Path, n_vocab: int, *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a folder, with [PADn] up to n_vocab, the number of rows that the model's embedding has.

    pre: llama.cpp's name of the pre-tokenizer of a byte-level tokenizer, instead of the one its structure shows.

    Raises Unsupported for a tokenizer that llama.cpp cannot do, InvalidModelFile for missing or damaged files and
    for more tokens than n_vocab. Added tokens beyond n_vocab, which the model cannot read, are left out with a note.
    """
    try:
        vocabulary = _read(Path(folder), n_vocab, pre)
        "".join([*vocabulary.tokens, *vocabulary.chat_templates.values()]).encode()
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeEncodeError) as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise InvalidModelFile(f"{folder}: tokenizer files of an unknown form ({what}); fetch them again") from error
    return vocabulary


def _read(folder: Path, n_vocab: int, pre: str | None) -> Vocabulary:
    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    document = _json(folder / "tokenizer.json")
    if document:
        clean = bool(config.get("clean_up_tokenization_spaces"))
        base = read_tokenizer_json(document, pre=pre, clean_up_spaces=clean)
    elif _there(folder / "tokenizer.model"):
        base = read_sentencepiece(folder / "tokenizer.model")
    else:
        raise InvalidModelFile(
            f"{folder}: neither tokenizer.json nor tokenizer.model; fetch one of them with the model"
        )
    added = _added(folder, document, config)
    _add_tokens(base, added, n_vocab)
    index = {text: number for number, text in base.tokens.items()}
    add_bos, add_eos = _special(base, folder, document, config, index)
    tokens, types = _pad(base, n_vocab)
    model_config = _json(folder / "config.json")
    segments = model_config.get("type_vocab_size", 2 if model_config.get("model_type") == "bert" else 1)
    return Vocabulary(
        model=base.model,
        pre=base.pre,
        tokens=tokens,
        types=types,
        scores=None if base.scores is None else [base.scores.get(number, UNMERGED) for number in range(n_vocab)],
        merges=base.merges,
        special=base.special,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=base.add_space_prefix,
        rstrip=tuple(sorted(number for number, token in added.items() if token.rstrip and number < n_vocab)),
        lowercase=base.lowercase,
        strip_accents=base.strip_accents,
        token_type_count=segments if base.model == "bert" else None,
        chat_templates=_templates(folder, config),
        notes=tuple(base.notes),
    )


def _added(folder: Path, document: Mapping[str, Any], config: Mapping[str, Any]) -> dict[int, _Added]:
    """The added tokens of all files by id; tokenizer.json's word counts before the older files'."""
    found: dict[int, _Added] = {}
    listed = [
        *((number, {"content": text}) for text, number in _json(folder / "added_tokens.json").items()),
        *((number, token) for number, token in (config.get("added_tokens_decoder") or {}).items()),
        *((token.get("id"), token) for token in document.get("added_tokens") or []),
    ]
    for number, token in listed:
        content = token.get("content") if isinstance(token, Mapping) else None
        if not str(number).isdecimal() or not isinstance(content, str) or not content:
            raise InvalidModelFile(f"{folder}: an added token without id and content: {number}: {str(token)[:120]}")
        special, lstrip, rstrip = (bool(token.get(flag)) for flag in ("special", "lstrip", "rstrip"))
        found[int(number)] = _Added(content, special, lstrip, rstrip)
    return found


def _add_tokens(base: BaseVocabulary, added: Mapping[int, _Added], n_vocab: int) -> None:
    beyond = [token.content for number, token in added.items() if number >= n_vocab]
    if beyond:
        names = ", ".join(map(repr, beyond[:5]))
        base.notes.append(
            f"{len(beyond)} added tokens ({names}) have ids beyond the model's {n_vocab} and are left out"
        )
    if stripping := [token.content for token in added.values() if token.lstrip or token.rstrip]:
        names = ", ".join(map(repr, stripping[:5]))
        base.notes.append(
            f"the tokenizer drops spaces beside {len(stripping)} added tokens ({names}), llama.cpp only behind "
            "those of a model that is named phi-3"
        )
    for number, token in added.items():
        if number >= n_vocab:
            base.tokens.pop(number, None)
            continue
        if token.special or _looks_special(token.content):
            if base.types.get(number) != TokenType.UNKNOWN:
                base.types[number] = int(TokenType.CONTROL)
        else:
            base.types[number] = int(TokenType.USER_DEFINED)
        base.tokens[number] = token.content
        if base.scores is not None and number not in base.scores:
            base.scores[number] = UNMERGED


def _looks_special(text: str) -> bool:
    """Whether an added token is a control token by its looks: many checkpoints do not mark theirs."""
    framed = any(text.startswith(start) and text.endswith(end) for start, end in (("<|", "|>"), ("<｜", "｜>")))
    return framed or text in ("<pad>", "<mask>") or (text.startswith("<unused") and text.endswith(">"))


def _special(
    base: BaseVocabulary, folder: Path, document: Mapping[str, Any], config: Mapping[str, Any], index: Mapping[str, int]
) -> tuple[bool, bool]:
    """Fill base.special; whether bos and eos are added to a text."""
    fallback, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    for name in _NAMES:
        text = config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, Mapping) else text
        number = index.get(text) if isinstance(text, str) else None
        if number is not None:
            base.special[name] = number
            if base.types[number] == TokenType.NORMAL:
                base.types[number] = int(TokenType.CONTROL)
        elif name not in base.special:
            known = _ids(fallback.get(f"{name}_token_id"), base)
            base.special |= {name: known[0]} if known else {}
    before, after = surroundings(document)
    if not document and "bos" in base.special:  # tokenizer.model says nothing; what uses it adds bos
        before = [base.tokens[base.special["bos"]]]
    for name, texts in (("bos", before), ("eos", after)):
        if texts and texts[0] in index and (name not in base.special or base.model == "bert"):
            base.special[name] = index[texts[0]]
        if len(texts) > 1 or (texts and index.get(texts[0]) != base.special.get(name)):
            base.notes.append(
                f"the tokenizer adds {' '.join(texts)} to a text; llama.cpp can add only its {name} token there"
            )
    if base.model == "bert":
        base.special.setdefault("cls", base.special.get("bos", -1))
        base.special.setdefault("sep", base.special.get("eos", -1))
        if min(base.special.values()) < 0:
            raise Unsupported(
                f"{folder}: a WordPiece tokenizer that adds no [CLS] and [SEP], which llama.cpp always does"
            )
    ends = _ids(generation.get("eos_token_id"), base) or _ids(fallback.get("eos_token_id"), base)
    _ends(base, ends)
    add = {name: config.get(f"add_{name}_token") for name in ("bos", "eos")}
    add_bos, add_eos = (
        name in base.special and (bool(texts) if add[name] is None else bool(add[name]))
        for name, texts in (("bos", before), ("eos", after))
    )
    return add_bos, add_eos


def _ends(base: BaseVocabulary, ends: list[int]) -> None:
    """The ids that end an answer, beyond eos, become eom (by its name) and eot."""
    if ends:
        base.special.setdefault("eos", ends[0])
    rest = [number for number in ends if number != base.special["eos"]]
    for number in rest:
        name = "eom" if base.tokens[number] == "<|eom_id|>" else "eot"
        if name in base.special:
            base.notes.append(
                f"the answer also ends at {base.tokens[number]!r}; a GGUF file names three such tokens at most"
            )
        base.special.setdefault(name, number)


def _ids(value: Any, base: BaseVocabulary) -> list[int]:
    """The token ids in a setting that is an id, a list of ids or nothing; others than tokens are left out."""
    listed = value if isinstance(value, list) else [value]
    return [number for number in listed if type(number) is int and number in base.tokens]


def _pad(base: BaseVocabulary, n_vocab: int) -> tuple[list[str], list[int]]:
    """Tokens and types by id, in the form that llama.cpp stores."""
    largest = max(base.tokens, default=-1)
    if largest >= n_vocab:
        raise InvalidModelFile(
            f"the tokenizer has {largest + 1} tokens, the model's embedding {n_vocab} rows; they do not belong together"
        )
    tokens, types = [], []
    for number in range(n_vocab):
        text = base.tokens.get(number)
        kind = base.types.get(number, int(TokenType.UNUSED))
        if text is None or (text == f"[PAD{number}]" and kind == TokenType.NORMAL):  # by an earlier conversion
            text, kind = f"[PAD{number}]", int(TokenType.UNUSED)
        if base.model == "llama" and kind == TokenType.USER_DEFINED:
            text = text.replace(SPACE, " ")  # it is looked for before spaces become ▁
        if base.model == "bert" and kind not in MATCHED:
            text = text[2:] if text.startswith("##") else SPACE + text
        tokens.append(text)
        types.append(kind)
    if len(set(tokens)) != n_vocab:
        twice = Counter(tokens).most_common(1)[0][0]
        raise InvalidModelFile(f"the token {twice!r} has two ids, which llama.cpp refuses; fetch the tokenizer again")
    return tokens, types


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in (_json(folder / "chat_template.json"), config):
        value = source.get("chat_template")
        if isinstance(value, str):
            found[DEFAULT_TEMPLATE] = value
        elif isinstance(value, list):
            for item in value:
                if not isinstance(item, Mapping) or not all(isinstance(item.get(k), str) for k in ("name", "template")):
                    raise InvalidModelFile(
                        f"{folder}: a chat template without name and text; fetch the tokenizer again"
                    )
                found[item["name"]] = item["template"]
        elif value is not None:
            raise InvalidModelFile(f"{folder}: chat_template is neither a text nor a list; fetch the tokenizer again")
    default = folder / "chat_template.jinja"
    if _there(default):
        found[DEFAULT_TEMPLATE] = _text(default)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def _there(path: Path) -> bool:
    """Whether a file is there. Raises ModelNotFound for a link to none: it was not fetched; and InvalidModelFile for
    what is no file, which would count as missing."""
    if (found := file_in(path.parent, path.name)).exists() and not found.is_file():
        raise InvalidModelFile(f"{path}: not a regular file; put the file itself there")
    return found.is_file()


def _text(path: Path) -> str:
    try:
        with reading(path), open(path, encoding="utf-8", opener=regular) as file:
            return file.read()
    except UnicodeDecodeError:
        raise InvalidModelFile(f"{path}: not UTF-8 text; fetch it again") from None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    if not _there(path):
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{path}: holds no JSON object; fetch it again")
    return value
