"""translate: a pattern of a JSON Schema (ECMA-262) in the few constructs that every library of them agrees on.

What comes out matches a whole string, in llguidance (Rust's syntax) and in Python's `re.fullmatch` alike: character
classes are written as ranges of code points, anchors are resolved, groups have no names. It holds no character that
llguidance cannot write into a JSON string without `\\u` (control characters other than tab, newline, carriage return,
backspace and form feed), so that a pattern that needs one is empty rather than a dead end in the middle of an answer.

Not regular, or not the same everywhere, hence refused: look-around, backreferences, `\\b`, `\\p{...}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Ranges = tuple[tuple[int, int], ...]  # code points, first and last, ascending and apart

LAST = 0x10FFFF
DEEPEST = 40  # groups in groups
MOST_STATES = 20_000  # characters of the longest text that the bounds in a pattern count out; a state of the lexer each
MOST_NESTED = 1_000  # the same where one bound lies inside another: states multiply


class Irregular(ValueError):
    """The pattern is broken, or says what is no regular expression; the message says which part."""


@dataclass(frozen=True)
class Chars:
    """One character of a class."""

    ranges: Ranges


@dataclass(frozen=True)
class Anchor:
    """`^` or `$`."""

    begins: bool


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    ways: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    what: Node
    least: int
    most: int | None


Node = Chars | Anchor | Sequence | Choice | Repeat


def joined(*many: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    for first, last in sorted(each for ranges in many for each in ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def others(ranges: Ranges) -> Ranges:
    """Every code point that is not in `ranges`."""
    found, start = [], 0
    for first, last in ranges:
        if first > start:
            found.append((start, first - 1))
        start = last + 1
    return (*found, (start, LAST)) if start <= LAST else tuple(found)


def common(one: Ranges, other: Ranges) -> Ranges:
    return others(joined(others(one), others(other)))


def _only(text: str) -> Ranges:
    return joined(tuple((ord(letter), ord(letter)) for letter in text))


DIGITS: Ranges = ((0x30, 0x39),)
WORD = joined(DIGITS, ((0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
SPACE = joined(
    ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    ((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
NEWLINES = joined(((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)))
# Surrogates are no characters; control characters but five need \u, which is switched off (options.py).
WRITABLE = joined(((0x08, 0x0A), (0x0C, 0x0D), (0x20, 0x7E), (0x80, 0xD7FF), (0xE000, LAST)))
ANYTHING = Chars(WRITABLE)

_CLASSES = {"d": DIGITS, "D": others(DIGITS), "w": WORD, "W": others(WORD), "s": SPACE, "S": others(SPACE)}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_SYNTAX = set("^$\\.*+?()[]{}|/-")


class _Reader:
    """Recursive descent over a pattern. Raises Irregular."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> Node:
        found = self.choice()
        if self.at < len(self.text):
            raise Irregular(f"a ) without its ( at character {self.at}")
        return found

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Irregular(f"more than {DEEPEST} groups in groups")
        ways = [self.sequence()]
        while self.take("|"):
            ways.append(self.sequence())
        self.depth -= 1
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def repeated(self, what: Node) -> Node:
        bounds: tuple[int, int | None] | None = None
        if self.take("*"):
            bounds = 0, None
        elif self.take("+"):
            bounds = 1, None
        elif self.take("?"):
            bounds = 0, 1
        elif self.peek() == "{":
            bounds = self.bounds()
        if bounds is None:
            return what
        self.take("?")  # lazy: which way is tried first, not what matches
        if self.peek() and self.peek() in "*+?":
            raise Irregular(f"a repetition of nothing at character {self.at}")
        if isinstance(what, Anchor):
            raise Irregular("a repeated anchor")
        least, most = bounds
        if most is not None and most < least:
            raise Irregular(f"a repetition {{{least},{most}}} that ends before it begins")
        return Repeat(what, least, most)

    def bounds(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.at)
        inside = self.text[self.at + 1 : end] if end > 0 else ""
        first, comma, last = inside.partition(",")
        if not (first.isascii() and first.isdigit() and (not last or (last.isascii() and last.isdigit()))):
            raise Irregular(f"a {{ at character {self.at} that opens no repetition; write \\{{ for the character")
        if len(first) > 6 or len(last) > 6:
            raise Irregular("a repetition of more than a million")
        self.at = end + 1
        return int(first), int(first) if not comma else int(last) if last else None

    def atom(self) -> Node:
        letter = self.text[self.at]
        self.at += 1
        if letter == "(":
            return self.group()
        if letter == "[":
            return Chars(self.brackets())
        if letter == ".":
            return Chars(others(NEWLINES))
        if letter in "^$":
            return Anchor(letter == "^")
        if letter == "\\":
            return Chars(self.escape(inside=False))
        if letter in "*+?":
            raise Irregular(f"a repetition of nothing at character {self.at - 1}")
        if letter in "{}]":
            raise Irregular(f"a bare {letter} at character {self.at - 1}; write \\{letter} for the character")
        return Chars(_only(letter))

    def group(self) -> Node:
        if self.take("?"):
            if self.take("<"):
                if self.peek() in ("=", "!"):
                    raise Irregular("look-behind, which is no regular expression")
                end = self.text.find(">", self.at)
                if not self.text[self.at : end].isidentifier():
                    raise Irregular("a group whose name is none")
                self.at = end + 1
            elif not self.take(":"):
                raise Irregular("look-ahead, or flags in a group" if self.peek() else "a ( without its )")
        found = self.choice()
        if not self.take(")"):
            raise Irregular("a ( without its )")
        return found

    def escape(self, inside: bool) -> Ranges:
        letter = self.peek()
        if not letter:
            raise Irregular("a \\ at the end")
        self.at += 1
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in _CONTROLS:
            return ((_CONTROLS[letter],) * 2,)
        if letter == "b" and inside:
            return ((8, 8),)
        if letter == "0" and not self.peek().isdigit():
            return ((0, 0),)
        if letter == "c" and self.peek().isascii() and self.peek().isalpha():
            self.at += 1
            return ((ord(self.text[self.at - 1]) % 32,) * 2,)
        if letter in "xu":
            return ((self.code(letter),) * 2,)
        if letter in _SYNTAX:
            return _only(letter)
        if letter in "bB":
            raise Irregular(f"\\{letter}, a boundary of words, which engines draw differently")
        if letter in "pP":
            raise Irregular(
                f"\\{letter}, whose characters depend on the version of Unicode; write ranges such as [a-z]"
            )
        if letter.isdigit() or letter == "k":
            raise Irregular("a backreference, which is no regular expression")
        raise Irregular(f"the escape \\{letter}, which ECMA-262 does not know")

    def code(self, kind: str) -> int:
        if kind == "u" and self.take("{"):
            end = self.text.find("}", self.at)
            digits, self.at = self.text[self.at : end], end + 1
        else:
            length = 2 if kind == "x" else 4
            digits, self.at = self.text[self.at : self.at + length], self.at + length
            if len(digits) < length:
                digits = ""
        try:
            value = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            value = -1
        if not 0 <= value <= LAST:
            raise Irregular(f"a \\{kind} that names no character")
        if 0xD800 <= value < 0xDC00 and self.text[self.at : self.at + 2] == "\\u":
            self.at += 2
            low = self.code("u")
            if 0xDC00 <= low < 0xE000:
                return 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)
            raise Irregular("half of a surrogate pair")
        return value

    def brackets(self) -> Ranges:
        inverted = self.take("^")
        found: list[Ranges] = []
        while not self.take("]"):
            first = self.member()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.member()
                if not (len(first) == len(last) == 1 and first[0][0] == first[0][1] and last[0][0] == last[0][1]):
                    raise Irregular("a range between classes of characters")
                if last[0][0] < first[0][0]:
                    raise Irregular("a range that ends before it begins")
                found.append(((first[0][0], last[0][0]),))
            else:
                found.append(first)
        ranges = joined(*found)
        return others(ranges) if inverted else ranges

    def member(self) -> Ranges:
        letter = self.peek()
        if not letter:
            raise Irregular("a [ without its ]")
        self.at += 1
        return self.escape(inside=True) if letter == "\\" else _only(letter)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, letter: str) -> bool:
        if self.peek() != letter:
            return False
        self.at += 1
        return True


