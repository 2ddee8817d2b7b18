"""ChatTemplate: a conversation in, the text of the prompt out, by the rules the model was trained with.

The template is Jinja source from the model's file. What it sees and what it may do follow `apply_chat_template` of
Hugging Face transformers (https://huggingface.co/docs/transformers/chat_templating), so that the text is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from edgellm.errors import InvalidParameter, TemplateError, Unsupported
from edgellm.prompts.messages import Message, checked, flattened, in_parts, plain
from edgellm.prompts.meter import Stopped
from edgellm.prompts.sandbox import Program

THINKING = ("enable_thinking", "thinking")
"""Variables by which templates switch reasoning on and off."""

_METADATA_KEY = "tokenizer.chat_template"  # GGUF: the default template; with .NAME appended, a named one
_PROBE = "edgellmProbe"
_MARK = "edgellmMark"  # a key of the part that holds the probe: seen where a list is printed, however it is quoted
_CALL = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {}}}
_AROUND: Mapping[str, Callable[[list[Message], list[Message]], list[Message]]] = {
    "user": lambda probe, _: probe,
    "system": lambda probe, user: probe + user,
    "developer": lambda probe, user: probe + user,
    "assistant": lambda probe, user: user + probe + user,
    "tool": lambda probe, user: [*user, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, *probe],
}
"""Where a message of a role stands in a conversation that templates accept."""
_OPEN_END = "edgellmOpenEnd "  # the trailing space shows whether the template trims


def sources(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates in a GGUF header by name; the unnamed one is "default". Empty for a base model."""
    found = {}
    for key, value in metadata.items():
        name = "default" if key == _METADATA_KEY else key.removeprefix(_METADATA_KEY + ".")
        if isinstance(value, str) and (name != key or key == _METADATA_KEY):
            found[name] = value
    return found


class ChatTemplate:
    """One model's chat template, or several of them by name.

    source: the template, or a mapping of names to templates with at least "default"; "tool_use" is the one used when
    tools are given. bos, eos: these tokens as text (None: undefined in the template). tokens: other special tokens
    by the name templates use, such as {"pad_token": "<pad>"}. now: the clock of strftime_now.

    Raises TemplateError when a template does not compile. `render` may be called from any thread.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        bos: str | None = None,
        eos: str | None = None,
        tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        named = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in named:
            raise InvalidParameter(f"no default chat template; there is: {', '.join(named) or 'none'}")
        self.source = "\n".join(named[name] for name in ("default", "tool_use") if name in named)
        self._variants = {name: _Variant(text, now) for name, text in named.items() if name in ("default", "tool_use")}
        self._tokens = {"bos_token": bos, "eos_token": eos, **(tokens or {})}
        self._tokens = {name: text for name, text in self._tokens.items() if text is not None}

    @property
    def variables(self) -> frozenset[str]:
        """The variables the templates read: "messages" and what else they know of ("tools", "enable_thinking", ...)."""
        return frozenset().union(*(variant.program.variables for variant in self._variants.values()))

    def supports(self, feature: Literal["tools", "documents", "thinking", "system"]) -> bool:
        """Whether giving tools, documents, `thinking` or a system message has an effect."""
        if feature == "system":
            conversation = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hello"}]
            try:
                return _PROBE in self.render(conversation)
            except TemplateError:
                return False
        return not self.variables.isdisjoint(THINKING if feature == "thinking" else (feature,))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        messages: see `edgellm.prompts.messages.checked`. add_generation_prompt: end with the header of the model's
        answer (default: unless continue_final_message). continue_final_message: leave the last assistant message open,
        so that the model goes on with it. tools, documents: lists of JSON objects. thinking: switch reasoning on or
        off. variables: whatever else the template reads.

        Raises InvalidParameter for malformed messages, Unsupported when the template does not read what is given, and
        TemplateError when it fails, refuses the conversation or exceeds its limits.
        """
        if add_generation_prompt and continue_final_message:
            raise InvalidParameter("add_generation_prompt and continue_final_message exclude each other; give one")
        uses_tools = tools is not None and "tool_use" in self._variants
        variant = self._variants["tool_use" if uses_tools else "default"]
        values = {**self._tokens, **plain(variables, "variables")}
        if thinking is not None:
            values.update({name: thinking for name in THINKING if name in variant.program.variables})
        given = {"tools": tools, "documents": documents, **variables}
        ignored = [name for name, value in given.items() if value and name not in variant.program.variables]
        if thinking is not None and not variant.program.variables.intersection(THINKING):
            ignored.append("thinking")
        if ignored:
            raise Unsupported(f"the model's chat template has no use for {ignored[0]!r}; leave it out")
        for name in ("tools", "documents"):
            values[name] = _objects(name, given[name])
        values["add_generation_prompt"] = bool(
            not continue_final_message if add_generation_prompt is None else add_generation_prompt
        )
        conversation = [variant.suited(message, values) for message in checked(messages)]
        if continue_final_message:
            return variant.open_ended(conversation, values)
        return variant.program.render({**values, "messages": conversation})


