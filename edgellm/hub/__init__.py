"""Bringing models here, and finding the ones that are: the catalog, pull, resolve and the local store."""

from __future__ import annotations

from edgellm.hub.catalog import CatalogModel, catalog
from edgellm.hub.pull import find, pull, resolve
from edgellm.hub.store import ModelStore, StoredFile, StoredModel
from edgellm.hub.transfer import Progress, PullEvent

__all__ = [
    "CatalogModel",
    "ModelStore",
    "Progress",
    "PullEvent",
    "StoredFile",
    "StoredModel",
    "catalog",
    "find",
    "pull",
    "resolve",
]
