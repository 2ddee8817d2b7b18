"""Anthropic's own client against edgellm.

    edgellm serve --alias 'claude-*=qwen3:1.7b' qwen3:1.7b
    python examples/with_anthropic.py

Other addresses and models: python examples/with_anthropic.py http://127.0.0.1:11435 MODEL
"""

import sys

from anthropic import Anthropic

WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def main(url: str = "http://127.0.0.1:11435", model: str = "") -> None:
    client = Anthropic(base_url=url, api_key="any")
    model = model or client.models.list().data[0].id
    system = "You are brief and exact."
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    count = client.messages.count_tokens(model=model, system=system, messages=messages).input_tokens
    print(f"[the prompt has {count} tokens]")

    with client.messages.stream(model=model, system=system, messages=messages, max_tokens=100) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        usage = stream.get_final_message().usage
    print(f"\n[{usage.cache_read_input_tokens} tokens were known, {usage.input_tokens} were not]\n")

    # A call of a tool that must come does, and its arguments are what the schema allows.
    done = client.messages.create(
        model=model,
        system=system,
        messages=[{"role": "user", "content": "Do I need an umbrella in Oslo?"}],
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather"},
        max_tokens=200,
    )
    call = next(block for block in done.content if block.type == "tool_use")
    print(f"{call.name}({call.input})")


if __name__ == "__main__":
    main(*sys.argv[1:])