class _Variant:
    """A compiled template, and how it takes the content of each role's messages: as text, as parts, or both."""

    def __init__(self, source: str, now: Callable[[], datetime]) -> None:
        self.program = Program(source, now)
        self._reads: dict[tuple[str, str], bool] = {}  # (form, role)

    def suited(self, message: Message, values: Mapping[str, Any]) -> Message:
        """The message with its content in the form this template reads. Most read text; some, parts only; and some
        parts of the user alone."""
        role, content = message["role"], message.get("content")
        if isinstance(content, str):
            wrong = not self._takes("text", role, values) and self._takes("parts", role, values)
            return in_parts(message) if wrong else message
        if isinstance(content, (list, tuple)) and not self._takes("parts", role, values):
            return flattened(message)
        return message

    def _takes(self, form: str, role: str, values: Mapping[str, Any]) -> bool:
        """Whether the text of a message of this role arrives, and not as the print of a list."""
        if (form, role) not in self._reads:
            user: Message = {"role": "user", "content": "Hello"}
            if role != "user":
                user = self.suited(user, values)
            content = _PROBE if form == "text" else [{"type": "text", "text": _PROBE, _MARK: True}]
            conversation = _AROUND.get(role, _AROUND["assistant"])([{"role": role, "content": content}], [user])
            try:
                text = self.program.render({**values, "tools": None, "messages": conversation})
            except TemplateError as error:
                if isinstance(error.__cause__, Stopped):
                    raise
                text = ""
            self._reads[form, role] = _PROBE in text and _MARK not in text
        return self._reads[form, role]

    def open_ended(self, messages: list[Message], values: Mapping[str, Any]) -> str:
        """The prompt up to the end of the last message's text: a mark is put there, and all from it on is cut."""
        last = messages[-1]
        content = last.get("content")
        if last["role"] != "assistant" or not content:
            raise InvalidParameter("continue_final_message: the last message must be the assistant's and have content")
        if isinstance(content, str):
            said, marked = content, {**last, "content": content + _OPEN_END}
        else:
            said = content[-1]["text"]
            marked = {**last, "content": [*content[:-1], {**content[-1], "text": said + _OPEN_END}]}
        text = self.program.render({**values, "messages": [*messages[:-1], marked]})
        end = text.rfind(_OPEN_END.strip())
        if end < 0 or said.strip() not in text:
            raise TemplateError(
                "continue_final_message: the chat template does not show the last message as it is, so it cannot be "
                "continued; ask for a new answer instead"
            )
        return text[:end] if text.startswith(_OPEN_END, end) else text[:end].rstrip()


def _objects(name: str, values: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Plain copies of a list of JSON objects. Raises InvalidParameter."""
    if values is None:
        return None
    if isinstance(values, (str, Mapping)) or not all(isinstance(value, Mapping) for value in values):
        raise InvalidParameter(f"{name}: a list of JSON objects is needed")
    return [plain(value, f"{name}[{index}]") for index, value in enumerate(values)]
