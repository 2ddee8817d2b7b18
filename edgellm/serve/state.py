"""State: what all routes of one server share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgellm.serve.ledger import Ledger
from edgellm.serve.metrics import Metrics
from edgellm.serve.models import Models
from edgellm.serve.refusal import busy
from edgellm.serve.settings import Serving

BODIES = 4  # largest requests whose bodies may be here at once
FREE = ("/health",)  # paths that are answered however much is asked


class State:
    """models: that can be asked; ledger: what was answered lately; metrics: what is counted."""

    def __init__(self, serving: Serving, models: Models) -> None:
        self.serving = serving
        self.models = models
        self.ledger = Ledger()
        self.metrics = Metrics(models)
        self.unanswered = 0
        self.held = 0  # bytes of the bodies of those requests

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """What it gives is told how many bytes of a request's body have come, which stay until the end. Raises Refusal
        where all requests together have too many."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self.held + size > BODIES * self.serving.params.max_body:
                raise busy("too much is being sent at once; try again later")
            held += size
            self.held += size

        try:
            yield hold
        finally:
            self.held -= held

    @contextmanager
    def counted(self, path: str) -> Iterator[None]:
        """A request that has come is being answered. Raises Refusal where too many are."""
        if self.unanswered >= self.serving.params.queue and path not in FREE:
            raise busy(f"{self.unanswered} requests are being answered; try again later")
        self.unanswered += 1
        try:
            yield
        finally:
            self.unanswered -= 1
