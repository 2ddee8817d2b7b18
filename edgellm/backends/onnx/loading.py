"""What to load and how: files, context, memory, threads and provider, decided before ONNX Runtime sees the model."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

from edgellm import machine
from edgellm.backends.base import ModelInfo
from edgellm.backends.onnx import kernels, library
from edgellm.backends.onnx.graph import Roles, roles
from edgellm.backends.onnx.info import model_info
from edgellm.backends.onnx.pooling import Pooling, pooling_of
from edgellm.budget import contexts
from edgellm.errors import EdgeLLMError, ModelLoadError, NotEnoughMemory, Unsupported, UnsupportedArchitecture
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_folder import ModelFolder
from edgellm.params import LoadParams
from edgellm.tokenizers.text import TextTokenizer, open_tokenizer

log = logging.getLogger("edgellm.onnx")

UNKNOWN_OPERATOR = ("is not a registered function/op", "Could not find an implementation", "No Op registered")
RIGHT_EMBEDDINGS = (1, 27)
OUT_OF_MEMORY = (
    "bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory", "Cannot allocate memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions for one load. n_ctx limits one sequence, max_cells all of them together (tokens). providers: best
    first. mixes_batches: what a text gives depends on the texts beside it in a batch. rewritten: what ONNX
    Runtime gets instead of the file, None where that is loaded as it is."""

    folder: ModelFolder
    roles: Roles
    info: ModelInfo
    tokenizer: TextTokenizer
    pooling: Pooling | None
    params: LoadParams
    n_ctx: int
    max_cells: int
    threads: int
    providers: list[str]
    mixes_batches: bool
    rewritten: kernels.Rewritten | None


def describe(file: ONNXFile, folder: ModelFolder) -> tuple[ModelInfo, Roles, TextTokenizer]:
    """What the files say. Raises InvalidModelFile, UnsupportedArchitecture, Unsupported."""
    path = folder.file("tokenizer.json")
    if path is None:
        raise Unsupported(f"{folder.root}: no tokenizer.json, without which text cannot be read; export the model anew")
    found = roles(file.graph, folder.model, folder.config, folder.genai)
    tokenizer = open_tokenizer(path, folder.tokenizer_config)
    info = model_info(file, folder, found, tokenizer)
    tokenizer.widen(info.n_vocab)
    return info, found, tokenizer


def plan(folder: ModelFolder, params: LoadParams) -> Plan:
    """Decide. Raises NotEnoughMemory with the numbers, InvalidModelFile, UnsupportedArchitecture, Unsupported."""
    library.load_library()
    with ONNXFile.open(folder.model) as file:  # of which the weights that our kernels take stay mapped
        _check_library(file)
        info, found, tokenizer = describe(file, folder)
        dynamic = any(node.op.startswith("DynamicQuantize") for node in file.graph.nodes)
        providers, reason = library.providers(params.gpu_layers, found.kv_type)
        threads = params.threads or machine.usable_cores()
        rewritten = kernels.rewritten(file, found, threads, cpu=providers[0] == library.CPU)
    if params.kv_type not in (None, found.kv_type):
        has = f"the graph keeps {found.kv_type}" if found.kv_type else "the graph has no KV cache"
        raise Unsupported(f"{info.path}: kv_type={params.kv_type!r}, but {has}; leave kv_type away, or export anew")
    if params.flash_attention is not None:
        raise Unsupported(f"{info.path}: ONNX Runtime chooses the kernel of attention; leave flash_attention away")
    n_ctx, max_cells = _context(info, found, params)
    if folder.choice:
        log.info("%s: %s", folder.root, folder.choice)
    log.info("%s runs on %s: %s", info.name, providers[0], reason)
    return Plan(
        folder=folder,
        roles=found,
        info=info,
        tokenizer=tokenizer,
        pooling=None if found.decodes else pooling_of(folder, pooled=found.pooled),
        params=params,
        n_ctx=n_ctx,
        max_cells=max_cells,
        threads=threads,
        providers=providers,
        mixes_batches=dynamic,
        rewritten=rewritten,
    )


def _check_library(file: ONNXFile) -> None:
    """ONNX Runtime before 1.27 gives other numbers for embeddings of 4 bits in bytes, and says nothing."""
    weights = {each.name: each for each in file.graph.initializers}
    for node in file.graph.nodes:
        if node.op != "GatherBlockQuantized" or node.attributes.get("bits", 4) != 4 or not node.inputs:
            continue
        codes = weights.get(node.inputs[0])
        if codes is not None and codes.dtype == "UINT8" and library.version() < RIGHT_EMBEDDINGS:
            raise Unsupported(
                f"{file.path}: its embedding has 4 bits, which ONNX Runtime reads rightly from 1.27 on, and this is "
                f"{library.distribution()[1]}: pip install -U onnxruntime (Python 3.11 or later), or export it as int8"
            )


def session(plan: Plan) -> Any:
    """An InferenceSession. Where a GPU was chosen and fails, the CPU runs the model, unless a GPU was asked for.

    Raises UnsupportedArchitecture for operators that ONNX Runtime does not have, NotEnoughMemory, ModelLoadError.
    """
    try:
        return _session(plan, plan.providers)
    except EdgeLLMError as error:
        if plan.providers[0] == library.CPU or plan.params.gpu_layers != "auto":
            raise
        log.warning("the CPU runs %s: %s failed: %s", plan.info.name, plan.providers[0], error)
    return _session(plan, [library.CPU])


def _session(plan: Plan, providers: list[str]) -> Any:
    module = library.load_library()
    options = module.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = library.FATAL
    options.enable_mem_pattern = False  # shapes change with every token: no pattern is ever used twice
    options.add_session_config_entry("session.force_spinning_stop", "1")  # threads spin within a pass, not after it
    model: str | bytes = str(plan.folder.model)
    try:
        if plan.rewritten is not None:
            kernels.register(options, plan.rewritten.folder, operators=bool(plan.rewritten.operators))
            plan.rewritten.lend(options)
            model = plan.rewritten.model
        # Its own way to try again prints to stdout, and takes another provider than the one that was asked for.
        made = module.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise _load_error(plan, str(error)) from error
    if made.get_providers()[0] != providers[0]:
        raise ModelLoadError(f"{plan.folder.model}: ONNX Runtime could not use {providers[0]} on this machine")
    if plan.rewritten is not None:
        plan.rewritten.release()
    return made


def _load_error(plan: Plan, reason: str) -> EdgeLLMError:
    model, reason = plan.folder.model, re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    if any(words in reason for words in UNKNOWN_OPERATOR):
        return UnsupportedArchitecture(
            f"{model}: {reason}. This ONNX Runtime does not have an operator of the graph; a newer one may"
        )
    if any(words in reason for words in OUT_OF_MEMORY):
        return NotEnoughMemory(f"{model}: ONNX Runtime had not enough memory: {reason}")
    return ModelLoadError(f"{model}: ONNX Runtime refused the model: {reason}")


def _context(info: ModelInfo, found: Roles, params: LoadParams) -> tuple[int, int]:
    """Tokens of one sequence, and of all of them together."""
    if not found.decodes:
        n_ctx = min(params.ctx or info.n_ctx_train, info.n_ctx_train)
        return n_ctx, n_ctx
    per_token = info.kv_bytes_per_token * (1 if found.shared else 2)  # a copied cache is there twice
    needs = replace(info, kv_bytes_per_token=per_token)
    return contexts(needs, params.ctx, machine.memory().available)