@lru_cache(256)
def translate(pattern: str) -> str:
    """The pattern in the common form, to be matched against a whole string. Raises Irregular.

    As JSON Schema wants it, a match may lie anywhere in the string where no anchor holds it.
    """
    return written(whole(pattern))


def whole(pattern: str) -> Node:
    """The syntax tree of a pattern, without anchors: for a whole string. Raises Irregular."""
    ways = list(_anchored(_Reader(pattern).whole()))
    found = ways[0] if len(ways) == 1 else Choice(tuple(ways))
    nested, flat = _states(found)
    if nested > MOST_NESTED or flat > MOST_STATES:
        raise Irregular(f"bounds that count out {max(nested, flat):,} characters; use * or +, or smaller bounds")
    return found


def _anchored(node: Node) -> Iterator[Node]:
    """The alternatives of a search, each as a match of the whole text."""
    anything = Repeat(ANYTHING, 0, None)
    for parts in _flat(node):
        begins = ends = False
        middle = list(parts)
        while middle and middle[0] == Anchor(True):
            begins = True
            del middle[0]
        while middle and middle[-1] == Anchor(False):
            ends = True
            del middle[-1]
        # `^$` in an alternative of nothing: either order, each anchor holds its side.
        if all(isinstance(part, Anchor) for part in middle) and middle:
            begins = begins or any(part == Anchor(True) for part in middle)
            ends = ends or any(part == Anchor(False) for part in middle)
            middle = []
        if any(_holds_anchor(part) for part in middle):
            raise Irregular("an anchor in the middle")
        yield Sequence((*([] if begins else [anything]), *middle, *([] if ends else [anything])))


