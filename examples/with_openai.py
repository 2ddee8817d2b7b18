"""OpenAI's own client against edgellm.

    edgellm serve qwen3:1.7b
    python examples/with_openai.py

Other addresses and models: python examples/with_openai.py http://127.0.0.1:11435 MODEL
"""

import sys

from openai import OpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    name: str = Field(max_length=40)
    country: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, le=10**9)


def main(url: str = "http://127.0.0.1:11435", model: str = "") -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="any")
    model = model or next(iter(client.models.list())).id

    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    text = ""
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
            print(chunk.choices[0].delta.content, end="", flush=True)
        if chunk.usage:
            usage = chunk.usage
    print(f"\n[{usage.prompt_tokens_details.cached_tokens} of {usage.prompt_tokens} tokens were known]\n")

    # The same conversation goes on: what was said is not read again. The answer has a form that is enforced.
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Tell me about that city."}]
    done = client.chat.completions.parse(model=model, messages=messages, response_format=City)
    print(done.choices[0].message.parsed)
    print(f"[{done.usage.prompt_tokens_details.cached_tokens} of {done.usage.prompt_tokens} tokens were known]\n")

    # The newer protocol, in which the server remembers the conversation.
    first = client.responses.create(model=model, input="Name a colour.", max_output_tokens=50)
    print(first.output_text)
    second = client.responses.create(
        model=model, input="And another one.", previous_response_id=first.id, max_output_tokens=50
    )
    print(second.output_text)


if __name__ == "__main__":
    main(*sys.argv[1:])
