"""Control: what belongs to one call, beside the options of its answer."""

from __future__ import annotations

from typing import TypedDict

from edgellm.arguments import instance
from edgellm.engine.cancel import CancelToken
from edgellm.engine.progress import OnProgress, checked_progress
from edgellm.option import build
from edgellm.params import GenerateOptions, GenerateParams


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
