"""A conversation in one file: plain JSON, or, with the state that the model has of it, a ZIP archive.

    conversation.json         what `Chat` says of itself
    state/00000.kv, …         block files (blockfile.py) from the first token on, one after the other

The archive is not compressed but for the JSON: state does not shrink. Both kinds appear whole or not at all, readable
by their owner only.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edgellm.backends.base import Buffer
from edgellm.errors import CannotWrite, InvalidModelFile, InvalidParameter, ModelNotFound
from edgellm.files import new_file, read_file, regular
from edgellm.kv.blockfile import Damaged, encode, read_header
from edgellm.kv.blocks import Block

NAME = "conversation.json"
MAX_JSON = 256 << 20  # bytes
State = list[tuple[Block, Buffer]]


def write_archive(path: Path, content: dict[str, Any], state: Sequence[tuple[Block, Buffer]], label: str) -> None:
    """Write JSON `content`, with `state` as an archive. label: the model's name.

    Raises CannotWrite, and InvalidParameter for what JSON cannot hold.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"{path}: the conversation cannot be written as JSON: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, 0o600) as file:
            if not state:
                file.write(text)
                return
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(NAME, text, zipfile.ZIP_DEFLATED)
                for number, (block, payload) in enumerate(state):
                    with archive.open(f"state/{number:05d}.kv", "w", force_zip64=True) as entry:
                        entry.write(encode(block, payload, label, ""))
                        entry.write(payload)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        why = getattr(error, "strerror", None) or error
        raise CannotWrite(f"{path}: the conversation cannot be written: {why}; choose another place") from error


def read_archive(path: Path) -> tuple[dict[str, Any], State, str]:
    """The JSON, the state, and why the state is not all there ("" when it is).

    Damaged state ends where the damage begins; damaged JSON is an error. Raises InvalidModelFile, ModelNotFound.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            if zipfile.is_zipfile(file):
                return _unpacked(file, path)
        return _parsed(read_file(path, MAX_JSON), path), [], ""
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path}: No such file; give the place where the conversation was saved") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        why = getattr(error, "strerror", None) or error
        raise InvalidModelFile(f"{path}: the conversation cannot be read: {why}") from error


def _unpacked(file: BinaryIO, path: Path) -> tuple[dict[str, Any], State, str]:
    state: State = []
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(NAME).file_size > MAX_JSON:
                raise InvalidModelFile(f"{path}: {NAME} in it has more than {MAX_JSON >> 20} MiB")
            content = _parsed(archive.read(NAME), path)
            entries = [entry for entry in archive.infolist() if entry.filename.startswith("state/")]
            entries.sort(key=lambda entry: entry.filename)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise InvalidModelFile(f"{path}: state in it is compressed, which edgellm never writes")
            if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
                raise InvalidModelFile(f"{path}: it announces more state than it has bytes, so it is damaged")
            try:
                state += [_block(archive.read(entry)) for entry in entries]
            except (Damaged, zipfile.BadZipFile, zlib.error, EOFError) as error:
                return content, [], f"the state in {path} is damaged: {error}"
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError) as error:
        raise InvalidModelFile(f"{path}: not a saved conversation, or damaged: {error}") from error
    return content, state, ""


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path}: not a saved conversation: {error}") from error
    if not isinstance(content, dict):
        raise InvalidModelFile(f"{path}: not a saved conversation: {type(content).__name__} at its top")
    return content


def _block(data: bytes) -> tuple[Block, Buffer]:
    header = read_header(io.BytesIO(data), len(data))
    payload = data[header.payload_start :]
    if zlib.crc32(payload) != header.payload_crc:
        raise Damaged("the payload's checksum is wrong")
    return header.block, payload
