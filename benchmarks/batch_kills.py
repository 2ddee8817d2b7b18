"""Kills: a job that is killed again and again, beside the same one undisturbed.

    python benchmarks/batch_kills.py MODEL [--lines 10000] [--kills 20] [--seed 0] [--tokens 4] [--folder DIR]

`edgellm batch` answers the lines, half of them in OpenAI's format, greedily. Then it does so again, gets SIGKILL at
random moments and is started anew with the same command, until it is through. Every line must then be there once, with
the answer that it has without kills. Prints what was found, and how long both took. MODEL "echo" is the fake one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOUNS = ["river", "mill", "baker", "harbour", "lantern", "orchard", "clock", "teacher", "violin", "bridge", "garden"]


def rows(count: int, tokens: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at in range(count):
        text = f"What is a {NOUNS[at % len(NOUNS)]} of {NOUNS[at // 11 % len(NOUNS)]} number {at}?"
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": tokens}
        url = "/v1/chat/completions"
        asked = {"custom_id": f"c{at}", "method": "POST", "url": url, "body": body}
        found.append({"prompt": text, "id": f"p{at}"} if at % 2 else asked)
    random.Random(1).shuffle(found)
    return found


def said(path: Path) -> dict[str, str]:
    """The answers by their ids. Raises ValueError for an id that comes twice, or an error."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        each = json.loads(line)
        if "custom_id" in each:
            id, text = each["custom_id"], each["response"]["body"]["choices"][0]["message"]["content"]
        else:
            id, text = each["id"], each["text"]
        if id in found:
            raise ValueError(f"{id} comes twice")
        found[id] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=4, help="of an answer, at most")
    parser.add_argument("--folder", type=Path)
    wanted = parser.parse_args()
    folder = wanted.folder or Path(tempfile.mkdtemp(prefix="batch-kills-"))
    given, calm, killed = (folder / f"{name}.jsonl" for name in ("in", "calm", "killed"))
    given.write_text("".join(f"{json.dumps(row)}\n" for row in rows(wanted.lines, wanted.tokens)), encoding="utf-8")

    def command(out: Path) -> list[str]:
        model = ["--model", wanted.model, *(["--backend", "echo"] if wanted.model == "echo" else [])]
        options = ["--temperature", "0", "--max-tokens", str(wanted.tokens), "--ctx", "512"]
        return [sys.executable, "-m", "edgellm", "batch", str(given), "-o", str(out), *model, *options]

    begun = time.monotonic()
    subprocess.run(command(calm), check=True)
    alone = time.monotonic() - begun
    expected = said(calm)
    chance, kills, partial = random.Random(wanted.seed), 0, 0
    size, begun = calm.stat().st_size, time.monotonic()
    moments = sorted(chance.uniform(0, 0.98) * size for _ in range(wanted.kills))
    while True:
        with subprocess.Popen(command(killed)) as running:
            wait = chance.uniform(0, 0.02)
            while running.poll() is None and kills < len(moments):
                if (killed.stat().st_size if killed.exists() else 0) >= moments[kills]:
                    time.sleep(wait)
                    running.kill()
                    kills += 1
                    break
                time.sleep(0.005)
            code = running.wait()
        partial += (
            code < 0 and killed.exists() and not killed.read_bytes().endswith(b"\n") and killed.stat().st_size > 0
        )
        if code >= 0:
            break
    found = said(killed)
    different = [id for id in expected if found.get(id) != expected[id]]
    about = {
        "lines": wanted.lines,
        "kills": kills,
        "exit_code": code,
        "answers": len(found),
        "missing": len(expected.keys() - found.keys()),
        "different": len(different),
        "lines_that_were_cut": partial,
        "seconds_alone": round(alone, 1),
        "seconds_with_kills": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(about))
    sys.exit(bool(code or different or len(found) != wanted.lines or kills != wanted.kills))


if __name__ == "__main__":
    main()