def _flat(node: Node, budget: int = 64) -> list[tuple[Node, ...]]:
    """The ways through what holds anchors, as sequences."""
    if isinstance(node, Choice) and _holds_anchor(node):
        found = [way for each in node.ways for way in _flat(each, budget)]
    elif isinstance(node, Sequence) and _holds_anchor(node):
        found = [()]
        for part in node.parts:
            found = [(*before, *way) for before in found for way in _flat(part, budget)]
            if len(found) > budget:
                break
    else:
        return [node.parts if isinstance(node, Sequence) else (node,)]
    if len(found) > budget:
        raise Irregular("anchors in too many groups")
    return found


def _holds_anchor(node: Node) -> bool:
    if isinstance(node, Chars):
        return False
    if isinstance(node, Repeat):
        return _holds_anchor(node.what)
    if isinstance(node, Anchor):
        return True
    return any(_holds_anchor(each) for each in (node.parts if isinstance(node, Sequence) else node.ways))


def _states(node: Node) -> tuple[int, int]:
    """Characters that bounds count out: where they lie in one another, and in all."""
    if isinstance(node, Repeat):
        nested, flat = _states(node.what)
        times = max(node.least, node.most or 0, 1)
        return (flat * times if flat > 1 and times > 1 else nested), flat * times
    if isinstance(node, (Chars, Anchor)):
        return 0, 1
    inner = [_states(each) for each in (node.parts if isinstance(node, Sequence) else node.ways)]
    return max((nested for nested, _ in inner), default=0), sum(flat for _, flat in inner)


def written(node: Node) -> str:
    if isinstance(node, Chars):
        return _class(common(node.ranges, WRITABLE))
    if isinstance(node, Choice):
        return f"(?:{'|'.join(written(way) for way in node.ways)})"
    if isinstance(node, Sequence):
        return "".join(written(part) for part in node.parts)
    assert isinstance(node, Repeat)
    what = written(node.what)
    if not isinstance(node.what, Chars):
        what = f"(?:{what})"
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    return what + signs.get((node.least, node.most), f"{{{node.least},{most}}}")


def _class(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return letter(ranges[0][0])
    if not ranges:  # an empty class, which not every library writes: no character is both
        return "[^\\u0000-\\U0010ffff]"
    return f"[{''.join(letter(a) if a == b else f'{letter(a)}-{letter(b)}' for a, b in ranges)}]"


def letter(code: int) -> str:
    """A character as it stands in a pattern, in a class or outside."""
    if 0x30 <= code <= 0x39 or 0x41 <= code <= 0x5A or 0x61 <= code <= 0x7A:
        return chr(code)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def quoted(text: str) -> str:
    """A pattern for exactly this text."""
    return "".join(letter(ord(each)) for each in text)
