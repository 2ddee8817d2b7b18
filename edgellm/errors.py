"""Every error edgellm raises on purpose.

    EdgeLLMError
    ├── InvalidParameter            an option has a wrong name, type or range (also a ValueError)
    ├── Unsupported                 the request is valid, this model or engine cannot do it
    │   └── UnsupportedArchitecture
    ├── ModelError                  something is wrong with a model file
    │   ├── ModelNotFound           no such file, folder or catalog name (also a FileNotFoundError)
    │   ├── InvalidModelFile        damaged, truncated, or a header that lies
    │   ├── UnsafeModel             loading it crashed the child process that tried it first, or none could try it
    │   └── ModelLoadError          the engine refused it; in the engine's own words
    ├── ResourceError
    │   ├── NotEnoughMemory         with what is needed and what is there
    │   ├── CannotWrite             no space, no permission, no such folder (also an OSError)
    │   └── Busy                    the queue is full; try again
    ├── GenerationError
    │   ├── ContextOverflow         the prompt does not fit; carries the numbers
    │   ├── TemplateError           the chat template failed, or was stopped
    │   ├── ConstraintFailed        the answer cannot have the form that was asked for; carries what was said so far
    │   ├── Interrupted             a pass was stopped by `interrupt()`; engines handle it, callers see `cancelled`
    │   ├── BackendFailed           the engine reported a failure during a pass
    │   └── Closed                  the model, chat or sequence was closed
    └── DownloadError               a fetch failed
        ├── Offline                 it would need the network, which is forbidden
        └── ChecksumMismatch        what arrived is not what the catalog promises

Each message says what happened, where, and what to do next. Every error can be copied, pickled and sent to another
process; what it was raised from stays behind, as with all exceptions of Python.
"""

from __future__ import annotations

from typing import Any

_OS_ERROR = ("errno", "strerror", "filename", "filename2")  # attributes of an OSError that are not in its __dict__
LONGEST = 2000  # letters of a message


class EdgeLLMError(Exception):
    """Root of every error raised by edgellm."""

    def __str__(self) -> str:
        # A path or a name in it may have any length: what is wrong is at the end.
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own way calls the class with `args` alone, which one with arguments of its own does not take.
        system = {name: getattr(self, name) for name in _OS_ERROR if getattr(self, name, None) is not None}
        return _made_again, (type(self), self.args), self.__dict__ | system


def _made_again(kind: type[EdgeLLMError], args: tuple[Any, ...]) -> EdgeLLMError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError with an __init__ of its own leaves them to that
    return error


class InvalidParameter(EdgeLLMError, ValueError):
    """An option has a wrong name, type or range."""


class Unsupported(EdgeLLMError):
    """The request is valid, but this model or engine cannot do it."""


class UnsupportedArchitecture(Unsupported):
    """The model's architecture is not one this engine runs."""


class ModelError(EdgeLLMError):
    """Something is wrong with a model file."""


class ModelNotFound(ModelError, FileNotFoundError):
    """No such file, folder or catalog name."""


class InvalidModelFile(ModelError):
    """The file is damaged, truncated, or its header lies."""


class UnsafeModel(ModelError):
    """Loading the file crashed the child process that tried it first, or no child process could try it."""


class ModelLoadError(ModelError):
    """The engine refused the file; the message begins with the engine's own words."""


class ResourceError(EdgeLLMError):
    """The machine cannot serve the request now."""


class NotEnoughMemory(ResourceError):
    """The model or its context does not fit in the memory that is available."""


class CannotWrite(ResourceError, OSError):
    """A file cannot be written: no space is left, the folder is missing or may not be written to."""


class Busy(ResourceError):
    """The request queue is full; try again later."""


class GenerationError(EdgeLLMError):
    """A generation could not start or go on."""


class ContextOverflow(GenerationError):
    """The prompt does not fit the context.

    `needed` and `n_ctx` are token counts.
    """

    def __init__(self, message: str, *, needed: int, n_ctx: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.n_ctx = n_ctx


class TemplateError(GenerationError):
    """The chat template failed, raised an error of its own, or exceeded its limits."""


class ConstraintFailed(GenerationError):
    """The answer cannot have the form that was asked for, or be made into what was.

    `text` is what was said so far.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class Interrupted(GenerationError):
    """A pass was stopped by `Backend.interrupt()`. Whole micro-batches stay in their sequences."""


class BackendFailed(GenerationError):
    """The engine underneath reported a failure during a pass."""


class Closed(GenerationError):
    """The model, chat or sequence was closed."""


class DownloadError(EdgeLLMError):
    """A download failed."""


class Offline(DownloadError):
    """The network would be needed and is forbidden."""


class ChecksumMismatch(DownloadError):
    """What arrived is not what the catalog promises."""
