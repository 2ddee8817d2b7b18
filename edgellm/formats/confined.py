"""path_in: the files that a model names, always by plain names below its own folder.

What a file says is not trusted: no name in it leads out of the folder. The folder itself is the user's: links in it are
followed wherever they lead, as the cache of the Hugging Face hub, git-annex and DVC lay models out.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, ModelNotFound


def file_in(folder: Path, name: str) -> Path:
    """The path of a file right in the folder, whether it exists or not; otherwise like `path_in`."""
    if len(_parts(name)) != 1:
        raise InvalidModelFile(f"{folder}: {shown(name)} is not the plain name of a file in this folder")
    return path_in(folder, name)


def path_in(folder: Path, name: str) -> Path:
    """The path of a file in the folder or below it, whether it exists or not; name: with / between its parts, of
    which "./" are none.

    Raises InvalidModelFile for names that lead out of it, ModelNotFound for a link to what is not there: that is no
    missing file, which may be left out, but one that was not fetched.
    """
    parts = _parts(name)
    if not all(map(_plain, parts)):
        raise InvalidModelFile(f"{folder}: {shown(name)} is not the plain name of a file in this folder")
    path = folder.joinpath(*parts)
    if path.is_symlink() and not path.exists():
        raise ModelNotFound(
            f"{path}: a link to {str(path.readlink())[:400]!r}, where nothing is; fetch the file (download the model "
            "again, `git annex get`, `dvc pull`), or put it there"
        )
    return path


def model_name(folder: Path) -> str:
    """What a model is called whose files say no name: as its folder, or as the repository whose snapshot that is."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.split("--")[-1]
    return folder.name


def _parts(name: str) -> list[str]:
    *folders, last = name.split("/")
    return [*(part for part in folders if part != "."), last]


def _plain(part: str) -> bool:
    same = PurePosixPath(part).name == part == PureWindowsPath(part).name
    return same and part.isprintable() and ":" not in part and part not in ("", "..")
