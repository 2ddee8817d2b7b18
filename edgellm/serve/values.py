"""Values of options as JSON has them, and the names that others have for some: the same in every dialect and job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter
from edgellm.option import Biases, Strings, Whole

NAMES = [name for name in GenerateParams.OPTIONS if name not in ("schema", "logprobs", "max_tokens")]
"""What requests may have beside the fields of their protocol, whose words for these three are their own."""
ELSEWHERE = {
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "penalty_last_n",
    "typ_p": "typical_p",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}
"""What options are called by the clients of vLLM, llama.cpp and Hugging Face."""
STRINGS = 1 << 16
"""Characters of all stop strings of a request."""
UNSET: dict[str, int] = {"max_tokens": -1, "seed": -1, "top_k": -1}
"""By what clients say that an option is not set, or off."""


def taken(name: str, value: Any) -> Any:
    """The value of an option as JSON has it, as GenerateParams takes it: numbers have one kind there, keys are texts,
    and what is empty is not given."""
    rule = GenerateParams.OPTIONS[name].rule
    if isinstance(rule, Whole) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if UNSET.get(name) == value and not isinstance(value, bool):
        return 0 if name == "top_k" else None
    if name == "seed" and isinstance(value, int) and -(2**63) <= value < 0:  # clients have signed ones
        return value % 2**64
    if isinstance(rule, Strings):
        listed = [value] if isinstance(value, str) else value
        return _strings(name, listed) if isinstance(listed, list) else value
    if isinstance(rule, Biases) and isinstance(value, Mapping):
        try:
            return {int(token): bias for token, bias in value.items()}
        except ValueError:
            raise InvalidParameter(f"{name}: its keys must be token ids") from None
    return value


def _strings(name: str, listed: list[Any]) -> list[Any]:
    """Those that say something. Raises InvalidParameter where they are so many or so long that what is made of them,
    which is done on the event loop, holds others up."""
    size = sum(len(each) for each in listed if isinstance(each, str))
    if name != "choices" and size > STRINGS:  # which have a limit of their own
        raise InvalidParameter(f"{name}: {size:,} characters; {STRINGS:,} is the most")
    return [each for each in listed if each != ""]
