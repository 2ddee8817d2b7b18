"""/api/generate: an answer to one prompt, or a text that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgellm import Model, ToolCall
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.prompter import Turn
from edgellm.serve.ask import Ask, prompt_of
from edgellm.serve.endpoint import Call, Reply, Stream
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.answer import Form, answered, loaded
from edgellm.serve.ollama.options import Asking

REFUSED = {
    "suffix": "text between a beginning and an end is not written here",
    "template": "the model's own template is used; with raw=true there is none",
    "images": "this model reads text alone",
}
MARK = "edgellmAnswer"  # stands for an answer, so that what a template puts behind one is found


class GenerateRequest(Asking):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-completion"""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


async def generate(call: Call[GenerateRequest]) -> Reply | Stream:
    body = call.body
    listed = wire.found(call.state.models, body.model)
    form = Form(body.model or listed.name, _response, context=not body.raw)
    keep = wire.seconds_of(body.keep_alive)
    for name, why in REFUSED.items():
        if getattr(body, name):
            raise Unsupported(f"{name}: {why}")
    more = ("system",) if body.system and (body.context or not body.prompt) else ()
    if not body.prompt:
        return await loaded(call, listed, form, keep, *more)
    return await answered(call, call.answering(listed, _ask(body, keep)), form, *more)


def _ask(body: GenerateRequest, keep: float | None) -> Ask:
    if body.raw and (body.system or body.context):
        raise InvalidParameter("raw: a raw prompt takes neither system nor context; put them into it")
    thinking, variables = wire.think_of(body.think)
    ask = Ask(params=body.params(), thinking=thinking, variables=variables, keep=keep)
    prompt = body.prompt or ""
    if body.raw:
        return replace(ask, prompt=prompt)
    system = [{"role": "system", "content": body.system}] if body.system and not body.context else []
    asked = replace(ask, messages=[*system, {"role": "user", "content": prompt}])
    return replace(ask, make=_maker(asked, prompt, body.context or []))


def _maker(asked: Ask, prompt: str, context: list[int]) -> Callable[[Model], list[int] | Turn]:
    """What makes the prompt, behind the tokens of an earlier exchange."""

    def make(model: Model) -> list[int] | Turn:
        wrong = next((token for token in context if not 0 <= token < model.info.n_vocab), None)
        if wrong is not None:
            raise InvalidParameter(f"context: token {wrong} is outside the vocabulary of {model.info.n_vocab}")
        if model.info.chat_template is None:
            if len(asked.messages) > 1:
                raise Unsupported(f"system: {model.info.name} has no chat template; put it into the prompt")
            return [*context, *model.encode(prompt, bos=not context)]
        if not context:
            return prompt_of(model, asked)
        before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}]
        turn = prompt_of(model, replace(asked, messages=[*before, *asked.messages]))
        assert isinstance(turn, Turn)
        _, marked, tail = turn.written.partition(MARK)
        if not marked:
            raise Unsupported("context: the chat template of this model does not show earlier answers; send messages")
        return replace(turn, tokens=[*context, *turn.said.tokens(tail, (), bos=False)], title=prompt)

    return make


def _response(text: str, reasoning: str, _calls: Sequence[ToolCall]) -> dict[str, Any]:
    return {"response": text, "thinking": reasoning} if reasoning else {"response": text}
