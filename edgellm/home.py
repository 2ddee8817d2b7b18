"""Where edgellm keeps its state: one folder, `EDGELLM_HOME` or the platform's usual place; and how files get there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def home(*parts: str) -> Path:
    """The state folder, or a path inside it. The folder itself is created, readable by its owner only."""
    chosen = os.environ.get("EDGELLM_HOME")
    if chosen:
        root = Path(chosen).expanduser()
    else:
        import platformdirs

        root = Path(platformdirs.user_data_dir("edgellm", appauthor=False))
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root.joinpath(*parts)


def write_atomically(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all: temporary name in the same folder, fsync, rename.

    data: its bytes, or a function that writes them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
