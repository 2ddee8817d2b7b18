"""Tokenizers: Hugging Face folders and GGUF files to one Vocabulary, and back."""

from __future__ import annotations

from edgellm.tokenizers.files import to_files
from edgellm.tokenizers.gguf import read_gguf, to_metadata
from edgellm.tokenizers.vocabulary import TokenType, Vocabulary

from .huggingface import read_huggingface

__all__ = ["TokenType", "Vocabulary", "read_gguf", "read_huggingface", "to_files", "to_metadata"]
