"""From bytes to text as they arrive."""

from __future__ import annotations

import codecs


class TextStream:
    """Decodes UTF-8 in pieces of any size; the pieces together give what `bytes.decode("utf-8", "replace")` gives.

    A character that is not complete is held back; bytes that can no longer become one are U+FFFD at once, one for each
    maximal part that looked valid (Unicode Standard, section 3.9).
    """

    def __init__(self) -> None:
        self.pending = b""  # the beginning of a character, held back

    def push(self, data: bytes) -> str:
        """The text that is certain after `data`."""
        data = self.pending + data
        text, used = codecs.utf_8_decode(data, "replace", False)
        pending = data[used:]
        if pending[:1] == b"\xed" and pending[1:2] >= b"\xa0":
            # Half of a surrogate is no beginning of a character; the codec alone would wait for the third byte.
            text += pending.decode("utf-8", "replace")
            pending = b""
        self.pending = pending
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, or nothing."""
        text = self.pending.decode("utf-8", "replace")
        self.pending = b""
        return text
