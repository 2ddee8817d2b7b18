"""llguidance: the one place that imports it. Grammars over the tokens of a vocabulary, with limits on what they cost.

It raises nothing and says what went wrong only if asked, so everything here asks. A grammar that is refused, or whose
tokens take too much to be found, is an error in words.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgellm.backends.base import ModelInfo, Tokenizer
from edgellm.errors import InvalidParameter, Unsupported

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 16  # compiled grammars
NEXT = "pip install 'llguidance>=1.9'"
LONGEST_REASON = 300  # characters: a reason may quote all of an expression
_QUOTED = re.compile(r"\^+|\d+ \| .*")  # lines of what was asked for, and what marks a place in one
# What finding the tokens that may come next takes at most. At these a mask took 10 ms at worst, of grammars that were
# written to be slow; the defaults let one take seconds. Tokens of real schemas need a hundredth of them.
LIMITS = {"initial_lexer_fuel": 300_000, "step_lexer_fuel": 50_000, "max_lexer_states": 20_000}
# The same for one expression that a text is held against, a letter at a time.
FITTING = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 1_000_000, "max_lexer_states": 20_000}


class Grammars:
    """The grammars of one model. Safe from any thread."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._limits: Any = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, name: str, grammar: str) -> LLMatcher:
        """One at the beginning of an answer. name: the option that the grammar, in llguidance's own form, comes from.

        The first one of a model takes a quarter of a second and 20 MB for a vocabulary of 50,000. Raises
        InvalidParameter for a grammar that is none or too large, Unsupported without llguidance.
        """
        with self._lock:
            known = self._compiled.get(grammar)
        if known is None:  # not under the lock: nobody waits for the grammar of another
            known = self._compile(name, grammar)
        with self._lock:
            self._compiled[grammar] = known
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            copy: LLMatcher = known.deep_copy()
            return copy

    def _compile(self, name: str, grammar: str) -> LLMatcher:
        lib = library()
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._info, self._tokenizer)
                self._limits = lib.LLParserLimits(**LIMITS)
        matcher = lib.LLMatcher(self._vocabulary, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            why = reason(matcher)
            raise InvalidParameter(f"{name}: {why.removeprefix('at 1(8): ') if name == 'regex' else why}")
        made: LLMatcher = matcher
        return made


def library() -> Any:
    """The module. Raises Unsupported where it is missing, or a release without content, as some systems get."""
    try:
        import llguidance
    except ImportError as error:
        why = f"answers with a form need llguidance, which cannot be loaded here ({error}): {NEXT}"
        raise Unsupported(why) from error
    if not hasattr(llguidance, "LLParserLimits"):
        raise Unsupported(f"the llguidance that is installed here is too old for answers with a form: {NEXT}")
    return llguidance


def reason(matcher: LLMatcher) -> str:
    """Why a matcher failed, in a line, without what it says of its own state."""
    lines = [line.strip() for line in matcher.get_error().split("<state>")[0].splitlines()]
    lines = [line for line in lines if line and not _QUOTED.fullmatch(line)]
    for line in lines:
        what, is_expression, _ = line.partition(" (in regex): regex parse error:")
        if is_expression:  # which is quoted there once more
            lines = [f"{what}: {each.removeprefix('error: ')}" for each in lines if each.startswith("error: ")]
            break
    return "; ".join(lines)[:LONGEST_REASON] or "llguidance gives no reason"


def from_schema(schema: Any, options: Mapping[str, Any]) -> str:
    """The grammar of JSON that is valid by a schema. options: win over what the schema says of itself."""
    made: str = library().LLMatcher.grammar_from_json_schema(schema, overrides=options)
    return made


def from_regex(regex: str) -> str:
    made: str = library().LLMatcher.grammar_from_regex(regex)
    return made


def from_lark(text: str) -> str:
    made: str = library().LLMatcher.grammar_from_lark(text)
    return made


def joined(whole: str, form: str) -> str:
    """The grammar `whole`, in Lark, whose rule `@form` is the grammar `form`."""
    parts: list[dict[str, Any]] = [{"lark_grammar": whole}]
    if form:
        inner = json.loads(form)["grammars"] if form.startswith("{") else [{"lark_grammar": form}]
        parts += [{**inner[0], "name": "form"}, *inner[1:]]
    return json.dumps({"grammars": parts})


def quoted(text: str) -> str:
    """A text as a grammar in Lark's form holds it."""
    return json.dumps(text, ensure_ascii=False)


@lru_cache(256)
def _expression(pattern: str) -> LLMatcher:
    lib = library()
    wrapped = lib.TokenizerWrapper(_Bytes())
    matcher: LLMatcher = lib.LLMatcher(
        lib.LLTokenizer(wrapped, slices=[]), from_regex(pattern), log_level=0, limits=lib.LLParserLimits(**FITTING)
    )
    return matcher


def fits(pattern: str, text: str) -> bool:
    """Whether a pattern in the common form of regex.py matches a whole text, in time that grows with the text alone:
    Python's library tries the ways one by one, of which there may be 2 ** 40. Raises Unsupported where the states are
    too many.
    """
    matcher, tokens = _expression(pattern).deep_copy(), list(text.encode("utf-8", "replace"))
    taken = matcher.try_consume_tokens(tokens)
    if taken == len(tokens):
        return matcher.is_accepting()
    matcher.consume_token(tokens[taken])  # why not? A limit that was met is told only here
    if "lexer error" in matcher.get_error():
        raise Unsupported(f"a pattern that is too slow to be matched: {reason(matcher)}")
    return False


class _Bytes:
    """A vocabulary of the bytes and one end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([code]) for code in range(256)), b"<|end|>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def _vocabulary(info: ModelInfo, tokenizer: Tokenizer) -> Any:
    lib = library()
    pieces = [tokenizer.piece(token) for token in range(info.n_vocab)]
    return lib.LLTokenizer(
        lib.TokenizerWrapper(_Wrapped(info, tokenizer, pieces)),
        n_vocab=info.n_vocab,
        eos_token=sorted(info.stop_ids),
        slices=lib.LLTokenizer.json_slices(),
    )


class _Wrapped:
    """A tokenizer as llguidance asks for one. Control tokens stand for no text: \xff is in none."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, pieces: Iterable[bytes]) -> None:
        self.eos_token_id = min(info.stop_ids)
        self.bos_token_id = info.bos_id
        self.tokens = [piece or b"\xff%d" % token for token, piece in enumerate(pieces)]
        self.special_token_ids: list[int] = []
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
