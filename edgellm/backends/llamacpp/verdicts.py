"""Verdicts on builds and files, in the home folder: what a child process found out once is not asked again."""

from __future__ import annotations

import json

from edgellm.files import read_file
from edgellm.formats.writing import whole_file
from edgellm.home import home, make_folder, unkept

MOST = 4096  # that a file keeps: the oldest make room


def known(name: str) -> dict[str, str]:
    """The verdicts in a file, by what they are on. An unreadable or damaged file counts as an empty one."""
    try:
        found = json.loads(read_file(home(name)))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return {}
    return found


def keep(name: str, key: str, verdict: str) -> None:
    """Add a verdict. Of two writers at once the later one wins, and what the other found is asked again some day."""
    kept = [(k, v) for k, v in known(name).items() if k != key][1 - MOST :]
    try:
        with whole_file(make_folder(home()) / name) as file:
            file.write(json.dumps({**dict(kept), key: verdict}).encode())
    except OSError as error:  # a full or read-only disk, or a reader on Windows: it will be asked again
        unkept(error)
