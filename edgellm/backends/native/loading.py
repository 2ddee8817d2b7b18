"""What to load and how: context, memory, threads, decided first; then weights, from the file into matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgellm import _native, machine
from edgellm.architectures import Hyper, from_metadata
from edgellm.backends.base import ModelInfo
from edgellm.backends.llamacpp.info import model_info
from edgellm.backends.native.rotation import rotations
from edgellm.backends.native.weights import Placed, placed
from edgellm.budget import contexts
from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.params import KvType, LoadParams

PAGE_TOKENS = 32
KV_TYPE: KvType = "f16"  # where nobody asks
PAGES = {"f16": "int16", "q8_0": "int8", "f32": "f32"}  # what the pages hold: f16 is 16 bits a number


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions for one load. n_ctx limits one sequence, max_cells all of them together (tokens)."""

    info: ModelInfo
    hyper: Hyper
    params: LoadParams
    n_ctx: int
    max_cells: int
    threads: int
    kv_type: KvType


def plan(file: GGUFFile, params: LoadParams) -> Plan:
    """Decide, for a file that `checks.cannot` has nothing against. Raises NotEnoughMemory with the numbers."""
    hyper, kv_type = from_metadata(file)[1], params.kv_type or KV_TYPE
    per_token = kv_bytes_per_token(hyper, kv_type)
    info = replace(model_info(file, kv_type), engine="native", kv_bytes_per_token=per_token)
    n_ctx, max_cells = contexts(info, params.ctx, machine.memory().available)
    return Plan(
        info=info,
        hyper=hyper,
        params=params,
        n_ctx=n_ctx,
        max_cells=max_cells,
        threads=params.threads or machine.usable_cores(),
        kv_type=kv_type,
    )


def kv_bytes_per_token(hyper: Hyper, kv_type: KvType) -> int:
    """What a token takes in the cache, scales and all."""
    return new_pages(hyper, kv_type, 1).page_bytes // PAGE_TOKENS


def new_pages(hyper: Hyper, kv_type: KvType, most: int) -> _native.KvPages:
    """The pages of a model's cache, at most so many."""
    return _native.KvPages(hyper.n_layer, hyper.n_head_kv, hyper.head_dim, PAGES[kv_type], most)


def model(file: GGUFFile, plan: Plan, progress: Callable[[float], None]) -> _native.DenseModel:
    """The engine's model, with the weights of the file. `progress` is called with the share that is laid out; an
    exception it raises ends it. Matrices are read, not mapped: of them no page of the file is in memory twice, and who
    cuts the file meanwhile does not end the process.

    Raises InvalidModelFile for weights that cannot be, MemoryError.
    """
    architecture, hyper = from_metadata(file)
    made = _model(plan)
    places = list(placed(file, architecture, hyper))
    last = {place.tensor: place for place in places}
    total, done = sum(file.tensors[name].nbytes for name in last), 0
    progress(0.0)
    for place in places:
        try:
            _lay_out(made, file, place, centred=hyper.centred)
        except ValueError as error:
            raise InvalidModelFile(
                f"{file.path}: tensor {place.tensor!r}: {error}; the file is damaged: fetch or convert it again"
            ) from error
        if last[place.tensor] is place:
            done += file.tensors[place.tensor].nbytes
            progress(min(done / total, 1.0))
    made.finish()
    return made


def _model(plan: Plan) -> _native.DenseModel:
    hyper = plan.hyper
    which, found = rotations(hyper, plan.n_ctx)
    windows = [hyper.window or 0 if hyper.windowed and hyper.windowed[i] else 0 for i in range(hyper.n_layer)]
    made = _native.DenseModel(
        n_layer=hyper.n_layer,
        n_embd=hyper.n_embd,
        n_ff=hyper.n_ff_expert if hyper.n_expert else hyper.n_ff,
        n_head=hyper.n_head,
        n_head_kv=hyper.n_head_kv,
        head_dim=hyper.head_dim,
        n_vocab=hyper.n_vocab,
        n_expert=hyper.n_expert,
        n_expert_used=hyper.n_expert_used,
        norm_eps=hyper.norm_eps,
        activation=hyper.activation,
        attention_scale=hyper.attention_scale or hyper.head_dim**-0.5,
        attention_softcap=hyper.attention_softcap or 0.0,
        final_softcap=hyper.final_softcap or 0.0,
        embedding_scale=hyper.embedding_scale,
        residual_scale=hyper.residual_scale,
        logit_scale=hyper.logit_scale,
        parallel_residual=hyper.parallel_residual,
        windows=windows,
        rotations=which,
        threads=plan.threads,
        micro_batch=plan.params.micro_batch,
    )
    for kind, rotation in enumerate(found, 1):
        made.set_rotation(kind, rotation.frequencies, rotation.magnitude)
    return made


def _lay_out(made: _native.DenseModel, file: GGUFFile, place: Placed, *, centred: bool) -> None:
    """centred: norms take the mean away. Raises ValueError for what cannot be a matrix or a vector of the engine."""
    tensor = file.tensors[place.tensor]
    if len(tensor.shape) == 1:
        values = file.data(place.tensor).view(np.float32)[place.start : place.stop]
        if tensor.type is not GGMLType.F32 or not np.isfinite(values).all():
            raise ValueError("holds what is no number")
        made.set_vector(place.layer, place.role, values if place.order is None else values[place.order])
        if centred and place.role.endswith("_norm"):
            made.set_vector(place.layer, f"{place.role}.bias", np.zeros_like(values))  # that is how the engine knows
        return
    *stacked, columns = tensor.shape
    row = tensor.nbytes // math.prod(stacked)  # its bytes
    descriptor, at, _ = file.place(place.tensor)
    made.set_matrix(
        place.layer,
        place.role,
        int(tensor.type),
        place.stop - place.start,
        columns,
        (descriptor, at + place.start * row, (place.stop - place.start) * row),
        place.order,
    )
