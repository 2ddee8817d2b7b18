"""What the readers of model files share: a file that the system does not give is an error that names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from edgellm.errors import EdgeLLMError, InvalidModelFile, ModelNotFound


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError inside becomes ModelNotFound or InvalidModelFile, for the file it is about, or else for `path`.

    Never around a callback of the user's: what that raises is the user's.
    """
    try:
        yield
    except EdgeLLMError:
        raise
    except FileNotFoundError as error:
        raise ModelNotFound(f"{error.filename or os.fspath(path)}: no such file or folder; check the path") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise InvalidModelFile(
            f"{error.filename or os.fspath(path)}: cannot be read: {why}; check the path and its permissions"
        ) from None
