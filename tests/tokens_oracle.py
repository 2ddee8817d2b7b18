"""What the tokenizer tests compare with: llama.cpp on a file that holds a vocabulary only, and random texts."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgellm.backends.llamacpp.library import load_library, model_params
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.converters.tokens import Vocabulary, to_metadata
from edgellm.formats.gguf_writer import write_gguf

# first and last code point + 1; ASCII is likely
_RANGES = [
    *[(0x20, 0x7F)] * 6, (0, 0x20), (0x80, 0xA0), (0xC0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500),
    (0x5D0, 0x5EB), (0x620, 0x64B), (0x660, 0x66A), (0x904, 0x93A), (0x93E, 0x94D), (0xE01, 0xE31), (0x1100, 0x1113),
    (0x2000, 0x2070), (0x20A0, 0x20C0), (0x2160, 0x2189), (0x2190, 0x2200), (0x3041, 0x3097), (0x30A1, 0x30FB),
    (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0xFE00, 0xFE10), (0x10400, 0x10450), (0x1D400, 0x1D6A4), (0x1F300, 0x1F650),
]  # fmt: skip
_SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n"]
_WORDS = [
    "'s",
    "'LL",
    "don't ",
    "I'VE ",
    "123",
    "1234567",
    "3.14",
    "hello world",
    " the quick",
    "def f(x):\n    return x",
]


def random_texts(count: int, special: Sequence[str] = (), *, seed: int = 0) -> list[str]:
    """Texts of letters of many scripts, digits, spaces, line ends, emoji, marks, controls and special tokens' texts."""
    chance = random.Random(seed)

    def part() -> str:
        kind = chance.random()
        if kind < 0.15:
            return chance.choice(_SPACES) * chance.randint(1, 3)
        if kind < 0.25:
            return chance.choice(_WORDS)
        if kind < 0.32 and special:
            return chance.choice(special)
        low, high = chance.choice(_RANGES)
        return "".join(chr(chance.randrange(low, high)) for _ in range(chance.randint(1, 6)))

    return ["".join(part() for _ in range(chance.randint(1, 8))) for _ in range(count)]


class Oracle(LlamaTokenizer):
    """llama.cpp's tokenizer, which also gives a text with all that belongs around it."""

    def whole(self, text: str, *, special: bool = False) -> list[int]:
        """As `tokenizers` adds special tokens: also where the text begins with one itself."""
        return [*self.begin, *self.encode(text, special=special), *self.end]


@contextmanager
def llama_tokenizer(path: Path) -> Iterator[Oracle]:
    """llama.cpp's tokenizer of a file."""
    library, params = load_library(), model_params()
    params.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    yield Oracle(library, library.llama_model_get_vocab(model))
    library.llama_model_free(model)


def write_vocabulary(vocabulary: Vocabulary, path: Path, *, name: str = "") -> Path:
    """A GGUF file without tensors."""
    architecture = "bert" if vocabulary.model == "bert" else "llama"
    write_gguf(path, {"general.architecture": architecture, "general.name": name, **to_metadata(vocabulary)}, [])
    return path


def write_files(files: dict[str, str], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    return folder


def without_llama_normalizer_bugs(text: str) -> str:
    """Without the characters that llama.cpp normalizes otherwise than BERT: it takes Hangul apart wrongly, drops
    spacing and enclosing marks like the non-spacing ones, and takes form feeds and their like for spaces.
    """
    return "".join(
        char
        for char in text
        if unicodedata.category(char) not in ("Mc", "Me") and not "가" <= char <= "힣" and char not in "\x0b\x0c\x85"
    )
