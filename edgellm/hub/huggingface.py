"""Models of the Hugging Face hub: `hf:ORG/REPO[:QUANT]`, listed and fetched through huggingface_hub.

Every file is checked against the SHA-256 that the hub keeps for it (its Git LFS object id). huggingface_hub itself no
longer continues a download that an earlier process began, so the partial file is kept here and handed to its transfer
function together with the position to go on from. https://huggingface.co/docs/hub/api, /docs/huggingface_hub.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from edgellm.arguments import shown
from edgellm.errors import ChecksumMismatch, DownloadError, InvalidParameter, Offline
from edgellm.hub.store import StoredFile
from edgellm.hub.transfer import Progress, PullEvent, Unreachable, check_room, megabytes, sha256_of

PREFIX = "hf:"
DEFAULT_QUANT = "Q4_K_M"
_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
# What HTTP clients call it when there is nobody at the other end.
_NO_CONNECTION = (
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "ConnectionRefusedError",
    "ProxyError",
    "gaierror",
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/:?#\s]+/[^/:?#\s]+)(?=[/:?#]|$)", re.IGNORECASE
)
_QUANT = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|MXFP4[A-Z_]*|BF16|F16|F32))$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Selection:
    """One model of a repository at one commit: the file, or all files of a split one in order, named by their paths."""

    repo: str
    commit: str
    quant: str
    license: str | None
    files: tuple[StoredFile, ...]

    @property
    def name(self) -> str:
        """The name in the store."""
        return f"{PREFIX}{self.repo}:{self.quant}"


def parse(reference: str) -> tuple[str, str | None]:
    """(ORG/REPO, QUANT or None) of "hf:ORG/REPO[:QUANT]". Raises InvalidParameter."""
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    found = re.fullmatch(rf"hf:({part}/{part})(?::([A-Za-z0-9._-]+))?", reference)
    if not found or "--" in found[1] or ".." in found[1]:
        raise InvalidParameter(f"{shown(reference)} is not hf:ORG/REPO or hf:ORG/REPO:QUANT")
    return found[1], found[2]


def reference(name: str) -> str | None:
    """ "hf:ORG/REPO[:QUANT]" of what people paste: that itself, or an address of the hub's site; None for other names.

    Of an address that points to a file, the file is the QUANT.
    """
    if name.startswith(PREFIX):
        return name
    found = _ADDRESS.match(name)
    if found is None:
        return None
    repo, rest = found[1], name[found.end() :].partition("?")[0].partition("#")[0]
    if rest.startswith(":"):
        return f"{PREFIX}{repo}{rest}"
    file = PurePosixPath(unquote(rest)).name if rest.lower().endswith(".gguf") else ""
    stem = _SPLIT.sub("", file[: -len(".gguf")])
    return f"{PREFIX}{repo}:{stem}.gguf" if stem else f"{PREFIX}{repo}"


def select(repo: str, quant: str | None, revision: str | None = None) -> Selection:
    """Ask the hub for the GGUF files of `repo` and choose: `quant` (or a file name), else Q4_K_M, else the only one.

    Raises DownloadError, with the choices where the choice is not clear, and Offline when the hub's library is
    told to stay offline.
    """
    with _hub_errors(repo):
        from huggingface_hub import HfApi

        info = HfApi(endpoint=_endpoint()).model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        siblings = [s for s in info.siblings or [] if s.rfilename.lower().endswith(".gguf")]
        groups: dict[str, list[StoredFile]] = defaultdict(list)
        for sibling in sorted(siblings, key=lambda s: s.rfilename):
            if sibling.lfs is not None and not re.search(r"[\\:]", sibling.rfilename):  # a path on some systems
                file = StoredFile(sibling.rfilename, int(sibling.lfs.size), str(sibling.lfs.sha256))
                groups[_SPLIT.sub("", sibling.rfilename[:-5])].append(file)
        card = info.card_data
        license = card.get("license") if card is not None else None
        if card is not None and license == "other":
            license = card.get("license_name") or license
    stem = _choose(repo, quant, list(groups))
    whole = [file for file in groups[stem] if not _SPLIT.search(file.name[:-5])]
    files = tuple(whole or groups[stem])  # some repositories have a file both whole and in parts
    if (split := _SPLIT.search(files[0].name[:-5])) and int(split[2]) != len(files):
        raise DownloadError(
            f"{repo} has {len(files)} of the {int(split[2])} files of {stem}; the upload is not complete"
        )
    label = _label(stem)
    if sum(_label(other) == label for other in groups) > 1:  # the label alone would not be this file's name
        label = PurePosixPath(stem).name
    return Selection(repo, commit, label, str(license) if license else None, files)


def _choose(repo: str, quant: str | None, stems: Sequence[str]) -> str:
    stems = [stem for stem in stems if not PurePosixPath(stem).name.lower().startswith("mmproj")]
    if not stems:
        raise DownloadError(f"{repo} has no GGUF file; look for a repository of the same model whose name ends in GGUF")
    wanted = (quant or DEFAULT_QUANT).lower()
    labels = [stem for stem in stems if _label(stem).lower() == wanted]
    named = [stem for stem in stems if wanted in (f"{PurePosixPath(stem).name}.gguf".lower(), stem.lower())]
    chosen = labels or named or ([] if quant else stems)
    if len(chosen) == 1:
        return chosen[0]
    choices = ", ".join(sorted({_label(stem) for stem in (chosen or stems)}))
    if chosen and quant is not None:
        raise DownloadError(f"{repo} has several files for {quant}: {', '.join(chosen)}; write the file's name instead")
    missing = quant or DEFAULT_QUANT
    raise DownloadError(f"{repo} has no single {missing}; it has {choices}: choose one with hf:{repo}:QUANT")


def _label(stem: str) -> str:
    """What tells a file from its siblings: the quantization at the end of its name, else the whole name."""
    name = PurePosixPath(stem).name
    found = _QUANT.search(name)
    return found[1].upper() if found else name


def fetch(selection: Selection, staging: Path, progress: Progress) -> list[Path]:
    """Download the files of a selection into `staging`, going on where an earlier call stopped; each one verified.

    Raises DownloadError, ChecksumMismatch, ResourceError.
    """
    total = sum(file.size for file in selection.files)
    partials = [staging / f"{file.sha256}.partial" for file in selection.files]
    had = sum(partial.stat().st_size for partial in partials if partial.is_file())
    if had:
        progress(PullEvent(f"{megabytes(had)} of {megabytes(total)} are here already"))
    check_room(staging, total - had)
    before = 0
    for file, partial in zip(selection.files, partials, strict=True):

        def seen(position: int, before: int = before) -> None:
            progress(PullEvent(selection.name, min(before + position, total), total))

        _download(selection, file, partial, seen)
        if sha256_of(partial) != file.sha256:
            partial.unlink()
            raise ChecksumMismatch(
                f"{file.name} of {selection.repo} arrived damaged: its SHA-256 is not {file.sha256}; pull again"
            )
        before += file.size
    return partials


def _download(selection: Selection, file: StoredFile, partial: Path, seen: Callable[[int], None]) -> None:
    with _hub_errors(selection.repo), _no_bars(), _CountingFile(partial, seen) as out:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

        if out.tell() > file.size:
            out.truncate(0)
            out.seek(0)
        if out.tell() < file.size:
            http_get(
                hf_hub_url(selection.repo, file.name, revision=selection.commit, endpoint=_endpoint()),
                out,  # type: ignore[arg-type,unused-ignore]
                resume_size=out.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
            )
        os.fsync(out.fileno())


class _CountingFile(io.FileIO):
    """A file opened at its end that reports its position after every write."""

    def __init__(self, path: Path, seen: Callable[[int], None]) -> None:
        super().__init__(path, "r+b" if path.exists() else "w+b")
        self.seek(0, os.SEEK_END)
        self._seen = seen

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:]) or 0
        self._seen(self.tell())
        return written


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silence the hub library's own progress bars for a while."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined,unused-ignore]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Whatever the hub's library or the HTTP client below it raises becomes a DownloadError with the reason."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors

    from edgellm.errors import EdgeLLMError

    try:
        yield
    except EdgeLLMError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise Offline(f"{repo} needs the network, and HF_HUB_OFFLINE forbids it") from error
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its terms on the hub's site, then set HF_TOKEN (or `hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{repo} is not on the hub, or private: check the name, or set HF_TOKEN") from error
    except Exception as error:  # the HTTP client's own classes differ between versions of the hub's library
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        lines = str(error).strip().splitlines()
        if any(type(cause).__name__ in _NO_CONNECTION for cause in _causes(error)):
            raise Unreachable(f"{repo}: {lines[0] if lines else type(error).__name__}") from error
        raise DownloadError(
            f"{repo} could not be fetched from the hub: {type(error).__name__}: {lines[0] if lines else 'no details'}"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
