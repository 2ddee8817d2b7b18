"""Where edgellm keeps its state: one folder, `EDGELLM_HOME` or the platform's usual place."""

from __future__ import annotations

import os
from pathlib import Path


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
