"""Thinking: how a model marks what it says to itself, known from its chat template, and what can be said about it.

Most templates keep the reasoning of the turn that goes on, between calls of tools, and drop that of earlier turns. They
do so by themselves if messages carry it under its own name (`messages.REASONING`) and not in their content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgellm.errors import TemplateError, Unsupported
from edgellm.prompts.channels import CHANNELS

if TYPE_CHECKING:
    from edgellm.prompts.template import ChatTemplate

MARKS = (
    ("<|channel|>", "<|end|>", ("<|channel|>analysis",)),
    ("<|channel>thought\n", "<channel|>", ()),
    ("<|START_THINKING|>", "<|END_THINKING|>", ()),
    ("[THINK]", "[/THINK]", ()),
    ("<seed:think>", "</seed:think>", ()),
    ("<|inner_prefix|>", "<|inner_suffix|>", ()),
    ("<think>", "</think>", ()),
    ("<thought>", "</thought>", ()),
    ("<thinking>", "</thinking>", ()),
    ("<reasoning>", "</reasoning>", ()),
)
"""What opens and closes reasoning, and texts that must be there as well; the first pair that a template contains."""
SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""Variables that turn it on and off."""


@dataclass(frozen=True)
class Thinking:
    """The marks around a model's reasoning; all the template says of it is found by trying."""

    opens: str
    closes: str
    template: ChatTemplate

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends within the reasoning, so that the answer begins with it."""
        return prompt.rstrip().endswith(self.opens.rstrip())

    def around(self, prompt: str) -> tuple[str, str, str]:
        """What opens and closes the reasoning in the answer to a prompt, and what must follow it then."""
        if self.opens == CHANNELS:
            return CHANNELS + "analysis<|message|>", self.closes, "<|start|>assistant"
        return "" if self.opened(prompt) else self.opens, self.closes, ""

    @property
    def header(self) -> str:
        """What stands in front of the text of an answer."""
        return CHANNELS + "final<|message|>" if self.opens == CHANNELS else ""

    @property
    def closing(self) -> str:
        """What ends reasoning that has taken long enough."""
        return f"\n{self.closes}\n\n" if self.closes.startswith("</") else self.closes

    @cached_property
    def switch(self) -> str:
        """The variable that turns reasoning off; "" where there is none that does."""
        return next((name for name in SWITCHES if name in self.template.variables and self._turns(name)), "")

    def _turns(self, name: str) -> bool:
        asked = [{"role": "user", "content": "Hello"}]
        on, off = (_rendered(self.template, asked, **{name: value}) for value in (True, False))
        return on != off


def thinking_of(template: ChatTemplate) -> Thinking | None:
    """How the model of a template thinks; None where it does not."""
    for opens, closes, also in MARKS:
        if all(text.rstrip() in template.source for text in (opens, closes, *also)):
            return Thinking(opens, closes, template)
    return None


def variables_for(template: ChatTemplate, wanted: bool | None) -> dict[str, bool]:
    """What a template is given so that its model thinks, or does not. None: as the template has it.

    Raises Unsupported for a model that cannot think, or that cannot be told not to.
    """
    if wanted is None:
        return {}
    thinking = thinking_of(template)
    named = next((name for name in SWITCHES if name in template.variables), "")
    switch = named if thinking is None else thinking.switch
    if switch:
        return {switch: wanted}
    if thinking is None and wanted:
        raise Unsupported("thinking: the model's chat template knows of none; leave it out")
    if thinking is not None and not wanted:
        effort = "; reasoning_effort='low' makes it short" if "reasoning_effort" in template.variables else ""
        raise Unsupported(f"thinking: the model's chat template has no way to turn it off{effort}")
    return {}


def _rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    try:
        return template.render(messages, **variables)
    except (TemplateError, Unsupported):
        return ""
