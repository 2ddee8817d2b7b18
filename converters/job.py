"""Job: one conversion, planned; and what the kinds of them have in common.

ToGGUF   ToONNX   ToFolder (in target.py of their formats)   Export (onnx/optimum.py)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import edgellm
from edgellm import arguments
from edgellm.errors import CannotWrite
from edgellm.formats.writing import writing
from edgellm.pace import Pace

from .model import Model
from .plan import Plan
from .verify import Verification

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class Job(Protocol):
    """Made of a Model and ConvertParams; plan: what it will write."""

    plan: Plan

    def write(self, path: Path, space: Path, report: Progress) -> None:
        """Write the file or folder; space: a folder for what it takes on the way."""
        ...

    def verify(self, path: Path, space: Path, report: Progress) -> Verification:
        """Compare what was written with the source; space: as for `write`. Raises InvalidModelFile, ModelLoadError."""
        ...


def record_of(model: Model, **said: str | int) -> dict[str, Any]:
    """What the metadata of a converted file say of how it came to be."""
    source = {"version": edgellm.__version__, "source": model.format, "source_fingerprint": model.fingerprint}
    if model.adapted:
        said["adapters"] = ", ".join(model.adapted)
    return {f"edgellm.convert.{key}": value for key, value in {**source, **said}.items()}


def paced(progress: Progress) -> Progress:
    """The callback, called as often as somebody can look, and at the beginning and the end of all that is done."""
    tell, pace, doing = arguments.callback("progress", progress), Pace(), ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal doing
        if pace.due(surely=what != doing or done >= total):
            doing = what
            tell(what, done, total)

    return report


def counter(what: str, total: int, report: Progress) -> Callable[[int], None]:
    """A function that adds up and reports."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report(what, done, total)

    report(what, 0, total)
    return advance


def check_space(target: Path, needed: int) -> None:
    with writing(target):
        free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise CannotWrite(f"{target}: needs {needed} bytes, the disk has {free}; free some space, or write elsewhere")
