"""Questions about text files. What was read of them once is not read again, after a restart neither.

    python examples/ask_documents.py MODEL FILE...

Below each answer stands how much of its prompt was known, and from where.
"""

import argparse
from pathlib import Path

import edgellm

RULES = "Answer questions about the documents below, in a few words. Say so where they do not tell.\n"


def told(done: edgellm.Completion) -> str:
    """How much of a prompt was reused, and where that lay."""
    usage, cache = done.usage, done.cache
    places = {"the engine": cache.from_live, "memory": cache.from_memory, "the disk": cache.from_disk}
    known = ", ".join(f"{tokens:,} from {place}" for place, tokens in places.items() if tokens)
    share = f"{usage.cached_tokens:,} of {usage.prompt_tokens:,} tokens were known ({known or 'none'})"
    return f"{share}; {cache.computed:,} read in {done.timings.prefill_ms / 1000:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions about text files")
    parser.add_argument("model")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--ctx", type=int, help="tokens that documents and conversation may take")
    given = parser.parse_args()
    documents = [f'<document name="{file.name}">\n{file.read_text("utf-8")}\n</document>' for file in given.files]
    try:
        with edgellm.load(given.model, ctx=given.ctx) as model:
            # Each question goes to a conversation of its own, and all begin alike: with the documents.
            start = model.chat(RULES + "\n".join(documents))
            while question := input("> ").strip():
                for chunk in start.fork().stream(question, temperature=0, max_tokens=300):
                    print(chunk.text, end="", flush=True)
                print(f"\n[{told(chunk.completion)}]\n")
    except EOFError:
        print()
    except edgellm.EdgeLLMError as error:  # says what to do, as when the documents do not fit
        raise SystemExit(f"ask_documents: {error}") from error


if __name__ == "__main__":
    main()
