"""A program as somebody writes it who knows nothing of freezing: asks each model a question, one JSON object a line.

program MODEL …    a name that ends in ".convert" is quantized to Q4_K first, which takes a child process
"""

import json
import sys
from pathlib import Path

import edgellm
from edgellm.converters import ConvertParams
from edgellm.converters.convert import convert

PROMPT = "The sky is blue, and the sea is blue too. " * 12 + "Why? Because"


def ask(path: str) -> dict[str, object]:
    if path.endswith(".convert"):
        source = Path(path).with_suffix("")
        path = str(convert(source, source.with_name("made.gguf"), ConvertParams(quant="q4_k", force=True)).path)
    with edgellm.load(path, ctx=512) as model:
        done = model.generate(PROMPT, max_tokens=8, temperature=0)
        return {"text": done.text, "tokens": len(done.tokens), "cached": done.usage.cached_tokens}


def main() -> None:
    print(json.dumps({"started": len(sys.argv)}), flush=True)
    for path in sys.argv[1:]:
        try:
            answer = ask(path)
        except edgellm.EdgeLLMError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


main()
