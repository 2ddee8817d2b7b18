"""Control: what belongs to one call, beside the options of its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, TypeVar

from edgellm.arguments import instance
from edgellm.engine.cancel import CancelToken
from edgellm.engine.progress import OnProgress, checked_progress
from edgellm.option import build
from edgellm.params import GenerateOptions, GenerateParams

LONG = 64 << 10  # characters of a text that no event loop should wait for until it is tokens
T = TypeVar("T")


class Control(TypedDict):
    """cancel: what ends it from anywhere. progress: is told how far its prompt is read."""

    cancel: CancelToken | None
    progress: OnProgress | None


class CallOptions(GenerateOptions, total=False):
    """Those of an answer and of Control, as keywords."""

    cancel: CancelToken | None
    progress: OnProgress | None


def split(options: CallOptions, params: GenerateParams | None) -> tuple[GenerateParams, Control]:
    """The params of the answer, `params` with what `options` say in its place, and the control. Raises
    InvalidParameter."""
    progress = checked_progress(options.pop("progress", None))
    control = Control(cancel=options.pop("cancel", None), progress=progress)
    if control["cancel"] is not None:
        instance("cancel", control["cancel"], CancelToken)
    return build(GenerateParams, options, params), control


async def beside_loop(function: Callable[[], T], undo: Callable[[T], object] = bool) -> T:
    """What `function` returns or raises, on a thread beside the event loop. A task that is cancelled meanwhile waits no
    longer; then `undo` gets what comes."""
    import asyncio  # costs what only its users should pay

    def left(done: asyncio.Future[T]) -> None:
        if done.exception() is None:
            undo(done.result())

    made = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        made.add_done_callback(left)
        raise
