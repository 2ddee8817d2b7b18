"""The pre-tokenizer: which regular expressions cut a text before byte-level BPE, and llama.cpp's name for them.

`tokenizer.json` describes it as a tree of steps; llama.cpp has a list of regexes per `tokenizer.ggml.pre` (its
src/llama-vocab.cpp). Both are brought to one form, a tuple of regexes each of which isolates its matches in what the
one before it left, and compared there: no vocabulary, no hash of ids. Spellings that mean the same are made the same
first: contractions written case by case or with (?i:), possessive quantifiers where nothing could be given back, a
digit written {1}, and a run of line ends behind spaces that take them anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellm.errors import InvalidModelFile, Unsupported

__all__ = ["ignores_merges", "recognise", "splits"]

_DIGIT, _DIGITS, _TRIPLE = r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # Unicode's and ASCII's
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
_NO_SPACE = r" ?[^\s\p{L}\p{N}]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LLAMA3 = _WORDS + r"\p{N}{1,3}|" + _NO_SPACE + r"[\r\n]*" + _SPACES
_QWEN2 = _WORDS + r"\p{N}|" + _NO_SPACE + r"[\r\n]*" + _SPACES
_QWEN35 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_SEED = _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
_TEKKEN = _CASED % ("", "") + r"\p{N}|" + _NO_SPACE + r"[\r\n/]*" + _SPACES
_GPT4O = _CASED % (_ENDINGS + "?", _ENDINGS + "?") + r"\p{N}{1,3}|" + _NO_SPACE + r"[\r\n/]*" + _SPACES
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES
)
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_MORE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"  # the ranges of DeepSeek's tokenizer.json
_FULLWIDTH = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_CASED_SCRIPTS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-"
    "\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113"
    "\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-"
    "\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0"
    "-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)

# llama.cpp's name -> its regexes; of several names for the same regexes, the one that recognise() gives stands here
_SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (_DIGIT, _GPT2),
    "llama-bpe": (_LLAMA3,),
    "dbrx": (_LLAMA3,),  # llama-bpe without ignore_merges
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "seed-coder": (_SEED,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
    "falcon": (_PUNCTUATION, _GPT2, _TRIPLE),
    "deepseek-llm": (r"[\r\n]", _CASED_SCRIPTS, _FULLWIDTH, r"\s+$", _HAN_AND_MORE, _DIGITS),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_MORE, _DIGIT),
    "deepseek-v3": (r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, _DIGITS, _TRIPLE),
}
_SAME = {
    "gpt-2": "phi-2 mpt olmo jais trillion granite-docling exaone4 mellum modern-bert gigachat",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 glm4",
    "dbrx": "smaug-bpe chatglm-bpe",
    "qwen2": "stablelm2 hunyuan megrez deepseek-r1-qwen kormo grok-2 bailingmoe bailingmoe2 llada-moe",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
}
_CANONICAL = {other: name for name, others in _SAME.items() for other in others.split()} | {
    name: name for name in _SPLITS
}
_IGNORING = {"llama-bpe", "tekken"}  # a piece that is a token is that token, whatever its merges would give

# what the tokenizer.json of these models says, where llama.cpp cuts with other regexes to the same ids
_ALSO = {
    (_PUNCTUATION, _GPT2, _DIGITS, _TRIPLE): "falcon",
    (r"[\r\n]", _CASED_SCRIPTS, _FULLWIDTH, r"\s+$", _HAN_AND_MORE, _DIGIT): "deepseek-llm",
}


def recognise(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool, clean_up_spaces: bool = False) -> str:
    """llama.cpp's `tokenizer.ggml.pre` for the `pre_tokenizer` of a byte-level tokenizer.json.

    ignore_merges is the model's flag of that name; llama.cpp has it only together with some of the names.
    clean_up_spaces (`clean_up_tokenization_spaces`) tells names apart that split alike and join differently.

    Raises Unsupported for a pre-tokenizer that no name stands for.
    """
    steps = tuple(_canonical(step) for step in _steps(pre_tokenizer))
    if steps == (_LLAMA3,):
        return "llama-bpe" if ignore_merges else "dbrx"
    if steps == (_DIGIT, _GPT2) and clean_up_spaces:
        return "starcoder"
    found = _ALSO.get(steps) or next((name for name, known in _SPLITS.items() if known == steps), None)
    if found is None:
        shown = "; ".join(steps) or "no regex at all"
        raise Unsupported(
            f"llama.cpp's name for this pre-tokenizer is not known: {shown}; if you know which of llama.cpp's "
            f"pre-tokenizers splits like it, say so with --pre NAME (known here: {', '.join(_SPLITS)})"
        )
    return found


def splits(pre: str) -> tuple[str, ...]:
    """The regexes behind one of llama.cpp's names, as tokenizer.json writes them. Raises Unsupported."""
    if pre not in _CANONICAL:
        raise Unsupported(
            f"the pre-tokenizer {pre!r} cannot be written to a tokenizer.json; known: {', '.join(sorted(_CANONICAL))}"
        )
    return _SPLITS[_CANONICAL[pre]]


def ignores_merges(pre: str) -> bool:
    """Whether llama.cpp takes a piece that is a token as it is, under this name."""
    return _CANONICAL.get(pre) in _IGNORING


def _steps(node: Mapping[str, Any] | None) -> list[str]:
    """The regexes of a pre-tokenizer, in order; each isolates its matches."""
    if node is None:
        return []
    kind = node.get("type")
    if kind == "Sequence":
        return [step for part in node.get("pretokenizers", []) for step in _steps(part)]
    if kind == "ByteLevel":
        if node.get("add_prefix_space", True):
            raise Unsupported(
                "this byte-level tokenizer puts a space before every text (add_prefix_space), llama.cpp cannot"
            )
        return [_GPT2] if node.get("use_regex", True) else []
    if kind == "Digits":
        return [_DIGIT if node.get("individual_digits") else _DIGITS]
    if kind == "Punctuation" and node.get("behavior") == "Contiguous":
        return [_PUNCTUATION]
    if kind == "Split":
        pattern = node.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        # Removed and inverted keeps the matches alone, which is the same for a regex that leaves nothing out
        if (node.get("behavior"), bool(node.get("invert"))) in (("Isolated", False), ("Removed", True)):
            if isinstance(regex, str):
                return [regex]
            if isinstance(pattern, Mapping) and isinstance(pattern.get("String"), str):
                return [re.escape(pattern["String"])]
    if not isinstance(kind, str):
        raise InvalidModelFile(f"tokenizer.json: a pre-tokenizer without a type: {str(dict(node))[:200]}")
    raise Unsupported(
        f"tokenizer.json: llama.cpp has no pre-tokenizer like {str(dict(node))[:300]}; choose one with --pre NAME"
    )


_ENDINGS_WRITTEN = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
)


def _canonical(regex: str) -> str:
    """The spelling of a regex that is compared."""
    text = regex.replace("\r", r"\r").replace("\n", r"\n").replace(r"\/", "/")
    for written in _ENDINGS_WRITTEN:
        text = text.replace(written, _ENDINGS)
    text = re.sub(r"(?<!\\)([?+])\+", r"\1", text)
    text = text.replace("{1}", "").replace(r"|\s*[\r\n]+|", r"|\s*[\r\n]|")
    return text + r"|\s+" if text.endswith(r"|\s+(?!\S)") else text
