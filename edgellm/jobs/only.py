"""Only: the server's Models where there is one, which is open, and whose name is whatever a request calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edgellm import Model
from edgellm.serve.models import Listed, Models
from edgellm.serve.settings import ServeParams, Serving


class Only(Models):
    """Whoever made it closes the model."""

    def __init__(self, model: Model) -> None:
        super().__init__(Serving(ServeParams()))
        self.model = model
        self._listed = Listed(model.info.name, Path(), model.info.file_bytes, 0.0)

    def find(self, name: str | None = None) -> Listed:
        """The model."""
        return self._listed

    @asynccontextmanager
    async def use(self, listed: Listed, keep: float | None = None) -> AsyncIterator[Model]:
        """The model, which stays."""
        yield self.model
