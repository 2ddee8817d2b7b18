"""Config: named values of which each must be read, or be known to carry nothing, before a conversion goes on.

It holds a `config.json` or the key-values of one architecture in a GGUF file. A key that nobody read may change the
mathematics, so `finish` stops there instead of producing a model that answers differently.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from ..errors import InvalidModelFile, Unsupported

T = TypeVar("T")

# what config.json carries for training, for generation, or for the library that wrote it; see `finish` for dropouts
_NAMES = """
    model_type architectures auto_map transformers_version torch_dtype dtype use_cache _name_or_path name_or_path
    resid_pdrop embd_pdrop attn_pdrop hidden_dropout_prob attention_probs_dropout_prob
    initializer_range initializer_factor initialization output_attentions output_hidden_states return_dict torchscript
    is_decoder is_encoder_decoder tie_encoder_decoder chunk_size_feed_forward gradient_checkpointing
    id2label label2id num_labels problem_type task_specific_params finetuning_task tokenizer_class prefix
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    bos_token eos_token pad_token unk_token eot_token_id image_token_id
    temperature top_k top_p typical_p do_sample max_length min_length max_new_tokens repetition_penalty length_penalty
    num_beams num_beam_groups num_return_sequences diversity_penalty early_stopping no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty output_scores return_dict_in_generate
    summary_type summary_use_proj summary_activation summary_proj_to_labels predict_special_tokens
    output_router_logits router_aux_loss_coef router_jitter_noise cache_implementation
    _attn_implementation attn_implementation _attn_implementation_autoset cross_attention_hidden_size tf_legacy_loss
    use_bfloat16 transformers.js_config unsloth_version unsloth_fixed is_llama_config custom_pipelines _num_labels
    initializer_cutoff_factor reference_compile repad_logits_with_grad deterministic_flash_attn
    sparse_prediction sparse_pred_ignore_index decoder_bias classifier_pooling classifier_bias classifier_activation
    fused_bias_fc fused_dropout_add_ln dense_seq_output use_flash_attn use_xentropy pad_vocab_size_multiple
    reorder_and_upcast_attn parallel_block_tied_norm last_layer_subset
    tie_weights_ keys_to_ignore_at_inference sbert_ce_default_activation_function sbert_ce_version sentence_transformers
    _flash_attn_2_enabled neftune_noise_alpha perceiver_config use_resampler pixel_shuffle_factor
"""
HARMLESS = frozenset(_NAMES.split())

# what must have this value, whatever the family
FIXED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "pruned_heads": (None, {}),
    "add_cross_attention": (False, None),
    "qk_layer_norms": (False, None),
}


class Config:
    """Values under their names; `where` names their file in messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = {key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in values.items()}
        self.where = where
        self._read: set[str] = set()

    def __contains__(self, key: str | None) -> bool:
        return key in self.values

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key, read; the default where it is absent or null.

        Raises InvalidModelFile where it is missing without a default, or has another type.
        """
        value = self.maybe(key, kind)
        if value is not None:
            return value
        if default is None:
            raise InvalidModelFile(f"{self.where}: {key!r} is missing; without it the model cannot be converted")
        return default

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, read, or None."""
        self._read.add(key)
        value = self.values.get(key)
        if value is None:
            return None
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = float(value) if abs(value) <= sys.float_info.max else str(value)  # infinite or NaN is no number
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InvalidModelFile(f"{self.where}: {key!r} is {value!r:.60}, expected {kind.__name__}")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Read a key whose value must be one of `allowed` where it is given at all.

        Raises Unsupported for another value: it would change the model's mathematics.
        """
        self._read.add(key)
        if key in self.values and self.values[key] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise Unsupported(
                f"{self.where}: {key} = {self.values[key]!r}; only {wanted} can be converted without changing the model"
            )

    def finish(self, harmless: frozenset[str] = HARMLESS) -> None:
        """Raises Unsupported naming every key that was neither read nor known to carry nothing."""
        for key, allowed in FIXED.items():
            self.expect(key, *allowed)
        left = [key for key in self.values if key not in self._read | harmless and not key.endswith("dropout")]
        if left:
            raise Unsupported(
                f"{self.where}: unknown keys {', '.join(sorted(left))}; they may change the model's mathematics. "
                "If they do not, remove them and convert again"
            )


def shortest(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
