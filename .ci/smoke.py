"""Whether an installed edgellm answers: run it with a Python that has it, from anywhere.

Says which kernels were compiled and which this processor has, and lets a random model of two layers, written on the
spot, answer as GGUF on edgellm's own engine and as an ONNX folder, then from the command line. `--no-gguf`: ONNX alone,
where nothing reads the vocabulary of a GGUF file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COMPILED = {"x86_64": ["avx512_vnni", "avx_vnni", "avx2"], "aarch64": ["neon_i8mm", "neon_dot"]}
SAME = {"AMD64": "x86_64", "arm64": "aarch64"}


def check_kernels() -> None:
    """Every kernel of this kind of processor is in the file, and those that the processor has are used."""
    from edgellm import _native

    kind = SAME.get(platform.machine(), platform.machine())
    binary, features = Path(str(_native.__file__)).read_bytes(), set(_native.cpu_features())
    missing = [name for name in COMPILED[kind] if name.encode() not in binary]
    needs = {"avx2": {"avx2", "fma", "f16c"}, "neon_dot": {"dotprod"}}
    unused = [name for name, parts in needs.items() if parts <= features and name not in _native.kernel_sets()]
    print(f"{platform.platform()}, Python {platform.python_version()}: {Path(str(_native.__file__)).name}")
    print(f"compiled: {' '.join(COMPILED[kind])}; used here: {' '.join(_native.kernel_sets())}")
    assert not missing, f"not compiled: {missing}"
    assert not unused, f"not used: {unused}"


def check_answers(folder: Path, gguf: bool) -> None:
    """Eight tokens from both engines, the same ones again, and from the command line."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from tiny_models import tiny

    import edgellm

    plain = tiny("llama").write(folder / "tiny.gguf")
    command = [sys.executable, "-m", "edgellm"]
    subprocess.run([*command, "convert", plain, "-o", folder / "onnx", "--to", "onnx"], check=True)
    for path in [folder / "onnx", plain] if gguf else [folder / "onnx"]:
        with edgellm.load(path, ctx=128) as model:
            first, again = (model.generate("hello world", max_tokens=8, temperature=0) for _ in range(2))
            assert first.text == again.text, (first, again)
            print(f"{path.name}: {model.info.engine}, {first.usage}")
        run = [*command, "run", path, "hello world", "--max-tokens", "8", "--temperature", "0", "--json"]
        done = subprocess.run(run, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert json.loads(done.stdout)["text"] == first.text, done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        os.environ["EDGELLM_HOME"] = str(Path(work) / "home")
        os.chdir(work)
        check_kernels()
        check_answers(Path(work), gguf="--no-gguf" not in sys.argv[1:])
