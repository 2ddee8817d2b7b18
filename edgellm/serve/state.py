"""State: what all routes of one server share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgellm.serve.ledger import Ledger
from edgellm.serve.metrics import Metrics
from edgellm.serve.models import Models
from edgellm.serve.refusal import busy
from edgellm.serve.settings import Serving

FREE = ("/health",)  # paths that are answered however much is asked


class State:
    """models: that can be asked; ledger: what was answered lately; metrics: what is counted."""

    def __init__(self, serving: Serving, models: Models) -> None:
        self.serving = serving
        self.models = models
        self.ledger = Ledger()
        self.metrics = Metrics(models)
        self.unanswered = 0

    @contextmanager
    def counted(self, path: str) -> Iterator[None]:
        """A request is being answered. Raises Refusal where too many are."""
        if self.unanswered >= self.serving.params.queue and path not in FREE:
            raise busy(f"{self.unanswered} requests are being answered; try again later")
        self.unanswered += 1
        try:
            yield
        finally:
            self.unanswered -= 1
