"""Models: what is there to be asked, and which of it is loaded: on demand, one at a time, until it is idle for long.

name ──▶ find ──▶ Listed ──▶ use ──▶ Resident, loaded now or before ──▶ its Model, while somebody uses it
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import edgellm
from edgellm import Model, ModelInfo, hub, machine
from edgellm.config import read_config
from edgellm.errors import EdgeLLMError, InvalidParameter, ModelNotFound, NotEnoughMemory
from edgellm.hub.catalog import match
from edgellm.serve.settings import FOREVER, Serving, lasting

log = logging.getLogger("edgellm.serve")

LISTED_SECONDS = 1.0  # that what is there is taken to be the same
LOOK_SECONDS = 2.0  # between two looks for models that are idle
SPARE = 20  # one part in so many of the memory stays available, or an idle model goes
COPIES = 1000  # names that clients may give to models
SHOWN = 12  # names that an error tells


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that may be asked for. digest: SHA-256 in hex, "" where it is not known."""

    name: str
    path: Path
    size: int
    modified: float
    digest: str = ""

    @property
    def modified_at(self) -> str:
        """ISO 8601, in UTC."""
        return datetime.fromtimestamp(self.modified, timezone.utc).isoformat(timespec="microseconds")


@dataclass(eq=False)
class Resident:
    """A model that is loaded. users: requests that use it. keep: seconds that it stays behind the last one."""

    listed: Listed
    model: Model
    keep: float
    pinned: bool = False
    users: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def expires(self) -> float | None:
        """When it goes, by the monotonic clock; None: not by itself."""
        return None if self.pinned or self.keep == FOREVER or self.users else self.used + self.keep


