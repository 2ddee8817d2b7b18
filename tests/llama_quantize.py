"""llama.cpp's own `llama_model_quantize`, in a process of its own: a failed assertion ends that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgellm.converters.quant.recipes import TARGETS

# Reads (source, destination, ftype, {weight: importance values} file or null), and answers with the return codes.
PROGRAM = """
import ctypes, json, sys
import numpy as np
from llama_cpp import llama_cpp as L
L.llama_backend_init()
codes = []
for source, destination, ftype, importance in json.load(sys.stdin):
    params = L.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, 1, True
    if importance:
        data = dict(np.load(importance))
        entries = (L.llama_model_imatrix_data * (len(data) + 1))()
        for entry, (name, values) in zip(entries, data.items()):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    codes.append(L.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params)))
print(json.dumps(codes))
"""


def llama_quantize(jobs: Sequence[tuple[Path, Path, str, Path | None]]) -> None:
    """Each (source, destination, target, importance)."""
    listed = [(str(s), str(d), TARGETS[target].file_type, str(m) if m else None) for s, d, target, m in jobs]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(listed), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused = [job for job, code in zip(listed, json.loads(done.stdout), strict=True) if code]
    assert not refused, (refused[:3], done.stderr[-2000:])
