"""ONNXFile: a reader of ONNX models, whose files are mapped into memory and trusted in nothing.

    model.onnx        ModelProto: ir version | opsets | producer | graph | metadata
    model.onnx_data   bytes of initializers, for those that say so; any number of such files, in the model's folder

The graph becomes plain values, weights stay in the files. Every length, shape, type, location and name is checked when
the model is opened, and the number of fields is bounded. Functions of the model, training information and hints of
shapes inside of the graph are not read. https://github.com/onnx/onnx/blob/main/docs/IR.md, and for the fields
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.confined import path_in
from edgellm.formats.mapped import MappedFile
from edgellm.formats.onnx_graph import Graph, broken
from edgellm.formats.onnx_parse import GRAPH, MAIN, NODE, GraphReader
from edgellm.formats.onnx_tensor import ENTRY, TENSOR, StoredTensor, read_entry, read_tensor
from edgellm.formats.protobuf import Wire, integer, message, schema, spliced, text

MAX_FILES = 512
_EDGES = 8192  # bytes of a tensor that the fingerprint looks at
_U64 = struct.Struct("<Q")

_MODEL = schema(
    "varint 1 ir_version", "span 2 producer_name", "span 3 producer_version", "span 7 graph", "span 8* opset_import",
    "span 14* metadata_props",
)  # fmt: skip
_OPSET = schema("span 1 domain", "varint 2 version")


class ONNXFile:
    """An opened ONNX model.

    graph: its inputs, outputs, nodes and initializers, whose data() streams from the files. metadata: metadata_props.
    opsets: versions by domain, "" for ONNX's own. producer: name and version, "" without them. data_paths: the files
    beside it. The initializers of branches are in their graphs only.
    """

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self.metadata: dict[str, str] = {}
        self.opsets: dict[str, int] = {}
        self.ir_version = 0
        self.producer = ""
        self._file, self._wire = file, Wire(file)
        self._beside: dict[str, MappedFile] = {}
        self._stored: list[StoredTensor] = []
        self._tensors: dict[str, StoredTensor] = {}
        try:
            self.graph = self._read()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ONNXFile:
        """Open and check a model with all its files. Raises ModelNotFound, InvalidModelFile, and Unsupported for
        models whose inputs, outputs or constants are not all plain tensors of numbers."""
        return cls(MappedFile(Path(path)))

    @property
    def data_paths(self) -> list[Path]:
        """The data files, sorted."""
        return sorted(file.path for file in self._beside.values())

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of an initializer, (n,) uint8, read-only; not copied, unless they are kept as numbers one by one.

        KeyError if there is none. Raises InvalidModelFile.
        """
        return self._tensors[name].raw()

    def array(self, name: str) -> NDArray[np.generic]:
        """An initializer of the type that onnx_graph.NUMPY tells, shaped; flat where that is of packed bytes.

        KeyError if there is none. Raises InvalidModelFile.
        """
        return self._tensors[name].array()

    def rewritten(self, domains: Mapping[int, str], folder: Path | None = None) -> bytes:
        """The model, without the files beside it, with other operators for some nodes of its graph: of these domains
        (of version 1), by the places of the nodes. A domain is as long as the one that it takes the place of.

        folder: where the files beside it really are: they get the names that they have from there, links followed.
        Raises InvalidParameter for a domain of another length.
        """
        changed = bytearray(self._file.buffer)
        start, stop = next(
            (value, end) for field, value, end in self._wire.fields(0, self._file.size, _MODEL) if field == "graph"
        )
        nodes = (each[1:] for each in self._wire.fields(start, stop, GRAPH) if each[0] == "node")
        for at, node in enumerate(nodes):
            if at not in domains:
                continue
            new = domains[at].encode()
            place = next((each[1:] for each in self._wire.fields(*node, NODE) if each[0] == "domain"), None)
            if place is None or place[1] - place[0] != len(new):
                raise InvalidParameter(f"node {at} of {self.path} has not a domain as long as {domains[at]!r}")
            changed[slice(*place)] = new
        for domain in sorted(set(domains.values())):
            changed += message(8, text(1, domain), integer(2, 1))
        if folder is None:
            return bytes(changed)
        tensors = [each[1:] for each in self._wire.fields(start, stop, GRAPH) if each[0] == "initializer"]
        moved = [(*place, self._moved(changed, *place, folder)) for place in tensors]
        return spliced(changed, 0, len(changed), [(start, stop, spliced(changed, start, stop, moved))])

    def _moved(self, model: bytearray, start: int, stop: int, folder: Path) -> bytes:
        """A tensor with its file's name as seen from a folder."""
        entries = []
        for field, entry, end in self._wire.fields(start, stop, TENSOR):
            if field != "external_data":
                continue
            key, name = read_entry(self._wire, entry, end)
            if key == "location":
                path = self._beside[name].path.resolve().relative_to(folder).as_posix()
                place = next(each[1:] for each in self._wire.fields(entry, end, ENTRY) if each[0] == "value")
                entries.append((entry, end, spliced(model, entry, end, [(*place, os.fsencode(path))])))
        return spliced(model, start, stop, entries)

    def release(self, name: str) -> None:
        """The initializer's pages may leave memory; whoever looks again reads them again. A hint."""
        self._tensors[name].release()

    def close(self) -> None:
        """Unmap the files once no array of them is in use any more. Closing twice is harmless."""
        for file in (self._file, *self._beside.values()):
            file.close()

    def __enter__(self) -> ONNXFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that copies of the files share and another graph or other weights change.

        BLAKE2b over each file's size, the model file but for the insides of tensors, and the first and last 4 KiB of
        each tensor.
        """
        digest = hashlib.blake2b(_U64.pack(self._file.size), digest_size=16)
        position = 0
        inline = sorted((each.start, each.stop) for each in self._stored if each.file is self._file)
        for start, stop in inline:
            if stop - start > _EDGES:
                digest.update(self._file.view(position, start).data)
                digest.update(self._file.edges(start, stop))
                position = stop
        digest.update(self._file.view(position, self._file.size).data)
        for file in self._beside.values():
            digest.update(_U64.pack(file.size))
        for tensor in self._stored:
            if tensor.file is not self._file:
                digest.update(tensor.file.edges(tensor.start, tensor.stop))
        return digest.hexdigest()

    def _open_beside(self, location: str) -> MappedFile:
        if location not in self._beside:
            if len(self._beside) >= MAX_FILES:
                raise Unsupported(f"{self.path}: more than {MAX_FILES} data files; save the weights into one")
            self._beside[location] = MappedFile(path_in(self.path.parent, location))
        return self._beside[location]

    def _read(self) -> Graph:
        wire, producer, graph = self._wire, ["", ""], None
        for field, value, end in wire.fields(0, self._file.size, _MODEL):
            if field == "ir_version":
                self.ir_version = value
            elif field == "graph":
                graph = value, end
            elif field == "opset_import":
                self._opset(value, end)
            elif field == "metadata_props":
                key, text = read_entry(wire, value, end)
                if key in self.metadata:
                    raise wire.error(f"the metadata {shown(key)} appears twice", value)
                self.metadata[key] = text
            else:
                producer[field == "producer_version"] = wire.words(value, end)
        self.producer = " ".join(filter(None, producer))
        if graph is None or not self.ir_version or not self.opsets:
            raise InvalidModelFile(
                f"{self.path}: no graph, version or opsets in it; this is not an ONNX model, or it is damaged"
            )
        reader = GraphReader(wire, self.path, self._tensor)
        found, tensors = reader.graph(*graph)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        why = broken(found)
        if why:
            raise wire.error(f"the graph is not in order: {why}", graph[0])
        return found

    def _opset(self, start: int, stop: int) -> None:
        domain, version = "", 0
        for field, value, end in self._wire.fields(start, stop, _OPSET):
            if field == "domain":
                domain = self._wire.text(value, end)
            else:
                version = value
        domain = "" if domain in MAIN else domain
        if domain in self.opsets:
            raise self._wire.error(f"the operators of {shown(domain)} have two versions", start)
        self.opsets[domain] = version

    def _tensor(self, start: int, stop: int) -> StoredTensor:
        tensor = read_tensor(self._wire, self._file, start, stop, self._open_beside)
        self._stored.append(tensor)
        return tensor
