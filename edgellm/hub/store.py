"""The local model store: one folder per name, with the model's file(s) and a manifest.

    models/
      smollm2@135m/                         ":" is written "@" and "/" is written "--"
        SmolLM2-135M-Instruct.Q4_1.gguf
        manifest.json                       name, source, proof, licence, files with sizes and SHA-256, pulled_at
      .staging/
        smollm2@135m.lock                   held by the process that pulls or removes the name
        smollm2@135m/                       an unfinished pull: the parts it has

A folder appears under its name by one rename, complete; nothing else is ever called a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from edgellm import arguments
from edgellm.errors import InvalidParameter, ModelNotFound, ResourceError
from edgellm.files import read_file, sync_folder
from edgellm.home import home, make_folder
from edgellm.hub.transfer import lock, log, sha256_of, trying

MANIFEST = "manifest.json"
LONGEST = 200  # bytes of a name; file systems take 255


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a model: its name inside the folder, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store.

    proof says what the SHA-256 was compared with: the catalog's, or the one the hub gives for its own file.
    pulled_at is an ISO 8601 time in UTC. problem says what is wrong with the folder, None when nothing is.
    """

    name: str
    folder: Path
    type: str = "?"
    source: str = "?"
    proof: Literal["catalog", "hub"] = "hub"
    license: str | None = None
    files: tuple[StoredFile, ...] = ()
    pulled_at: str = ""
    problem: str | None = None

    @property
    def path(self) -> Path:
        """The file to open: the first one of a split model."""
        return self.folder / self.files[0].name

    @property
    def size(self) -> int:
        """Bytes of the model's files."""
        return sum(file.size for file in self.files)


class ModelStore:
    """The models on this machine. `root` defaults to the `models` folder of edgellm's home."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = arguments.path("root", root) if root is not None else home("models")

    def list(self) -> Sequence[StoredModel]:
        """Every model here, sorted by name; damaged ones too, with their problem. Raises ResourceError, as all do that
        look, when the store cannot be read."""
        with trying("read", self.root):
            if not self.root.is_dir():
                return []
            folders = [f for f in self.root.iterdir() if f.is_dir() and f.name[0] != "."]
            return sorted(map(_read, folders), key=lambda stored: stored.name)

    def find(self, name: str) -> StoredModel | None:
        """The model of that exact name, which may have a problem; None when it is not here."""
        folder = self._folder(name)
        with trying("read", self.root):
            return _read(folder) if folder.is_dir() else None

    def remove(self, name: str) -> int:
        """Delete a model, and what an unfinished pull of it left; returns the bytes freed.

        Raises ModelNotFound when there is neither, ResourceError when it cannot be deleted.
        """
        folder, staged = self._folder(name), self._staging(name)
        with trying("read", self.root):
            here = folder.is_dir() or staged.is_dir()
        if not here:
            raise ModelNotFound(f"{name!r} is not here; `edgellm list` shows what is")
        with self.locked(name, lambda: log.warning("another process is busy with %s; waiting for it", name)):
            freed = _bytes_in(folder) + _bytes_in(staged)
            self._discard(name)
            shutil.rmtree(staged, ignore_errors=True)
        return freed

    def staged(self, name: str) -> int:
        """Bytes that an unfinished pull of `name` left here."""
        with trying("read", self.root):
            return _bytes_in(self._staging(name))

    @contextmanager
    def locked(self, name: str, waiting: Callable[[], None]) -> Iterator[Path]:
        """Hold the name; gives the folder for its unfinished files. `waiting` is called when another process holds it.

        Raises ResourceError when the store cannot be written.
        """
        staging = self._staging(name)
        with trying("write in", self.root):
            make_folder(staging)
        with trying("write in", self.root), lock(staging.with_name(staging.name + ".lock"), waiting):
            staging.mkdir(exist_ok=True)
            try:
                yield staging
            finally:
                if staging.is_dir() and not any(staging.iterdir()):
                    staging.rmdir()

    def install(self, stored: StoredModel, paths: Sequence[Path], staging: Path) -> StoredModel:
        """Move finished files (in the order of stored.files) under their name, with a manifest, in one rename.

        Called with the name locked. What was there under that name is replaced.
        """
        ready = staging / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        stored = replace(stored, pulled_at=datetime.now(timezone.utc).isoformat(timespec="seconds"))
        for file, path in zip(stored.files, paths, strict=True):
            os.replace(path, ready / file.name)
        manifest = {key: value for key, value in asdict(stored).items() if key not in ("folder", "problem")}
        with (ready / MANIFEST).open("w", encoding="utf-8") as out:
            json.dump(manifest, out, indent=2)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(ready)
        self._discard(stored.name)
        os.rename(ready, stored.folder)
        sync_folder(self.root)
        shutil.rmtree(staging, ignore_errors=True)
        return stored

    def new(self, name: str) -> StoredModel:
        """A model of that name with its folder, for `install` to complete."""
        return StoredModel(name=name, folder=self._folder(name))

    def verify(self, stored: StoredModel) -> str | None:
        """Read every byte: what is wrong with the model, or None."""
        if stored.problem:
            return stored.problem
        for file in stored.files:
            if sha256_of(stored.folder / file.name) != file.sha256:
                return f"{file.name} has changed since it was pulled"
        return None

    def _discard(self, name: str) -> None:
        """Take the folder out of sight by one rename, then delete it."""
        folder = self._folder(name)
        if not folder.is_dir():
            return
        away = self._staging(name).with_name(folder.name + ".removed")
        shutil.rmtree(away, ignore_errors=True)
        try:
            os.rename(folder, away)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ResourceError(f"cannot remove {folder}: {reason}; is the model open in another program?") from error
        shutil.rmtree(away, ignore_errors=True)

    def _folder(self, name: str) -> Path:
        """A folder of its own inside the store: neither the store itself, nor one above it or elsewhere."""
        slug = _slug(arguments.text("name", name))
        if not slug or slug[0] == "." or len(slug.encode()) > LONGEST or set(slug) & set("\\\0"):
            raise InvalidParameter(
                f"{arguments.shown(slug)} is not a model's name; `edgellm list` shows those that are here"
            )
        return self.root / slug

    def _staging(self, name: str) -> Path:
        return self.root / ".staging" / self._folder(name).name


def _slug(name: str) -> str:
    """A model's name as the name of its folder."""
    return name.replace(":", "@").replace("/", "--")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _read(folder: Path) -> StoredModel:
    """The model in a folder; whatever is wrong with it becomes its problem."""
    name = folder.name.replace("--", "/").replace("@", ":")
    broken = StoredModel(name=name, folder=folder)
    try:
        manifest = json.loads(read_file(folder / MANIFEST))
        files = tuple(StoredFile(str(f["name"]), int(f["size"]), str(f["sha256"])) for f in manifest["files"])
        stored = StoredModel(
            name=str(manifest["name"]),
            folder=folder,
            type=str(manifest["type"]),
            source=str(manifest["source"]),
            proof="catalog" if manifest["proof"] == "catalog" else "hub",
            license=manifest["license"],
            files=files,
            pulled_at=str(manifest["pulled_at"]),
        )
    except FileNotFoundError:
        return replace(broken, problem=f"{MANIFEST} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return replace(broken, problem=f"{MANIFEST} cannot be read ({type(error).__name__}: {error})")
    if _slug(stored.name) != folder.name:
        return replace(broken, problem=f"{MANIFEST} belongs to {stored.name!r}, not to this folder")
    if not files or any(Path(file.name).name != file.name for file in files):
        return replace(broken, problem=f"{MANIFEST} names no file, or one outside its folder")
    for file in files:
        path = folder / file.name
        if not path.is_file():
            return replace(stored, problem=f"{file.name} is missing")
        if path.stat().st_size != file.size:
            return replace(stored, problem=f"{file.name} has {path.stat().st_size} bytes instead of {file.size}")
    return stored
