"""An ONNX model that does not fit in memory is an error, wherever the memory ends, and never the end of the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from backend_cases import onnx_quantized

from edgellm import backends
from edgellm.errors import NotEnoughMemory
from edgellm.params import LoadParams

CHILD = """
import json, resource, sys
from pathlib import Path
from edgellm.backends import open_backend
from edgellm.backends.onnx import library, loading  # whose modules would find no room either
from edgellm.errors import NotEnoughMemory
from edgellm.params import LoadParams

library.load_library()
seen = []
for room in map(int, sys.argv[2:]):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        backend, outcome = open_backend(Path(sys.argv[1]), LoadParams(ctx=64, micro_batch=16)), "opened"
    except NotEnoughMemory as error:
        backend, outcome = None, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if backend is not None:
        backend.close()
    print(json.dumps([room, outcome]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on addresses is Linux's")
def test_no_memory_at_any_point_of_loading(tmp_path: Path) -> None:
    path = onnx_quantized(tmp_path)
    rooms = [*range(0, 4 << 20, 256 << 10), *range(4 << 20, 48 << 20, 4 << 20), 4 << 30]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), *map(str, rooms)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-2000:]}"
    outcomes = [json.loads(line)[1] for line in done.stdout.splitlines()]
    assert len(outcomes) == len(rooms)
    assert (outcomes[0] == "opened", outcomes[-1]) == (False, "opened")


@pytest.mark.parametrize(
    ("words", "kind"), [("x.so: failed to map segment", "NotEnoughMemory"), ("no x", "ImportError")]
)
def test_no_memory_for_the_code_of_an_engine(words: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ImportError(words)

    monkeypatch.setattr(backends, "_open", fail)
    with pytest.raises((NotEnoughMemory, ImportError)) as raised:
        backends.open_backend(Path("x.onnx"), LoadParams())
    assert type(raised.value).__name__ == kind
