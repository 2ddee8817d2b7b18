"""From what a model is called to its file."""

from __future__ import annotations

from pathlib import Path


def here(model: str) -> Path:
    """The file of a path, or of a name that is here; nothing is pulled. Raises ModelNotFound."""
    from edgellm import hub
    from edgellm.errors import ModelNotFound, Offline

    try:
        return hub.resolve(model, offline=True)
    except Offline as error:
        raise ModelNotFound(f"{model!r} is not here; `edgellm pull {model}` fetches it") from error


def fetched(model: str, *, offline: bool = False) -> Path:
    """The file of a path or a name, pulled if it is not here, with progress on stderr. Raises Offline."""
    from edgellm import hub
    from edgellm.cli.output import pull_progress
    from edgellm.errors import Offline

    try:
        return hub.resolve(model, offline=True)
    except Offline:
        if offline:
            raise
        with pull_progress() as progress:
            return hub.resolve(model, progress=progress)