class Models:
    """For one event loop. load: opens a file."""

    def __init__(self, serving: Serving, load: Callable[..., Model] = edgellm.load) -> None:
        self.serving = serving
        self._load = load
        self._aliases = serving.params.aliases()
        self._residents: dict[Path, Resident] = {}
        self._loads: dict[Path, asyncio.Task[Resident]] = {}
        self._loading = asyncio.Lock()
        self._looked: tuple[float, list[Listed]] = (-math.inf, [])  # when, and what was there
        self._copies: dict[str, str] = {}  # names that clients gave to models
        self._watch: asyncio.Task[None] | None = None
        self.loading: str | None = None  # what is being loaded

    # What there is

    def listed(self) -> list[Listed]:
        """Every model, those that were named first."""
        now = time.monotonic()
        if now - self._looked[0] > LISTED_SECONDS:
            self._looked = now, list(self._all())
        found: dict[str, Listed] = {}
        for each in self._looked[1]:
            found.setdefault(each.name, each)
        for name, model in self._copies.items():
            if model in found:
                each = found[model]
                found.setdefault(name, Listed(name, each.path, each.size, each.modified, each.digest))
        return list(found.values())

    def shown(self) -> list[Listed]:
        """The same, and models by their other names: some clients want to see the one that they are told to ask for."""
        listed = self.listed()
        own = {each.name for each in listed}
        for name in self._aliases:
            if name not in own and not set(name) & set("*?["):
                with suppress(EdgeLLMError):
                    listed.append(replace(self.find(name), name=name))
        return listed

    def _all(self) -> Iterator[Listed]:
        for name in self.serving.named:
            with suppress(EdgeLLMError):
                yield self._named(name)
        for stored in hub.ModelStore().list():
            if not stored.problem:
                pulled = datetime.fromisoformat(stored.pulled_at).timestamp() if stored.pulled_at else 0.0
                yield Listed(stored.name, stored.path, stored.size, pulled, stored.files[0].sha256)
        for folder in self.serving.params.folder:
            yield from _in_folder(Path(folder).expanduser().resolve())

    def _named(self, name: str) -> Listed:
        """A model of the command line: a name, or a path, whose file's name stands for it."""
        path = hub.resolve(name, offline=True)
        stored = hub.find(name, hub.ModelStore()) if not os.path.exists(os.path.expanduser(name)) else None
        if stored is not None:
            pulled = datetime.fromisoformat(stored.pulled_at).timestamp() if stored.pulled_at else 0.0
            return Listed(stored.name, stored.path, stored.size, pulled, stored.files[0].sha256)
        alias = read_config().aliases.get(name)
        return _of_path(name if alias else path.stem if path.is_file() else path.name, path)

    def find(self, name: str | None) -> Listed:
        """The model that a client calls `name`; without one that named first. Raises ModelNotFound, with the names
        there are, InvalidParameter where it stands for several."""
        known = {each.name: each for each in self.listed()}
        if not name:
            default = next(iter(known), None) if self.serving.named else read_config().model
            if default is None:
                raise self._unknown("the request names no model", known)
            name = default
        for asked in self._meant(name):
            found = match(asked, known)
            if found is not None:
                return known[found]
        as_path = self._allowed(name)
        if as_path is None:
            raise self._unknown(f"the model {name[:200]!r} is not here", known)
        return as_path

    def _meant(self, name: str) -> Iterator[str]:
        """What a name may stand for, as it is first; what that stands for behind it."""
        waiting, seen = [(name, False)], set[str]()
        while waiting:
            each, ours = waiting.pop(0)
            if each in seen:
                continue
            seen.add(each)
            yield each
            waiting += [(model, True) for pattern, model in self._aliases.items() if fnmatch.fnmatchcase(each, pattern)]
            waiting.append((each.removesuffix(":latest"), ours))
            with suppress(EdgeLLMError):
                meant = read_config().named(each)
                waiting.append((meant, ours or meant != each))
            if ours:  # it may be a path; what a client wrote is opened by none
                with suppress(EdgeLLMError):
                    waiting.append((self._named(each).name, ours))

    def _allowed(self, name: str) -> Listed | None:
        """A file by its path, in a folder whose models may be asked for, or named on the command line."""
        if "\0" in name or len(name) > 4096:
            return None
        with suppress(OSError, ValueError, RuntimeError, EdgeLLMError):
            named = [self._path_of(each) for each in self.serving.named]
            folders = [Path(folder).expanduser().resolve() for folder in self.serving.params.folder]
            spelled = [Path(os.path.abspath(os.path.expanduser(each))) for each in self.serving.named]
            known = [
                *folders,
                *(Path(os.path.abspath(os.path.expanduser(each))) for each in self.serving.params.folder),
            ]
            for base in (None, *folders):
                path = Path(name) if base is None else base / name
                lexical = Path(os.path.abspath(path))
                if not (lexical in (*named, *spelled) or any(folder in lexical.parents for folder in known)):
                    continue  # to look at it may reach the network: it may be \\HOST\SHARE
                real = path.resolve()
                inside = any(folder in real.parents for folder in folders)
                if (path.is_absolute() and inside and real.exists()) or real in named:
                    return _of_path(real.stem if real.is_file() else real.name, real)
        return None

    @staticmethod
    def _path_of(name: str) -> Path | None:
        try:
            return hub.resolve(name, offline=True).resolve()
        except EdgeLLMError:
            return None

    def _unknown(self, what: str, known: dict[str, Listed]) -> ModelNotFound:
        names = list(known)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        there = (
            f"there are: {', '.join(names[:SHOWN])}{more}" if names else "there is none: `edgellm pull` fetches some"
        )
        return ModelNotFound(f"{what}; {there}")

    def copy(self, source: str, name: str) -> None:
        """Another name of a model, until the server ends. Raises ModelNotFound, InvalidParameter."""
        listed = self.find(source)
        if not name or len(name) > 200 or not name.isprintable() or "\\" in name or name.startswith((".", "/")):
            raise InvalidParameter(f"{name[:100]!r} is no name for a model")
        if len(self._copies) >= COPIES and name not in self._copies:
            raise InvalidParameter(f"{COPIES} names were given to models, the most there may be; delete some")
        self._copies[name] = listed.name

    async def delete(self, name: str) -> None:
        """Unload a model and remove it from the store; of a name that `copy` gave only that. Raises ModelNotFound,
        InvalidParameter for one that is not in the store."""
        if self._copies.pop(name, None) is not None:
            return
        listed = self.find(name)
        stored = hub.find(listed.name, hub.ModelStore())
        if stored is None or stored.path != listed.path:
            raise InvalidParameter(f"{listed.name} is a file outside of the store, which is not removed from here")
        await self.unload(listed)
        await asyncio.to_thread(hub.ModelStore().remove, stored.name)
        self.look_again()

    def look_again(self) -> None:
        """Models have come or gone."""
        self._looked = (-math.inf, [])

    # What is loaded

    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    def resident(self, listed: Listed) -> Resident | None:
        """The model, if it is loaded."""
        return self._residents.get(listed.path)

    @asynccontextmanager
    async def use(self, listed: Listed, keep: float | None = None) -> AsyncIterator[Model]:
        """The model, loaded if it is not; it stays while it is used. keep: seconds behind that, from now on; the
        settings' unless somebody said otherwise. Raises what `edgellm.load` raises."""
        keep = None if keep is None else lasting(keep)
        resident = await self._loaded(listed)
        if keep is not None:
            resident.keep = keep
        resident.users += 1
        try:
            yield resident.model
        finally:
            resident.users -= 1
            resident.used = time.monotonic()
            idle = self._residents.get(listed.path) is resident and not resident.users  # and not another one by now
            if resident.keep == 0 and idle and not resident.pinned:
                await asyncio.shield(self.unload(listed))

    async def _loaded(self, listed: Listed) -> Resident:
        """The model, loaded by now. Who waits may go away: it is loaded all the same, for whoever asks next."""
        resident = self._residents.get(listed.path)
        if resident is not None:
            return resident
        load = self._loads.get(listed.path)
        if load is None:
            load = self._loads[listed.path] = asyncio.get_running_loop().create_task(self._load_now(listed))
            load.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waits any more
        return await asyncio.shield(load)

    async def _load_now(self, listed: Listed) -> Resident:
        self._start_watch()
        params = self.serving.load
        try:
            async with self._loading:
                self.loading = listed.name
                needed = await asyncio.to_thread(_needed, listed.path, params.ctx)
                while (available := machine.memory().available) and needed > available and await self._drop_idle():
                    pass
                while True:
                    try:
                        return self._put(listed, await asyncio.to_thread(self._load, listed.path, params))
                    except NotEnoughMemory:
                        if not await self._drop_idle():
                            raise
        finally:
            self.loading = None
            del self._loads[listed.path]

    def _put(self, listed: Listed, model: Model) -> Resident:
        params = self.serving.params
        pinned = any(listed.path == self._path_of(name) for name in self.serving.named)
        resident = self._residents[listed.path] = Resident(listed, model, params.keep_alive, pinned)
        log.info("%s is loaded: %s", listed.name, model.info.engine_reason)
        return resident

    async def unload(self, listed: Listed) -> bool:
        """Whether it was loaded. What runs ends with Closed."""
        resident = self._residents.pop(listed.path, None)
        if resident is None:
            return False
        await asyncio.to_thread(resident.model.close)
        log.info("%s is unloaded", listed.name)
        return True

    async def _drop_idle(self) -> bool:
        """Unload the model that was used least recently, of those that nobody uses."""
        idle = [each for each in self._residents.values() if not each.users and not each.pinned]
        return bool(idle) and await self.unload(min(idle, key=lambda each: each.used).listed)

    def _start_watch(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """Unload what was idle for its time, and what is idle while memory is short."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                now = time.monotonic()
                for each in self.residents():
                    if each.expires is not None and each.expires <= now:
                        await self.unload(each.listed)
                memory = machine.memory()
                if memory.available and memory.available < memory.total // SPARE and await self._drop_idle():
                    log.warning("memory is short: %d MiB are available", memory.available >> 20)
            except Exception:
                log.exception("looking for idle models failed")

    async def close(self) -> None:
        """Unload everything."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for load in list(self._loads.values()):
            with suppress(Exception):
                await load
        for each in self.residents():
            await self.unload(each.listed)


async def load_named(models: Models, tell: Callable[[str], object] = log.info) -> None:
    """Load the models that were named, one after another; what cannot be is said."""
    for name in models.serving.named:
        try:
            async with models.use(models.find(name)) as model:
                tell(f"{name} is loaded: {model.n_ctx} tokens of context, engine {model.backend}")
        except EdgeLLMError as error:
            log.error("%s cannot be loaded: %s", name, error)


def _spelled(path: str | Path) -> Path:
    """An absolute path by its letters alone, without a look at what is there."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _of_path(name: str, path: Path) -> Listed:
    path = path.resolve()
    stat = path.stat()
    size = stat.st_size if path.is_file() else sum(each.stat().st_size for each in path.iterdir() if each.is_file())
    return Listed(name, path, size, stat.st_mtime)


def _in_folder(folder: Path) -> Iterator[Listed]:
    """The GGUF files under a folder, of split ones the first, and the ONNX folders; by their paths in it."""
    for path in sorted(folder.rglob("*")):
        split = path.stem.rpartition("-of-")[0]
        later = bool(split) and not split.endswith("00001")
        onnx = path.is_dir() and any(path.glob("*.onnx"))
        with suppress(OSError, ValueError):
            if (onnx or (path.suffix == ".gguf" and path.is_file() and not later)) and folder in path.resolve().parents:
                name = path.relative_to(folder)
                yield _of_path((name if onnx else name.with_suffix("")).as_posix(), path)


@lru_cache(64)
def _info(path: Path, _changed: float) -> ModelInfo:
    return edgellm.inspect(path)


def info_of(listed: Listed) -> ModelInfo:
    """What its file says; read once. Raises what `edgellm.inspect` does."""
    return _info(listed.path, listed.modified)


def _needed(path: Path, ctx: int | None) -> int:
    """Bytes that a model takes; 0 where its file does not say."""
    try:
        info = edgellm.inspect(path)
        context = edgellm.context_that_fits(info, ctx, 0)
        return edgellm.memory_needed(info, context)
    except EdgeLLMError:  # loading says it better
        return 0
