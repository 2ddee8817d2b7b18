"""nesting: how deep the rules of a grammar go into one another.

llguidance compiles a rule inside of the one that refers to it, on the stack of the caller: a chain of 2,000 rules ends
the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DEEPEST = 250  # rules and brackets in one another; with a stack of 2 MB, the smallest of a thread, 400 were too many

Rule = Sequence[tuple[str, int]]  # the names it refers to, and in how many brackets each


def depth(rules: Mapping[str, Rule], first: str) -> int:
    """Where each is gone into once, in the order they are referred to: from `first`, then from those that are left."""
    seen: set[str] = set()
    deepest = 0
    for start in (first, *rules):
        if start in seen or start not in rules:
            continue
        seen.add(start)
        stack = [(1, iter(rules[start]))]
        while stack:
            level, left = stack[-1]
            found = next(left, None)
            if found is None:
                stack.pop()
                continue
            name, brackets = found
            if name in rules and name not in seen:
                seen.add(name)
                deepest = max(deepest, level + 1 + brackets)
                stack.append((level + 1 + brackets, iter(rules[name])))
    return deepest
