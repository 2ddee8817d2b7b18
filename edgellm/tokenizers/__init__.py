"""Text to tokens and back, for backends that bring no tokenizer of their own."""

from __future__ import annotations

from edgellm.tokenizers.text import TextTokenizer, open_tokenizer

__all__ = ["TextTokenizer", "open_tokenizer"]
