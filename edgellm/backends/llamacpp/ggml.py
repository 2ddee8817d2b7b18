"""The few functions of ggml's C API that edgellm needs and llama-cpp-python does not bind.

Sources: ggml.h, ggml-backend.h and ggml-cpu.h of the vendored llama.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import _native

CPU_DEVICE = 0  # enum ggml_backend_dev_type
KINDS = {CPU_DEVICE: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}  # igpu: its memory is the machine's
F32 = 0  # enum ggml_type


@dataclass(frozen=True, slots=True)
class Device:
    """What ggml computes on. kind: one of KINDS, or "other"; free, total: bytes of its memory, 0 if it does not say."""

    name: str
    description: str
    kind: str
    free: int
    total: int

    @property
    def is_gpu(self) -> bool:
        """Whether layers of a model can go there."""
        return self.kind in ("gpu", "igpu")


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """ggml inside the loaded llama.cpp, with C prototypes apart from those of llama-cpp-python."""

    def __init__(self, library: Any) -> None:
        llama = library._lib._name
        # A DLL of Windows does not pass on what it was linked with.
        self._libraries = [ctypes.CDLL(str(path)) for path in (llama, *sorted(Path(llama).parent.glob("ggml*.dll")))]

    def devices(self) -> list[Device]:
        """Every device, in llama.cpp's order. Raises AttributeError where the library hides these functions."""
        return [
            self._device(self._call("ggml_backend_dev_get", ctypes.c_size_t(index)))
            for index in range(self._size("ggml_backend_dev_count"))
        ]

    def _device(self, device: int) -> Device:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("ggml_backend_dev_memory", device, ctypes.byref(free), ctypes.byref(total))
        kind = self._function("ggml_backend_dev_type")(ctypes.c_void_p(device))
        return Device(
            name=self._text("ggml_backend_dev_name", device),
            description=self._text("ggml_backend_dev_description", device),
            kind=KINDS.get(kind, "other"),
            free=free.value,
            total=total.value,
        )

    def extra_buffers(self, *, refusing: bool) -> dict[str, int]:
        """The CPU backend's extra buffer types by their names. The first call in a process decides about AMX.

        Raises AttributeError or RuntimeError when this llama.cpp has no such list.
        """
        device = self._call("ggml_backend_dev_by_type", ctypes.c_int(CPU_DEVICE))
        registry = self._call("ggml_backend_dev_backend_reg", device)
        listing = self._call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        if not device or not listing:
            raise RuntimeError("llama.cpp has no CPU device that lists its extra buffer types")
        if refusing:
            address = _native.call_refusing_amx(listing, device)
        else:
            address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(listing)(device)
        return {self._text("ggml_backend_buft_name", each): each for each in _until_null(address)}

    def product(self, kind: int, weights: Any, activations: Any, *, through_amx: bool) -> Any:
        """activations @ weights.T through ggml: (tokens, rows) float32.

        weights: (rows, columns) float32, quantized to `kind` here; activations: (tokens, columns) float32.
        """
        import numpy as np

        (rows, columns), tokens = weights.shape, activations.shape[0]
        packed = (ctypes.c_char * self._size("ggml_row_size", ctypes.c_int(kind), ctypes.c_int64(columns * rows)))()
        source = np.ascontiguousarray(weights).ctypes.data_as(ctypes.c_void_p)
        shape = ctypes.c_int64(rows), ctypes.c_int64(columns)
        self._size("ggml_quantize_chunk", ctypes.c_int(kind), source, packed, ctypes.c_int64(0), *shape, None)

        # The weights alone live in a buffer that the backend allocates: its type chooses the kernel.
        holder = self._context(no_alloc=True)
        weight = self._call("ggml_new_tensor_2d", holder, ctypes.c_int(kind), *reversed(shape))
        buffer_type = self._call("ggml_backend_cpu_buffer_type")
        if through_amx:
            buffer_type = self.extra_buffers(refusing=False)["AMX"]
        buffer = self._call("ggml_backend_alloc_ctx_tensors_from_buft", holder, buffer_type)
        self._call("ggml_backend_tensor_set", weight, packed, ctypes.c_size_t(0), ctypes.c_size_t(len(packed)))

        context = self._context(no_alloc=False)
        given = self._call(
            "ggml_new_tensor_2d", context, ctypes.c_int(F32), ctypes.c_int64(columns), ctypes.c_int64(tokens)
        )
        data = np.ascontiguousarray(activations)
        ctypes.memmove(self._call("ggml_get_data", given), data.ctypes.data, data.nbytes)
        output = self._call("ggml_mul_mat", context, weight, given)
        graph = self._call("ggml_new_graph", context)
        self._call("ggml_build_forward_expand", graph, output)
        self._call("ggml_graph_compute_with_ctx", context, graph, ctypes.c_int(2))
        result = np.empty((tokens, rows), np.float32)
        ctypes.memmove(result.ctypes.data, self._call("ggml_get_data", output), result.nbytes)

        self._call("ggml_free", context)
        self._call("ggml_backend_buffer_free", buffer)
        self._call("ggml_free", holder)
        return result

    def dequantized(self, name: str, stored: Any, columns: int) -> Any:
        """The numbers of rows (n, bytes of a row) uint8 of the type `name`: (n, columns) float32. Raises AttributeError
        where ggml has no function for it."""
        import numpy as np

        if name == "F32":
            return stored.view(np.float32)
        if name == "F16":
            return stored.view(np.float16).astype(np.float32)
        if name == "BF16":
            return (stored.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        values = np.empty((len(stored), columns), np.float32)
        function = self._function(f"dequantize_row_{name.lower().replace('_k', '_K')}")
        function.restype = None
        function(*(ctypes.c_void_p(each.ctypes.data) for each in (stored, values)), ctypes.c_int64(values.size))
        return values

    def _context(self, *, no_alloc: bool) -> int:
        return self._call("ggml_init", InitParams(16 << 20, None, no_alloc))

    def _function(self, name: str) -> Any:
        """A C function, with a prototype of its own. Raises AttributeError."""
        for library in self._libraries:
            with suppress(AttributeError):
                return library[name]
        raise AttributeError(f"no function {name} in {self._libraries[0]._name}")

    def _call(self, name: str, *arguments: Any) -> int:
        """Call a function that returns a pointer or nothing; whole numbers among the arguments are pointers."""
        function = self._function(name)
        function.restype = ctypes.c_void_p
        return function(*(ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments)) or 0

    def _text(self, name: str, pointer: int) -> str:
        """Call a function that returns the text of something."""
        function = self._function(name)
        function.restype = ctypes.c_char_p
        return (function(ctypes.c_void_p(pointer)) or b"").decode("utf-8", "replace")

    def _size(self, name: str, *arguments: Any) -> int:
        function = self._function(name)
        function.restype = ctypes.c_size_t
        return int(function(*arguments))


def _until_null(address: int) -> Iterator[int]:
    """The entries of a NULL-terminated array of pointers."""
    pointers = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
    index = 0
    while pointers[index]:
        yield int(pointers[index] or 0)
        index += 1
