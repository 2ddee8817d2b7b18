"""Which tokens end an answer whatever a configuration says, by their texts.

They are those that llama.cpp goes by (llama-vocab.cpp, where it fills special_eog_ids), so that a model ends alike in
both formats; what fills a gap in code or begins another file is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ENDS = (
    "</s>", "<eos>", "[EOS]", "[EOT]", "<EOT>", "_<EOT>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>",
    "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>", "[e~[",
)  # fmt: skip
GAPS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<fim-repo>", "<|repo_name|>", "<reponame>", "<REPO>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens around a gap in code, by llama.cpp's name of their role; a file that names one itself has no others."""
NO_ENDS = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|return|>", "<|calls|>")),
    ("<|end|>", ("<|flush|>", "<|call|>")),
    ("<|end|>", ("<|flush|>", "<|calls|>")),
    ("</s>", ("<|tool_response>",)),
    ("</s>", ("<|plamo:eos|>",)),
)
"""Tokens of ENDS that end nothing (they end a message of several) where these do."""


def end_ids(tokens: Mapping[str, int], named: Iterable[int], gaps: Iterable[str] = GAPS) -> frozenset[int]:
    """The ids that end an answer. tokens: texts and their ids; named: ids that a configuration calls so; gaps: roles
    of GAPS that it leaves open."""
    texts = (*ENDS, *(text for role in gaps for text in GAPS[role]))
    found = {tokens[text] for text in texts if text in tokens} | set(named)
    no_ends = {tokens.get(text) for text, others in NO_ENDS if all(tokens.get(other) in found for other in others)}
    return frozenset(found - no_ends)
