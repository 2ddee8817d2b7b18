"""Loading: from a path or a name to an opened model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgellm import arguments
from edgellm.backends import open_backend
from edgellm.model import Model
from edgellm.option import build
from edgellm.pace import paced
from edgellm.params import LoadOptions, LoadParams

if TYPE_CHECKING:
    from typing_extensions import Unpack


def load(
    model: str | os.PathLike[str],
    params: LoadParams | None = None,
    *,
    progress: Callable[[float], None] | None = None,
    **options: Unpack[LoadOptions],
) -> Model:
    """Open a model: a path to a GGUF file, or a name from the catalog.

    A catalog name that is not here yet is downloaded first, announced on stderr, unless `offline=True`.
    Keyword options are LoadParams' names. `progress` is called with the loaded share, 0 to 1, at most 20 times a
    second and at the end; an exception it raises stops the load. Raises ModelError, ResourceError, Unsupported,
    DownloadError, InvalidParameter.
    """
    started = time.perf_counter()
    chosen = build(LoadParams, options, params)
    report = None if progress is None else paced(progress, lambda share: share >= 1)
    path = arguments.path("model", model)
    if chosen.backend != "echo" and not os.path.isfile(path):
        from edgellm.hub import resolve

        path = resolve(os.fspath(model), offline=chosen.offline)
    backend = open_backend(path, chosen, report)
    return Model(backend, cache=chosen.cache, load_ms=1e3 * (time.perf_counter() - started))
