"""llama.cpp's own words for a failure, picked from what it logged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from edgellm.errors import ModelLoadError, UnsupportedArchitecture

EMPTY_PHRASES = ("failed to load model", "exiting", "loading model from")
WHY = "error loading model: "  # llama.cpp catches what a loader throws, and logs it behind this
MOST = 3
LONGEST = 400  # characters of a line: some repeat what the file says, whatever it says

# What it prints of every file, with words of the file in it: no reason, whatever these words are.
_DUMP = re.compile(
    r"llama_model_loader: (- |Dumping|loaded|additional)|print_info:|load: |create_tensor:"
    r"|load_tensors: (layer|loading|tensor)"
)
_TELLING = re.compile(r"error|fail|unknown|invalid|unsupported|assert|what\(\)|\bnot\b", re.IGNORECASE)
_PLACE = re.compile(r"^\S*[/\\](?=[^/\\\s]+:\d+: )")  # the folders of the machine that built it
_FUNCTION = re.compile(r"^\w+: ")


def reason(lines: Iterable[str]) -> str:
    """The log lines that explain a failure, what it failed with first, without the names of C++ functions in front; ""
    if there are none."""
    told = [line.strip() for line in lines]
    told = [line for line in told if line and not line.endswith(EMPTY_PHRASES)]
    thrown = [line.partition(WHY)[2] for line in told if WHY in line and not _DUMP.match(line)]
    said = [line for line in told if not _DUMP.match(line) and WHY not in line]
    telling = [line for line in said if _TELLING.search(line)]
    if not thrown and not telling:
        telling = (said or told)[-1:]
    words = (_PLACE.sub("", _FUNCTION.sub("", line))[:LONGEST] for line in (*thrown[-1:], *telling[-MOST:]))
    return "; ".join(list(dict.fromkeys(words))[:MOST])


def refusal(path: str | os.PathLike[str], what: str, why: str) -> ModelLoadError | UnsupportedArchitecture:
    """The error for a file that llama.cpp does not take. what: it did not, "refused the file"; why: from `reason`."""
    why = why or "llama.cpp gave no reason"
    if "unknown model architecture" in why:
        return UnsupportedArchitecture(
            f"{path}: {why}; this llama.cpp does not know it. A newer edgellm may, or another file of the model"
        )
    return ModelLoadError(f"{path}: llama.cpp {what}: {why}; fetch the file again, or convert the model anew")
