"""convert: a model becomes a GGUF file, an ONNX folder or a Hugging Face folder; plan: what it would become.

    read ─▶ plan ─▶ write into a folder beside the target ─▶ verify there ─▶ rename

The target gets its name only when it is complete, on disk and verified; whatever happens before leaves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellm import arguments
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.reading import reading
from edgellm.formats.writing import writing

from . import verify
from .folder.target import ToFolder
from .gguf.target import ToGGUF
from .job import Job, Progress, check_space, paced
from .model import Model
from .onnx.optimum import Export
from .onnx.target import ToONNX
from .params import GGUFParams, MergingParams, ONNXParams, OptimumParams, SafetensorsParams, TargetParams
from .plan import Plan
from .read import read

_NO_FOLDER = {  # what is not written as safetensors, by format
    "huggingface": "is safetensors already; only GGUF files are converted to them, and folders with an adapter",
    "onnx": "safetensors are made of GGUF files; convert it to GGUF first",
}


@dataclass(frozen=True)
class Conversion:
    """What was done. verified: None where it was not asked for. seconds: all of it."""

    path: Path
    plan: Plan
    verified: verify.Verification | None
    seconds: float


def plan(source: str | os.PathLike[str], params: TargetParams | None = None) -> Plan:
    """What `convert` would make of a source (see `read`); of its weights only vectors are read.

    An importance matrix counts as one that has an entry for every tensor. Raises what `convert` raises beforehand.
    """
    wanted = _checked(params)
    with reading(arguments.path("source", source)), closing(_read(source, wanted)) as model:
        return _job(model, wanted).plan


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    params: TargetParams | None = None,
    *,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a source (see `read`). `progress` gets what is being done, how much of it and of how much, at
    most 20 times a second; an exception it raises stops the conversion.

    Memory: some chunks of rows, whatever the model's size; loading the result to verify it takes what running it takes.
    Calibrating a Hugging Face folder takes a temporary q8_0 file beside the target: only a GGUF file can be run.

    Raises InvalidParameter (a target that exists, options that contradict each other), CannotWrite (no space, ...),
    Unsupported, UnsupportedArchitecture, ModelNotFound, InvalidModelFile (a damaged source, a result that does not say
    what the source says), BackendFailed.
    """
    started = time.monotonic()
    source, target = arguments.path("source", source), arguments.path("target", target)
    params = _checked(params)
    report = paced(progress) if progress is not None else (lambda what, done, total: None)
    with closing(_read(source, params)) as model:
        _check_target(model, target, params)
        job = _job(model, params)
        with _workspace(target) as space:
            check_space(target, job.plan.file_bytes)
            written = space / target.name
            job.write(written, space, report)
            verified = job.verify(written, space, report) if params.verify else None
            with writing(target):
                os.replace(written, target)
    return Conversion(target, job.plan, verified, time.monotonic() - started)


def _checked(params: TargetParams | None) -> TargetParams:
    if params is not None:
        arguments.instance("params", params, TargetParams)
    return params or GGUFParams()


def _read(source: str | os.PathLike[str], params: TargetParams) -> Model:
    adapters = params.adapters if isinstance(params, MergingParams) else ()
    return read(source, params.pre if isinstance(params, GGUFParams) else None, adapters)


def _job(model: Model, params: TargetParams) -> Job:
    if isinstance(params, GGUFParams):
        return ToGGUF(model, params)
    if isinstance(params, ONNXParams):
        return ToONNX(model, params)
    if isinstance(params, OptimumParams):
        return Export(model, params)
    assert isinstance(params, SafetensorsParams)  # no others are made
    if model.format in _NO_FOLDER and not params.adapters:
        raise Unsupported(f"{model.path}: {_NO_FOLDER[model.format]}")
    return ToFolder(model, params)


def _check_target(model: Model, target: Path, params: TargetParams) -> None:
    if not os.path.lexists(target):
        return
    if any(target.exists() and os.path.samefile(path, target) for path in (model.path, *model.weight_files)):
        raise InvalidParameter(f"{target}: is the source itself; choose another name")
    if target.is_dir():
        raise InvalidParameter(f"{target}: a folder of this name exists; choose another name, or remove it")
    if target.exists() and not target.is_file():
        raise InvalidParameter(f"{target}: is a device or a pipe, and would be replaced; choose another name")
    if not params.force:
        raise InvalidParameter(f"{target}: exists; choose another name, or replace it with force (--force)")
    if params.to != "gguf":
        raise InvalidParameter(f"{target}: is a file, and a folder would be written; choose another name")


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A new folder beside the target, on the same disk; it goes with all that is left in it.

    It is locked for as long as this process lives, where there are locks: so those of killed ones are told, and go.
    """
    parent, prefix = target.absolute().parent, f".{target.name}."
    with writing(target):
        for name in os.listdir(parent):
            if name.startswith(prefix) and re.fullmatch(r"[a-z0-9_]{8}\.part", name[len(prefix) :]):
                _remove(parent / name, _locked(parent / name))
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=parent))
            lock = _locked(folder, wait=True)
            if folder.exists():  # else another process had it before it was locked, and took it for a leftover
                break
            _remove(folder, lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove(folder: Path, lock: int | None) -> None:
    """Remove what nobody else holds, and unlock it."""
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that locks a folder while it is open. None: another process has it, or it cannot be locked."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor
