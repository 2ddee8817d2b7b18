"""A model's folder as programs lay it out that keep the contents elsewhere and links under the names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def hub_cache(source: Path, place: Path) -> Path:
    """huggingface_hub: models--ORG--NAME/snapshots/REVISION/NAME links to blobs/HASH."""
    snapshot, blobs = place / "models--org--thing" / "snapshots" / "0123abc", place / "models--org--thing" / "blobs"
    return _linked(source, snapshot, lambda number, _name: blobs / f"{number:064x}", relative=True)


def annex(source: Path, place: Path) -> Path:
    """git-annex: .git/annex/objects of the repository, a folder for each; read-only files named by their key."""
    objects = place / "repository" / ".git" / "annex" / "objects"
    key = "SHA256E-s1--{:x}{}"
    return _linked(
        source,
        place / "repository" / "model",
        lambda number, name: objects / key.format(number, name.suffix) / key.format(number, name.suffix),
        relative=True,
    )


def dvc(source: Path, place: Path) -> Path:
    """DVC with links: absolute ones into a cache anywhere on the machine."""
    return _linked(
        source,
        place / "model",
        lambda number, _name: place / "dvc" / "files" / "md5" / f"{number:02x}" / "0",
        relative=False,
    )


def one_folder(source: Path, place: Path) -> Path:
    """The folder as a whole is a link."""
    shutil.copytree(source, place / "real")
    (place / "link").symlink_to(place / "real", target_is_directory=True)
    return place / "link"


def data_alone(source: Path, place: Path) -> Path:
    """Only what is large is a link, through another one."""
    folder, disk = place / "model", place / "disk"
    shutil.copytree(source, folder)
    disk.mkdir()
    large = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    shutil.move(large, disk / "data")
    (disk / "again").symlink_to("data")
    large.symlink_to(disk / "again")
    return folder


LAYOUTS: tuple[Callable[[Path, Path], Path], ...] = (hub_cache, annex, dvc, one_folder, data_alone)


def _linked(source: Path, folder: Path, kept: Callable[[int, Path], Path], *, relative: bool) -> Path:
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        name = path.relative_to(source)
        content, link = kept(number, name), folder / name
        content.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, content)
        link.symlink_to(os.path.relpath(content, link.parent) if relative else content)
    return folder
