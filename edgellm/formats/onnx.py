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
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.errors import EdgeLLMError, InvalidModelFile, Unsupported
from edgellm.formats.confined import path_in
from edgellm.formats.mapped import Mapped, MappedFile
from edgellm.formats.onnx_graph import Graph, broken
from edgellm.formats.onnx_parse import MAIN, GraphReader
from edgellm.formats.onnx_tensor import StoredTensor, read_entry, read_tensor
from edgellm.formats.onnx_writer import INLINE, node_message, outside_message
from edgellm.formats.protobuf import Span, Wire, integer, message, schema, text

MAX_FILES = 512
_EDGES = 8192  # bytes of a tensor that the fingerprint looks at
_U64 = struct.Struct("<Q")

_MODEL = schema(
    "int 1 ir_version", "lossy 2 producer_name", "lossy 3 producer_version", "span 7 graph", "span 8* opset_import",
    "span 14* metadata_props",
)  # fmt: skip
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # fields of the model and of the graph
_OPSET = schema("text 1 domain", "int 2 version")


class ONNXFile(Mapped):
    """An opened ONNX model.

    graph: its inputs, outputs, nodes and initializers, whose data() streams from the files. metadata: metadata_props.
    opsets: versions by domain, "" for ONNX's own. producer: name and version, "" without them. data_paths: the files
    beside it. The initializers of branches are in their graphs only.
    """

    def __init__(self, file: MappedFile) -> None:
        super().__init__()
        self.path = file.path
        self.metadata: dict[str, str] = {}
        self.opsets: dict[str, int] = {}
        self.ir_version = 0
        self.producer = ""
        self._file, self._files, self._wire = file, [file], Wire(file)
        self._beside: dict[str, MappedFile] = {}
        self._stored: list[StoredTensor] = []
        self._tensors: dict[str, StoredTensor] = {}
        self._graph = (0, 0)  # where it lies in the file
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

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> StoredTensor:
        """What the graph says of an initializer. Raises InvalidModelFile if there is none."""
        if name not in self._tensors:
            raise InvalidModelFile(
                f"{self.path}: a weight needs the initializer {name[:200]!r}, which is not there; export it again"
            )
        return self._tensors[name]

    def error(self, kind: type[EdgeLLMError], name: str, what: str) -> EdgeLLMError:
        """An error about an initializer."""
        info = self.info(name)
        return kind(f"{self.path}: {name[:200]!r} ({info.dtype}, shape {info.shape}): {what}")

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of an initializer, (n,) uint8, read-only; not copied, unless they are kept as numbers one by one.

        KeyError if there is none. Raises InvalidModelFile.
        """
        return self._tensors[name].raw()

    def _place(self, name: str) -> tuple[MappedFile, int, int]:
        tensor = self._tensors[name]
        return tensor.file, tensor.start, tensor.stop

    def array(self, name: str) -> NDArray[np.generic]:
        """An initializer of the type that onnx_graph.NUMPY tells, shaped; flat where that is of packed bytes.

        KeyError if there is none. Raises InvalidModelFile.
        """
        return self._tensors[name].array()

    @property
    def weight_paths(self) -> list[Path]:
        """The files in which the initializers lie that `rewritten` leaves where they are, sorted."""
        return sorted({tensor.file.path for tensor in self._tensors.values() if self._stays(tensor)})

    def rewritten(self, graph: Graph, folder: Path) -> bytes:
        """The model, with other nodes: this graph's, which are its own or new ones, and those of its initializers that
        this graph has. All else is as it lies in the file, known or not; so are its own nodes.

        Initializers are not copied, small ones apart: they are said to lie where they do, in files in or below
        `folder`, links followed. Raises InvalidParameter for a node that cannot be written.
        """
        buffer, fields = self._file.buffer, self._wire.fields
        parts: dict[int, list[slice]] = {_NODE: [], _INITIALIZER: []}
        rest: list[slice] = []
        for key, first, _, last in fields(*self._graph):
            parts.get(key >> 3, rest).append(slice(first, last))
        own = {id(node): place for node, place in zip(self.graph.nodes, parts[_NODE], strict=True)}
        stored = dict(zip(self._tensors, parts[_INITIALIZER], strict=True))
        inner = [buffer[own[id(node)]] if id(node) in own else node_message(node) for node in graph.nodes]
        for initializer in graph.initializers:
            tensor = self._tensors[initializer.name]
            if self._stays(tensor):
                path = tensor.file.path.resolve().relative_to(folder.resolve()).as_posix()
                inner.append(outside_message(initializer, os.fsencode(path), tensor.start))
            else:
                inner.append(buffer[stored[initializer.name]])
        new = {node.domain for node in graph.nodes if id(node) not in own} - self.opsets.keys()
        return b"".join([
            *(buffer[first:last] for key, first, _, last in fields(0, self._file.size) if key >> 3 != _GRAPH),
            *(message(8, text(1, domain), integer(2, 1)) for domain in sorted(new)),
            message(_GRAPH, *inner, *(buffer[place] for place in rest)),
        ])  # fmt: skip

    def _stays(self, tensor: StoredTensor) -> bool:
        """Whether a tensor's bytes are left where they are: outside of the model file, or many, and not one by one."""
        return tensor.file is not self._file or (tensor.nbytes >= INLINE and not tensor.packed)

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
            self._files.append(self._beside[location])
        return self._beside[location]

    def _read(self) -> Graph:
        wire = self._wire
        model = wire.read((0, self._file.size), _MODEL)
        for place in model["opset_import"]:
            self._opset(place)
        for place in model["metadata_props"]:
            key, text = read_entry(wire, place)
            if key in self.metadata:
                raise wire.error(f"the metadata {shown(key)} appears twice", place[0])
            self.metadata[key] = text
        self.ir_version, graph = model["ir_version"], model["graph"]
        self.producer = " ".join(filter(None, (model["producer_name"], model["producer_version"])))
        if graph is None or not self.ir_version or not self.opsets:
            raise InvalidModelFile(
                f"{self.path}: no graph, version or opsets in it; this is not an ONNX model, or it is damaged"
            )
        self._graph = graph
        reader = GraphReader(wire, self.path, self._tensor)
        found, tensors = reader.graph(graph)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        why = broken(found)
        if why:
            raise wire.error(f"the graph is not in order: {why}", graph[0])
        return found

    def _opset(self, place: Span) -> None:
        found = self._wire.read(place, _OPSET)
        domain = "" if found["domain"] in MAIN else found["domain"]
        if domain in self.opsets:
            raise self._wire.error(f"the operators of {shown(domain)} have two versions", place[0])
        self.opsets[domain] = found["version"]

    def _tensor(self, place: Span) -> StoredTensor:
        tensor = read_tensor(self._wire, self._file, place, self._open_beside)
        self._stored.append(tensor)
        return tensor
