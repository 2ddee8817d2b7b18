"""/api/show: what a model is."""

from __future__ import annotations

import asyncio
from typing import Any

from edgellm import ModelInfo, context_that_fits, hub
from edgellm.formats.gguf import GGUFFile
from edgellm.serve.abilities import abilities
from edgellm.serve.endpoint import Call, Reply
from edgellm.serve.models import Listed, info_of
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.models import Named, details_of
from edgellm.serve.openai.wire import IGNORED

LEFT_OUT = ("tokenizer.chat_template",)  # what is in the answer beside


class ShowRequest(Named):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#show-model-information"""

    verbose: bool | None = None


async def show(call: Call[ShowRequest]) -> Reply:
    models = call.state.models
    listed = wire.found(models, call.body.wanted())
    resident = models.resident(listed)
    context = resident.model.n_ctx if resident is not None else None
    about = await asyncio.to_thread(_shown, listed, context, models.serving.load.ctx)
    return Reply(about, headers={IGNORED: "verbose"} if call.body.verbose else {})


def _shown(listed: Listed, loaded: int | None, asked: int | None) -> dict[str, Any]:
    """loaded: the context that it has; None: the one that it would get, of which `asked` is."""
    info = info_of(listed)
    context = loaded or context_that_fits(info, asked, 0)
    template = info.chat_template or "{{ .Prompt }}"
    parameters = f"num_ctx                        {context}"
    license = info.license or _license(listed) or ""
    return {
        "modelfile": f'FROM {listed.name}\nTEMPLATE """{template}"""\nPARAMETER num_ctx {context}\n',
        "parameters": parameters,
        "template": template,
        "license": license,
        "details": details_of(info),
        "model_info": _model_info(listed, info, context),
        "capabilities": [each for each in abilities(info) if each != "chat"],
        "modified_at": wire.stamp(listed.modified),
    }


def _license(listed: Listed) -> str | None:
    stored = (each for each in hub.ModelStore().list() if not each.problem and each.path == listed.path)
    return next((each.license for each in stored), None)


def _model_info(listed: Listed, info: ModelInfo, context: int) -> dict[str, Any]:
    """What the header of a GGUF file says, lists as null; of other files the same as far as it is known.

    context_length is what may be asked here, by which clients size their prompts, and not what the model was trained
    for, which is beside it under a name that none of them takes for it."""
    arch = info.architecture
    about: dict[str, Any] = {"general.basename": info.name}
    if info.format == "gguf":
        with GGUFFile.open(listed.path) as file:
            for key, value in file.metadata.items():
                if key not in LEFT_OUT:
                    about[key] = value if isinstance(value, (str, int, float)) else None
    about.setdefault(f"{arch}.attention.head_count", info.n_head)
    about.setdefault(f"{arch}.feed_forward_length", info.n_ff)
    return {
        **about,
        "general.architecture": arch,
        "general.parameter_count": info.n_params,
        f"{arch}.block_count": info.n_layer,
        f"{arch}.context_length": context,
        f"{arch}.embedding_length": info.n_embd,
        f"{arch}.vocab_size": info.n_vocab,
        "edgellm.trained_context": info.n_ctx_train,
    }
