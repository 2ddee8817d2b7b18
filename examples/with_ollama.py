"""Ollama's own client against edgellm.

    edgellm serve qwen3:1.7b
    python examples/with_ollama.py

Other addresses and models: python examples/with_ollama.py http://127.0.0.1:11435 MODEL
"""

import sys

from ollama import Client
from pydantic import BaseModel, Field


class City(BaseModel, extra="forbid"):  # nothing else may stand in it
    name: str = Field(max_length=40)
    country: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, le=10**9)


def main(url: str = "http://127.0.0.1:11435", model: str = "") -> None:
    client = Client(host=url)
    model = model or client.list().models[0].model
    print(f"{model}: {', '.join(client.show(model).capabilities)}\n")

    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    text = ""
    for part in client.chat(model, messages, stream=True, options={"num_predict": 100}):
        text += part.message.content
        print(part.message.content, end="", flush=True)
    known = getattr(part, "prompt_eval_cached", 0) or 0  # a field of edgellm's
    print(f"\n[{part.prompt_eval_count} tokens of prompt, {known} of them known; {part.eval_count} of answer]\n")

    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Tell me about that city."}]
    done = client.chat(model, messages, format=City.model_json_schema(), options={"temperature": 0})
    print(City.model_validate_json(done.message.content))


if __name__ == "__main__":
    main(*sys.argv[1:])
