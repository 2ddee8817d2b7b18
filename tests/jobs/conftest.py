from __future__ import annotations

from collections.abc import Iterator

import pytest

import edgellm
from edgellm import CacheParams, Model


@pytest.fixture(scope="module")
def echo() -> Iterator[Model]:
    """The fake that says what it was told; nothing of it reaches the disk."""
    with edgellm.load("x", backend="echo", cache=CacheParams(disk=0)) as model:
        yield model
