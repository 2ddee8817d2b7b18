"""Job: the lines of a source answered into an output, and what that took so far."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgellm import LoadParams, ModelInfo
from edgellm.errors import InvalidParameter
from edgellm.files import regular
from edgellm.jobs.line import Answer
from edgellm.jobs.output import Loose, Output
from edgellm.jobs.plain import Defaults
from edgellm.jobs.source import Source

NO_MATTER = ("threads", "gpu_layers", "max_sequences", "trust", "offline", "cache")  # how it is computed, not what


@dataclass(frozen=True, slots=True)
class Tally:
    """Of this run: lines that were answered, and those of them that are errors; tokens of prompts, those of them that
    were known, and tokens of answers. before: lines that earlier runs answered. total: all there are."""

    total: int
    before: int = 0
    lines: int = 0
    errors: int = 0
    prompt: int = 0
    known: int = 0
    answered: int = 0
    begun: float = field(default_factory=time.monotonic)

    def plus(self, answer: Answer) -> Tally:
        """With one more."""
        usage = answer.usage
        return replace(
            self,
            lines=self.lines + 1,
            errors=self.errors + answer.failed,
            prompt=self.prompt + usage.prompt_tokens,
            known=self.known + usage.cached_tokens,
            answered=self.answered + usage.completion_tokens,
        )

    @property
    def done(self) -> int:
        return self.before + self.lines

    @property
    def seconds(self) -> float:
        """Up to now."""
        return time.monotonic() - self.begun


def job_of(source: Source, info: ModelInfo, load: LoadParams, defaults: Defaults) -> dict[str, Any]:
    """What the answers depend on, for `Output.belong`."""
    options: dict[str, Any] = {"backend": info.engine}
    for params in (load, defaults.params):
        for each in fields(params):
            value = getattr(params, each.name)
            if each.name not in (*NO_MATTER, "backend") and value != params.OPTIONS[each.name].default:
                options[each.name] = value if isinstance(value, (bool, int, float, str)) else repr(value)
    if load.adapters:  # by what is in them, wherever they lie
        options["adapters"] = [[name, content(Path(path)), scale] for name, path, scale in load.adapters]
    for name in ("system", "raw", "thinking"):
        value = getattr(defaults, name)
        if value not in (None, False) or (name == "thinking" and value is not None):
            options[name] = value
    return {"input": source.digest, "model": info.fingerprint, "options": options}


def content(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder, in hex. Raises InvalidParameter where they cannot be read."""
    digest = hashlib.sha256()
    try:
        for each in sorted(path.iterdir()) if os.path.isdir(path) else [path]:
            if each.is_file():
                digest.update(f"{each.name}\0".encode("utf-8", "surrogateescape") if each != path else b"")
                with open(each, "rb", opener=regular) as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
    except OSError as error:
        raise InvalidParameter(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def run(source: Source, output: Output | Loose, found: Generator[Answer]) -> Generator[Tally]:
    """Write the answers to what is left of a source as they come, wherever they come from; one that is there already is
    left out. Raises CannotWrite and what `found` raises; what is written stays. Closes `found`."""
    tally = Tally(source.total, source.total - source.todo)
    with closing(found):
        for answer in found:
            if answer.number in output.done:
                continue
            output.write(answer)
            tally = tally.plus(answer)
            yield tally
