"""Stop strings: what ends an answer in the middle of its text."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces, and lets no part of one through.

    The stop strings form a trie whose every node knows its longest proper suffix that is also a node (the automaton of
    Aho and Corasick, 1975). The depth of the current node is the number of characters that may begin a stop string, and
    those alone are held back. The cost is one or two steps per character, however many the stop strings are.

    The string that is complete first wins; of several that end at the same character, the one that begins first.

    Some of the text is matched and not shown: that of control tokens. What comes out has none of it.

    found: the stop string that was found, None before.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]  # one per node; node 0 is the empty string
        self._depth = [0]
        self._match = [0]  # length of the longest stop string that ends at this node
        for string in strings:
            node = 0
            for char in string:
                if char not in self._next[node]:
                    self._next[node][char] = len(self._next)
                    self._next.append({})
                    self._depth.append(self._depth[node] + 1)
                    self._match.append(0)
                node = self._next[node][char]
            self._match[node] = len(string)
        self._suffix = [0] * len(self._next)
        queue = list(self._next[0].values())
        for node in queue:  # grows while it is walked: breadth first
            for char, child in self._next[node].items():
                self._suffix[child] = self._step(self._suffix[node], char)
                self._match[child] = self._match[child] or self._match[self._suffix[child]]
                queue.append(child)
        self.found: str | None = None
        self._node = 0
        self._held = ""
        self._hidden: set[int] = set()  # positions in what is held that are not shown

    def _step(self, node: int, char: str) -> int:
        while node and char not in self._next[node]:
            node = self._suffix[node]
        return self._next[node].get(char, 0)

    def push(self, text: str, *, shown: bool = True) -> tuple[str, bool]:
        """The text that is certain to belong to the answer after `text`, and whether a stop string ended it."""
        if len(self._next) == 1:
            return text if shown else "", False
        seen = self._held + text
        if not shown:
            self._hidden.update(range(len(self._held), len(seen)))
        for index in range(len(self._held), len(seen)):
            self._node = self._step(self._node, seen[index])
            if self._match[self._node]:
                start = index + 1 - self._match[self._node]
                self.found = seen[start : index + 1]
                return self._release(seen[:start], ""), True
        certain = len(seen) - self._depth[self._node]
        return self._release(seen[:certain], seen[certain:]), False

    def flush(self) -> str:
        """The text still held back, when the answer ends for another reason."""
        self._node = 0
        return self._release(self._held, "")

    def _release(self, text: str, held: str) -> str:
        """What of `text` is shown; `held`, which follows it, is held back."""
        hidden, self._held = self._hidden, held
        if not hidden:
            return text
        self._hidden = {at - len(text) for at in hidden if len(text) <= at < len(text) + len(held)}
        return "".join(char for at, char in enumerate(text) if at not in hidden)
