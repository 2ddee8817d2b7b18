"""What config.json of published checkpoints says, by the model's name; of models that also see, without what they see
with.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
# what transformers writes beside
IDS: Config = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True}
USUAL: Config = {**IDS, "hidden_act": "silu", "attention_dropout": 0.0, "rms_norm_eps": 1e-05}


def _ministral(factor: float, original: int, theta: float, **more: Any) -> Config:
    rope = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": factor, "llama_4_scaling_beta": 0.1, "mscale": 1.0}
    rope |= {"mscale_all_dim": 1.0, "original_max_position_embeddings": original, "rope_theta": theta}
    return {
        **USUAL,
        "model_type": "ministral3",
        "head_dim": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": int(factor) * original,
        "rope_parameters": {**rope, "rope_type": "yarn", "type": "yarn"},
        "sliding_window": None,
        "vocab_size": 131072,
        **more,
    }


def _seeing(text: Config, **more: Any) -> Config:
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": 10,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": text,
        "transformers_version": "5.0.0.dev0",
        "vision_config": {"model_type": "pixtral"},
        "vision_feature_layer": -1,
        **more,
    }


def _olmo(**more: Any) -> Config:
    rope = {"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0}
    return {
        **USUAL,
        "model_type": "olmo3",
        "attention_bias": False,
        "dtype": "bfloat16",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {**rope, "original_max_position_embeddings": 8192, "rope_type": "yarn"},
        "rope_theta": 500000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0",
        "vocab_size": 100278,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * (more["num_hidden_layers"] // 4),
        **more,
    }


def _ernie(**more: Any) -> Config:
    return {
        **USUAL,
        "architectures": ["Ernie4_5_ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_ernie4_5.Ernie4_5_ForCausalLM"},
        "model_type": "ernie4_5",
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 131072,
        "num_attention_heads": 16,
        "num_hidden_layers": 18,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 500000,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "vocab_size": 103424,
        **more,
    }


def _glm(**more: Any) -> Config:
    return {
        **USUAL,
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "eos_token_id": [151329, 151336, 151338],
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 2,
        "pad_token_id": 151329,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vocab_size": 151552,
        **more,
    }


def _cohere(**more: Any) -> Config:
    return {
        **IDS,
        "architectures": ["Cohere2ForCausalLM"],
        "model_type": "cohere2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "cache_implementation": "hybrid",
        "head_dim": 128,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-05,
        "layer_switch": 4,
        "logit_scale": 0.25,
        "num_key_value_heads": 8,
        "order_of_interleaved_layers": "local_attn_first",
        "pad_token_id": 0,
        "position_embedding_type": "rope_gptj",
        "rope_scaling": None,
        "rope_theta": 50000,
        "rotary_pct": 1.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "torch_dtype": "bfloat16",
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": False,
        "vocab_size": 256000,
        **more,
    }


COHERE_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
COHERE_111B = {"hidden_size": 12288, "intermediate_size": 36864, "num_hidden_layers": 64, "num_attention_heads": 96}


def _exaone(**more: Any) -> Config:
    rope = {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
    return {
        **USUAL,
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "eos_token_id": 361,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rope_scaling": {**rope, "rope_type": "llama3"},
        "rope_theta": 1000000,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
        **more,
    }


EXAONE_1B = {"hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32}
EXAONE_1B |= {"head_dim": 64, "max_position_embeddings": 65536}
EXAONE_32B = {"hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 64, "num_attention_heads": 40}
EXAONE_32B |= {"head_dim": 128, "max_position_embeddings": 131072}
GLM_9B = {"hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32}
GLM_32B = {"hidden_size": 6144, "intermediate_size": 23040, "num_hidden_layers": 61, "num_attention_heads": 48}
OLMO_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
OLMO_32B = {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40}
DEVSTRAL_ROPE = {"beta_fast": 4.0, "beta_slow": 1.0, "factor": 64.0, "mscale": 1.0, "mscale_all_dim": 0.0}
DEVSTRAL_ROPE |= {"original_max_position_embeddings": 4096, "llama_4_scaling_beta": 0.0, "rope_theta": 1e6}
PUBLISHED: dict[str, Config] = {
    "Devstral-2-123B-Instruct-2512": {
        **_ministral(64.0, 4096, 1e6, hidden_size=12288, intermediate_size=28672, num_hidden_layers=88),
        "architectures": ["Ministral3ForCausalLM"],
        "num_attention_heads": 96,
        "rope_parameters": {**DEVSTRAL_ROPE, "rope_type": "yarn", "type": "yarn"},
        "tie_word_embeddings": False,
    },
    "llava-1.5-7b-hf": {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {"model_type": "clip_vision_model"},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    },
    "SmolVLM-256M-Instruct": {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "idefics3",
        "scale_factor": 4,
        "text_config": {
            "_flash_attn_2_enabled": True,
            "_name_or_path": "None",
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 64,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pad_token_id": 2,
            "perceiver_config": {"model_type": "vllama3"},
            "pixel_shuffle_factor": 4,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "use_resampler": False,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "idefics3"},
    },
    "EXAONE-4.0-1.2B": _exaone(
        **EXAONE_1B,
        layer_types=["full_attention"] * 30,
        sliding_window=None,
        sliding_window_pattern=None,
        tie_word_embeddings=True,
    ),
    "EXAONE-4.0-32B": _exaone(
        **EXAONE_32B,
        layer_types=[*["sliding_attention"] * 3, "full_attention"] * 16,
        sliding_window=4096,
        sliding_window_pattern="LLLG",
        tie_word_embeddings=False,
    ),
    "EXAONE-4.0-32B with its pattern as a number": _exaone(
        **EXAONE_32B, sliding_window=4096, sliding_window_pattern=4, tie_word_embeddings=False
    ),
    "c4ai-command-r7b-12-2024": _cohere(**COHERE_7B, max_position_embeddings=132096),
    "c4ai-command-a-03-2025": _cohere(**COHERE_111B, max_position_embeddings=131072),
    "aya-vision-8b": {
        "architectures": ["AyaVisionForConditionalGeneration"],
        "model_type": "aya_vision",
        "image_token_index": 255036,
        "text_config": _cohere(**COHERE_7B, max_position_embeddings=8192),
        "vision_config": {"model_type": "siglip_vision_model"},
    },
    "ERNIE-4.5-0.3B-PT": _ernie(tie_word_embeddings=True),
    "ERNIE-4.5-0.3B-Base-PT as transformers 4.54 saves it": _ernie(
        rope_scaling=None, rope_theta=500000.0, transformers_version="4.54.0.dev0"
    ),
    "ERNIE-4.5-0.3B-PT as transformers 5 saves it": {
        **_ernie(dtype="bfloat16", tie_word_embeddings=True, rope_theta=None),
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    },
    "GLM-4-9B-0414": _glm(**GLM_9B, attention_bias=True),
    "GLM-4-32B-0414": _glm(**GLM_32B, attention_bias=False),
    "GLM-Z1-9B-0414 with a longer context": _glm(
        **GLM_9B,
        attention_bias=True,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    "Olmo-3-7B-Instruct": _olmo(**OLMO_7B, num_key_value_heads=32),
    "Olmo-3-32B-Think": _olmo(**OLMO_32B, num_key_value_heads=8),
    "Olmo-3-1125-32B before its context was stretched": {
        **_olmo(**OLMO_32B, num_key_value_heads=8, max_position_embeddings=8192),
        "rope_scaling": None,
    },
    "Ministral-3-3B-Instruct-2512": _seeing(
        _ministral(
            16.0, 16384, 1e6, hidden_size=3072, intermediate_size=9216, num_hidden_layers=26, tie_word_embeddings=True
        )
    ),
    "Ministral-3-8B-Instruct-2512": _seeing(
        _ministral(16.0, 16384, 1e6, hidden_size=4096, intermediate_size=14336, num_hidden_layers=34),
        tie_word_embeddings=False,
    ),
    "Ministral-3-14B-Instruct-2512": _seeing(
        _ministral(16.0, 16384, 1e9, hidden_size=5120, intermediate_size=16384, num_hidden_layers=40)
    ),
    "Devstral-Small-2-24B-Instruct-2512": _seeing(
        _ministral(48.0, 8192, 1e8, hidden_size=5120, intermediate_size=32768, num_hidden_layers=40)
    ),
    "Mistral-Small-3.2-24B-Instruct-2506": _seeing({
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": 131072,
    }),
}  # fmt: skip
# what is found in them: the family, layers, the embedding, elements of a head, whether the output is the embedding
FOUND: dict[str, tuple[str, int, int, int, bool]] = {
    "Devstral-2-123B-Instruct-2512": ("ministral3", 88, 12288, 128, False),
    "llava-1.5-7b-hf": ("llama", 32, 4096, 128, False),
    "SmolVLM-256M-Instruct": ("llama", 30, 576, 64, False),
    "EXAONE-4.0-1.2B": ("exaone4", 30, 2048, 64, True),
    "EXAONE-4.0-32B": ("exaone4", 64, 5120, 128, False),
    "EXAONE-4.0-32B with its pattern as a number": ("exaone4", 64, 5120, 128, False),
    "c4ai-command-r7b-12-2024": ("cohere2", 32, 4096, 128, True),
    "c4ai-command-a-03-2025": ("cohere2", 64, 12288, 128, True),
    "aya-vision-8b": ("cohere2", 32, 4096, 128, True),
    "ERNIE-4.5-0.3B-PT": ("ernie4_5", 18, 1024, 128, True),
    "ERNIE-4.5-0.3B-Base-PT as transformers 4.54 saves it": ("ernie4_5", 18, 1024, 128, True),
    "ERNIE-4.5-0.3B-PT as transformers 5 saves it": ("ernie4_5", 18, 1024, 128, True),
    "GLM-4-9B-0414": ("glm4", 40, 4096, 128, False),
    "GLM-4-32B-0414": ("glm4", 61, 6144, 128, False),
    "GLM-Z1-9B-0414 with a longer context": ("glm4", 40, 4096, 128, False),
    "Olmo-3-7B-Instruct": ("olmo3", 32, 4096, 128, False),
    "Olmo-3-32B-Think": ("olmo3", 64, 5120, 128, False),
    "Olmo-3-1125-32B before its context was stretched": ("olmo3", 64, 5120, 128, False),
    "Ministral-3-3B-Instruct-2512": ("ministral3", 26, 3072, 128, True),
    "Ministral-3-8B-Instruct-2512": ("ministral3", 34, 4096, 128, False),
    "Ministral-3-14B-Instruct-2512": ("ministral3", 40, 5120, 128, False),
    "Devstral-Small-2-24B-Instruct-2512": ("ministral3", 40, 5120, 128, False),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", 40, 5120, 128, False),
}
