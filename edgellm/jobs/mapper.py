"""BatchModel: a model for Ray Data's `map_batches`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm import CacheParams, GenerateParams, LoadParams, arguments, load
from edgellm.errors import InvalidParameter
from edgellm.jobs.rows import batch
from edgellm.option import build

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.params import GenerateOptions

ASKED = ("prompt", "messages")  # columns, one of them
COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens")


class BatchModel:
    """Answers the rows of Ray Data's batches; each actor of `map_batches` opens the model for itself.

        answered = dataset.map_batches(
            edgellm.BatchModel,
            fn_constructor_kwargs={"model": "smollm2:135m", "max_tokens": 64},
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=4,
            batch_size=256,
        )

    model: a path or name, on every machine of the cluster. load_params: how it is opened, memory alone for prompts if
    nothing is said. params and options: of the answers. system, raw, thinking: as of `edgellm.batch`.

    Raises what `edgellm.load` raises, InvalidParameter, Unsupported.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        params: GenerateParams | None = None,
        *,
        load_params: LoadParams | None = None,
        system: str | None = None,
        raw: bool = False,
        thinking: bool | None = None,
        **options: Unpack[GenerateOptions],
    ) -> None:
        self._params = build(GenerateParams, options, params)
        self._manner: dict[str, Any] = {"system": system, "raw": arguments.flag("raw", raw), "thinking": thinking}
        self._model = load(model, load_params or LoadParams(cache=CacheParams(disk=0)))

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """rows: columns, of equal length, with "prompt" (texts, or lists of token ids) or "messages" (lists of dicts).

        The same columns come back with "text", "finish_reason", "error" ("" for none), and the numbers of
        "prompt_tokens", "cached_tokens" (of them) and "completion_tokens". Raises InvalidParameter, Closed.
        """
        named = [name for name in ASKED if name in rows]
        if len(named) != 1:
            raise InvalidParameter(f"a batch has a column prompt or messages, one of them; it has {', '.join(rows)}")
        asked = ({named[0]: _plain(value)} for value in rows[named[0]])
        found = list(batch(asked, self._model, self._params, **self._manner))
        usage = [each.get("usage", {}) for each in found]
        return {
            **rows,
            "text": _texts([each.get("text", "") for each in found]),
            "finish_reason": _texts([each.get("finish_reason", "") for each in found]),
            "error": _texts([each["error"]["message"] if "error" in each else "" for each in found]),
            **{name: np.array([each.get(name, 0) for each in usage], np.int64) for name in COUNTED},
        }


def _texts(values: list[str]) -> Any:
    return np.array(values, object)


def _plain(value: Any) -> Any:
    """What numpy and Arrow made of lists, dicts and numbers, as they were."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):  # of a table, in which all have the keys of any
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list) else value
