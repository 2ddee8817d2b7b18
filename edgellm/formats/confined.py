"""path_in: the files that a model names, never outside its own folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from edgellm.errors import InvalidModelFile


def file_in(folder: Path, name: str) -> Path:
    """The path of a file right in the folder, whether it exists or not; otherwise like `path_in`."""
    if "/" in name:
        raise InvalidModelFile(f"{folder}: {name[:200]!r} is not the plain name of a file in this folder")
    return path_in(folder, name)


def path_in(folder: Path, name: str) -> Path:
    """The path of a file in the folder or below it, whether it exists or not; name: with / between its parts.

    Links may lead to other files of the folder, and from a snapshot of the Hugging Face cache to its blobs.
    Raises InvalidModelFile for names and links that lead out of it.
    """
    if not all(_plain(part) for part in name.split("/")):
        raise InvalidModelFile(f"{folder}: {name[:200]!r} is not the plain name of a file in this folder")
    try:
        root, target = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):  # a loop of links
        raise InvalidModelFile(f"{folder / name}: cannot be followed to a file") from None
    allowed = [root]
    for snapshot in (root, root.parent):  # models/snapshots/REVISION, or a folder in it; models/blobs
        if snapshot.parent.name == "snapshots":
            allowed.append(snapshot.parents[1] / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise InvalidModelFile(f"{folder / name}: a link that leaves the folder; put the file itself there")
    return folder / name


def _plain(part: str) -> bool:
    same = PurePosixPath(part).name == part == PureWindowsPath(part).name
    return same and part.isprintable() and ":" not in part and part not in ("", "..")
