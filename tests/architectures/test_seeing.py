"""The text of models that also see, against transformers: their folders as it saves them, converted, in llama.cpp."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, atol, convert, logits, whole

from edgellm.architectures.seeing import SEEING
from edgellm.converters import read
from edgellm.formats.gguf import GGUFFile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES |= {"image_size": 28, "patch_size": 14}
PARTS: list[tuple[str, str, dict[str, Any]]] = [
    ("mistral3", "mistral", {"model_type": "pixtral", "head_dim": 16}),
    ("mistral3", "ministral3", {"model_type": "pixtral", "head_dim": 16}),
    ("gemma3", "gemma3", {"model_type": "siglip_vision_model"}),
    ("llava", "llama", {"model_type": "clip_vision_model"}),
    ("llava_next", "mistral", {"model_type": "clip_vision_model"}),
    ("internvl", "qwen2", {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]}),
    ("idefics3", "llama", {"model_type": "idefics3"}),
    ("smolvlm", "llama", {"model_type": "smolvlm_vision"}),
    ("aya_vision", "cohere2", {"model_type": "siglip_vision_model"}),
    ("cohere2_vision", "cohere2", {"model_type": "siglip_vision_model"}),
]


def test_all_are_tried() -> None:
    assert {whole for whole, _, _ in PARTS} == SEEING


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("outer", "name", "eyes"), PARTS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_text_agree(outer: str, name: str, eyes: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = {**CONFIGS[name], "tie_word_embeddings": tied or name in ("gemma3", "cohere2")}
    if name == "cohere2":
        text["logit_scale"] = 1.0  # which transformers applies to the text alone, not where there are eyes
    parts = {"text_config": text, "vision_config": {**EYES, **eyes}, "tie_word_embeddings": text["tie_word_embeddings"]}
    kind = transformers.AutoModelForImageTextToText
    model = kind.from_config(transformers.AutoConfig.for_model(outer, **parts)).float()
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        offset = parameter.data if parameter.dim() == 1 else 0.0
        parameter.data = offset + scale * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "source")
    again = kind.from_pretrained(tmp_path / "source", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = again(torch.tensor([TOKENS])).logits[0].numpy()
    with closing(read(tmp_path / "source")) as source:
        description = source.description
        assert any("vision" in each.name for each in description.left_out)
        assert description.hyper.tied == text["tie_word_embeddings"]
        tensors = {
            key: whole(tensor) for key, tensor in source.tensors.items() if not description.architecture.skips(key)
        }
        config = {**source.config, "tie_word_embeddings": description.hyper.tied}
    path = convert(config, tensors, tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        assert ("output.weight" in file.tensors) != text["tie_word_embeddings"]
    found = logits(path, TOKENS)
    assert np.abs(expected).max() > 0.5
    assert np.abs(found - expected).max() < atol(CONFIGS[name])
