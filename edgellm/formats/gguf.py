"""GGUFFile: a memory-mapped reader of GGUF files that trusts nothing it reads: one file (`gguf_shard`), or several."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from edgellm.arguments import shown
from edgellm.errors import ModelNotFound
from edgellm.formats.gguf_shard import Shard, TensorInfo
from edgellm.formats.mapped import Mapped, MappedFile

T = TypeVar("T")
D = TypeVar("D")

MAX_SHARDS = 512
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")

_U64 = struct.Struct("<Q")


class GGUFFile(Mapped):
    """An opened GGUF model: one file, or all shards of a split one.

    metadata is the first shard's; tensors are those of all shards. path is the first shard's, paths are all of them.
    """

    def __init__(self, shards: list[Shard]) -> None:
        super().__init__()
        first = shards[0]
        self.path, self.paths = first.path, [shard.path for shard in shards]
        self.version, self.alignment = first.version, first.alignment
        self.metadata: Mapping[str, Any] = first
        self.tensors: dict[str, TensorInfo] = {}
        self._shards, self._files = shards, [shard.file for shard in shards]
        for shard in shards:
            for name, info in shard.tensors.items():
                if name in self.tensors:
                    raise shard.error(f"tensor {shown(name)} is in two parts", shard.header_bytes)
                self.tensors[name] = info

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Open and check a file; any part of a split model opens the whole from its first part.

        Raises ModelNotFound, InvalidModelFile.
        """
        shard = Shard(Path(path), 0)
        if "split.count" not in shard:
            return cls([shard])
        count = _split(shard, "split.count", ("u16",))
        if count <= 1:
            return cls([shard])
        name = _SHARD_NAME.fullmatch(shard.path.name)
        if count > MAX_SHARDS or name is None or int(name["count"]) != count:
            raise shard.error(f"it is a part of {count}, but not named NAME-00001-of-{count:05d}.gguf", 0)
        paths = [shard.path.with_name(f"{name['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
        shards = []
        for index, part in enumerate(paths):
            try:
                shards.append(shard if index == 0 and part == shard.path else Shard(part, index))
            except ModelNotFound:
                raise ModelNotFound(f"{part}: this part of a split model is missing; fetch all {count} parts") from None
            if (
                _split(shards[-1], "split.count", ("u16",)) != count
                or _split(shards[-1], "split.no", ("u16",)) != index
            ):
                raise shards[-1].error(f"it does not say that it is part {index + 1} of {count}", 0)
        file = cls(shards)
        claimed = _split(shards[0], "split.tensors.count", ("i32", "u32", "u16"))
        if claimed != len(file.tensors):
            raise shards[0].error(f"{claimed} tensors are announced, the parts hold {len(file.tensors)}", 0)
        return file

    def kind(self, key: str) -> str:
        """The stored type of a value: u8 … f64, bool, str, with [] behind it for an array. KeyError if absent."""
        return self._shards[0].kind(key)

    def get(self, key: str, kind: type[T], default: D) -> T | D:
        """The value of a key as exactly `kind` (int, float, bool, str, numpy.ndarray, StringArray), or the default.

        Raises InvalidModelFile when the value has another type.
        """
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        if type(value) is not kind:
            found = self.kind(key)
            raise self._shards[0].error(
                f"{shown(key)} is {found}, expected {kind.__name__}", self._shards[0].entries[key].offset
            )
        return value

    def _place(self, name: str) -> tuple[MappedFile, int, int]:
        info = self.tensors[name]
        return self._files[info.shard], info.offset, info.offset + info.nbytes

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that a copy of the file shares and other metadata or weights change.

        BLAKE2b over each header, each file's size, and the first and last 4 KiB of each tensor.
        """
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._shards:
            digest.update(_U64.pack(shard.size))
            digest.update(memoryview(shard.buffer)[: shard.header_bytes])
            for info in shard.tensors.values():
                digest.update(shard.file.edges(info.offset, info.offset + info.nbytes))
        return digest.hexdigest()


def _split(shard: Shard, key: str, kinds: tuple[str, ...]) -> int:
    """A key of a split model, whose stored type the engine insists on."""
    if key not in shard or shard.kind(key) not in kinds:
        raise shard.error(f"{shown(key)} is missing or not {kinds[0]}", 0)
    value: int = shard[key]
    return value
