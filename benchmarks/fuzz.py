"""A fuzzer over the public API: wrong and odd arguments, and close() from another thread while calls run.

    python benchmarks/fuzz.py --count 10000 --engine llamacpp

Every call must be fine or end in a typed error; nothing else may come out, no process may die and no call may hang.
Calls are drawn from the signatures of the public names by hypothesis (tests/fuzzing.py), on tiny random models. They
run in a child process that writes down each call before it makes it, so that a death is reported with the call that
caused it; another child goes on behind it. One call in six meets a model that another thread closes meanwhile, one in
twenty one that was closed before. Exit code 1 for anything but typed errors.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

ENGINES = ("llamacpp", "onnx", "echo")
SECONDS = 60  # that a call may take before it counts as hung


def write_model(engine: str, folder: Path) -> Path:
    """A tiny model for an engine, with a chat template."""
    if engine == "llamacpp":
        from tiny_models import tiny

        model = tiny("llama")
        model.metadata["tokenizer.chat_template"] = (
            "{% for message in messages %}<|bos|>{{ message['content'] }}<|end|>{% endfor %}"
        )
        return model.write(folder / "tiny.gguf")
    if engine == "onnx":
        from tiny_onnx import write_decoder

        return write_decoder(folder / "tiny")
    return folder / "echo"


def campaign(engine: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the calls in children; what came of them: outcomes, raw errors with their calls, deaths with theirs."""
    path, log = write_model(engine, folder), folder / "log"
    found: dict[str, Any] = {"engine": engine, "calls": 0, "outcomes": Counter(), "raw": [], "deaths": []}
    while found["calls"] < count:
        command = [sys.executable, __file__, "--worker", str(path), "--engine", engine, "--seed", str(seed)]
        scratch = Path(tempfile.mkdtemp(dir=folder))
        with open(log, "wb") as out:
            environment = {**os.environ, "EDGELLM_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}
            child = subprocess.run(
                [*command, "--count", str(count - found["calls"])], stdout=out, stderr=subprocess.PIPE, cwd=scratch,
                env=environment, check=False,
            )  # fmt: skip
        lines = [json.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{")]
        ended = [line for line in lines if "outcome" in line]
        found["calls"] += len(ended)
        found["outcomes"].update(line["outcome"] for line in ended if not line["outcome"].startswith("RAW"))
        found["raw"] += [line for line in ended if line["outcome"].startswith("RAW")]
        if child.returncode:
            last = lines[-1].get("call", "(none)") if lines else "(none)"
            words = child.stderr.decode("utf-8", "replace")
            words = words[max(0, words.rfind("Fatal Python error")) :][:1500]  # where its threads were
            found["deaths"].append({"status": child.returncode, "call": last, "words": words})
            found["calls"] += 1
        elif not ended:
            break
        seed += 1
        print(f"{engine}: {found['calls']} calls, {len(found['deaths'])} deaths", file=sys.stderr, flush=True)
    return found


def work(engine: str, path: Path, count: int, seed: int) -> None:
    """The child: a line of JSON before each call and one after it."""
    import fuzzing
    import hypothesis
    from hypothesis import strategies as st

    import edgellm

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    place = fuzzing.Place.beside(path, Path.cwd())
    targets = [f"Model.{name}" for name in fuzzing.MODEL] * 3 + [f"Chat.{name}" for name in fuzzing.CHAT]
    calls = fuzzing.calls(place, [*targets, *fuzzing.FUNCTIONS])
    model: edgellm.Model | None = None

    def opened() -> edgellm.Model:
        backend: Any = engine
        return edgellm.load(path, ctx=128, threads=1, backend=backend, cache=edgellm.CacheParams(1 << 20, 0))

    logged: list[str] = []

    class Logged(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "what takes the pieces" not in record.getMessage():  # a sink of the fuzzer's that fails
                logged.append(f"RAW {record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")

    logging.getLogger("edgellm").addHandler(Logged(logging.ERROR))
    threading.excepthook = sys.unraisablehook = lambda args: logged.append(f"RAW in the background: {args.exc_value!r}")

    def say(**line: str) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    moments = st.sampled_from(["open"] * 15 + ["closing"] * 3 + ["closed"])

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls, moments, st.floats(0, 0.003))
    def one(call: fuzzing.Call, moment: str, delay: float) -> None:
        nonlocal model
        say(call=f"{moment}: {call}")
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        if model is None:
            model = opened()
        closer = threading.Thread(target=lambda: (time.sleep(delay), model.close()))
        if moment == "closing":
            closer.start()
        elif moment == "closed":
            model.close()
        outcome = fuzzing.perform(call, model)
        if moment == "closing":
            closer.join()
        if moment != "open":
            model = None
        faulthandler.cancel_dump_traceback_later()
        say(outcome=logged.pop() if logged else outcome, of=str(call))

    one()
    if model is not None:
        model.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="calls per engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only this one; repeatable")
    parser.add_argument("--json", type=Path, help="write everything found here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.engine[0], options.worker, options.count, options.seed)
        return 0
    results = []
    for engine in options.engine or ENGINES:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = campaign(engine, options.count, options.seed, Path(folder))
        results.append(result)
        print(f"{engine}: {result['calls']} calls in {time.perf_counter() - started:.0f} s, "
              f"{len(result['raw'])} raw errors, {len(result['deaths'])} deaths")  # fmt: skip
        for outcome, number in result["outcomes"].most_common():
            print(f"  {number:6d}  {outcome}")
        for outcome, number in Counter(line["outcome"] for line in result["raw"]).most_common():
            example = next(line["of"] for line in result["raw"] if line["outcome"] == outcome)
            print(f"  {number:6d}  {outcome}\n          {example}")
        for death in result["deaths"]:
            print(f"  status {death['status']}: {death['call']}\n{death['words']}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 1 if any(result["raw"] or result["deaths"] for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
