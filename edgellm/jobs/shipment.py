"""Shipment: a model that several machines need, found on each or brought there once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import edgellm
from edgellm.errors import CannotWrite, EdgeLLMError, InvalidParameter
from edgellm.files import regular
from edgellm.home import home, make_folder

PIECE = 64 << 20  # bytes that are brought at once

Read = Callable[[str, int, int], bytes]  # a file's name, where, how many bytes


@dataclass(frozen=True, slots=True)
class Shipment:
    """A model on the machine of whoever asks. path: of its file or folder there. fingerprint: of what is in it. files:
    its files by their names below `base`, and their sizes in bytes."""

    name: str
    path: str
    fingerprint: str
    base: str
    files: tuple[tuple[str, int], ...]

    def read(self, name: str, at: int, size: int) -> bytes:
        """A part of a file. Raises OSError, and KeyError for one that is not among them."""
        dict(self.files)[name]
        with open(Path(self.base, name), "rb", opener=regular) as file:
            file.seek(at)
            return file.read(size)

    def arrive(self, read: Read) -> Path:
        """Where the model is on this machine: in its own store, under the same path, or where it was brought, which is
        done now if need be. Raises CannotWrite, what `read` does, and InvalidParameter where what arrives differs."""
        main = PurePosixPath(Path(self.path).relative_to(self.base).as_posix())
        place = home("shipped", hashlib.sha256(self.fingerprint.encode()).hexdigest()[:32])
        for found in (self._own(), Path(self.path), place / main):
            if found is not None and self._is(found):
                return found
        try:
            make_folder(place.parent)
            staging = Path(tempfile.mkdtemp(dir=place.parent))
            try:
                for name, size in self.files:
                    _bring(staging, name, size, read)
                if not self._is(staging / main):
                    raise InvalidParameter(f"{self.path} was changed while it was brought to other machines; try again")
                shutil.rmtree(place, ignore_errors=True)
                try:
                    staging.rename(place)
                except OSError:
                    if not self._is(place / main):  # else another process was faster
                        raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            raise CannotWrite(f"{place}: the model cannot be brought here: {error.strerror or error}") from error
        return place / main

    def _own(self) -> Path | None:
        from edgellm import hub

        try:
            return hub.resolve(self.name, offline=True)
        except EdgeLLMError:
            return None

    def _is(self, path: Path) -> bool:
        try:
            return edgellm.inspect(path).fingerprint == self.fingerprint
        except EdgeLLMError:
            return False


def shipment_of(name: str, path: Path) -> Shipment:
    """A model that is here. Raises what `edgellm.inspect` does, and InvalidParameter for a graph alone."""
    path = path.absolute()
    info = edgellm.inspect(path)
    if path.is_dir():
        base, files = path, sorted(each for each in path.rglob("*") if each.is_file())
    elif info.format == "gguf":
        from edgellm.formats.gguf import GGUFFile

        base = path.parent
        with GGUFFile.open(path) as file:
            files = list(file.paths)
    else:
        raise InvalidParameter(f"{path}: name its folder, which has what belongs to it")
    sizes = tuple((each.relative_to(base).as_posix(), each.stat().st_size) for each in files)
    return Shipment(name, str(path), info.fingerprint, str(base), sizes)


def _bring(folder: Path, name: str, size: int, read: Read) -> None:
    target = folder / name
    if folder not in target.parents or ".." in PurePosixPath(name).parts:
        raise InvalidParameter(f"{name!r} is no name of a file in a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as file:
        at = 0
        while at < size:
            piece = read(name, at, min(PIECE, size - at))
            if not piece:
                raise InvalidParameter(f"{name}: ended {size - at} bytes early on its way here; try again")
            file.write(piece)
            at += len(piece)
        file.flush()
        os.fsync(file.fileno())
