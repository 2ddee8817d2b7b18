"""Where edgellm keeps its state: one folder, `EDGELLM_HOME` or the platform's usual place.

Naming the folder makes nothing; whoever writes there makes it, with `make_folder`. Where it cannot be made or written,
nothing is kept, which `unkept` says once; everything that only reads finds an empty folder.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from pathlib import Path

log = logging.getLogger("edgellm.home")

_warned: set[Path] = set()


def home(*parts: str) -> Path:
    """The state folder, or a path inside it, absolute; whether it exists or not. Never raises.

    A user without a home folder has none: the path then lies under the null device, where nothing can be made.
    """
    chosen = os.environ.get("EDGELLM_HOME", "").strip()
    if not chosen:
        import platformdirs

        try:
            chosen = platformdirs.user_data_dir("edgellm", appauthor=False)
        except RuntimeError:  # as some of its versions say it
            chosen = "~"
    return _absolute(os.path.expanduser(chosen)).joinpath(*parts)


def make_folder(folder: Path) -> Path:
    """Make a folder of the state and those above it, readable by their owner only. Raises OSError."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:  # a file, or a link that leads nowhere
            raise NotADirectoryError(errno.ENOTDIR, "it is there and is no folder", str(folder)) from None
    return folder


def unkept(problem: object) -> None:
    """Warn that nothing is kept in the state folder: once for each folder, so that one line tells the user."""
    known = home() in _warned
    _warned.add(home())
    log.log(
        logging.DEBUG if known else logging.WARNING,
        "nothing is kept for the next start, neither prompts nor checks: %s; make the state folder writable, or set "
        "EDGELLM_HOME to one that is",
        problem,
    )


@functools.cache
def _absolute(root: str) -> Path:
    """A relative folder stays the one that it was at first, wherever the process goes."""
    if root.startswith("~"):  # whose home is not known: as a relative path it would be made right here
        return Path(os.devnull, root)
    try:
        return Path(os.path.abspath(root))
    except OSError:  # the working folder is gone
        return Path(os.devnull, root)
