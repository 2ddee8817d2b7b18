"""What this machine offers to this process: cores, memory, instruction sets.

Numbers respect the process's affinity mask and, on Linux, its control group (v1 and v2, every ancestor): a container
with two CPUs and 4 GB on a 64-core server counts as two cores and 4 GB.

Sources: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/, cputopology.rst, proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm import _native


@dataclass(frozen=True, slots=True)
class Cores:
    """usable: cores worth a compute thread each, at least 1. The rest says why it is that many.

    logical: hardware threads of the machine. allowed: those in the affinity mask. physical: distinct cores behind the
    allowed ones. quota: CPUs' worth of time the control group grants, None without a limit.
    """

    usable: int
    logical: int
    allowed: int
    physical: int
    quota: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. total: of the machine, or of the control group where that is less. available: what can still be taken
    without swapping or being killed. limit: the tightest control group limit, None without one. Both are 0 where the
    system does not say.
    """

    total: int
    available: int
    limit: int | None


def usable_cores() -> int:
    """Physical cores that this process may use: affinity mask and CPU quota respected, at least 1."""
    return cores().usable


def cores() -> Cores:
    """How many cores this process may use, and why."""
    logical = os.cpu_count() or 1
    if sys.platform != "linux":
        physical = _native.physical_cores() or logical
        return Cores(usable=physical, logical=logical, allowed=logical, physical=physical, quota=None)
    allowed = os.sched_getaffinity(0)
    physical = physical_of(allowed, Path("/"))
    quota = cpu_quota(Path("/"))
    usable = physical if quota is None else max(1, min(physical, int(quota)))
    return Cores(usable=usable, logical=logical, allowed=len(allowed), physical=physical, quota=quota)


def memory() -> Memory:
    """Total and available memory in bytes, as the control group sees it."""
    if sys.platform != "linux":
        total, available = _native.host_memory()
        return Memory(total=total, available=available, limit=None)
    return memory_of(Path("/"))


def cpu_features() -> frozenset[str]:
    """Instruction sets that the CPU has and the operating system lets this process use.

    x86 names are those of /proc/cpuinfo ("avx2", "avx512_vnni", "amx_int8"); Arm has "neon", "fp16", "dotprod",
    "i8mm", "bf16", "sve", "sve2".
    """
    return frozenset(_native.cpu_features())


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where it does not tell."""
    name = _native.cpu_name()
    if name:
        return name
    import platform

    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Everything above as plain values for JSON."""
    return {
        "platform": sys.platform,
        "cpu": cpu_name(),
        "features": sorted(cpu_features()),
        "cores": asdict(cores()),
        "memory": asdict(memory()),
    }


def physical_of(cpus: Iterable[int], root: Path) -> int:
    """Distinct physical cores behind logical CPU numbers, from sysfs under `root`; all of them where it is silent."""
    numbers = set(cpus)
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in numbers}
    return max(1, len(numbers) if None in siblings else len(siblings))


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control groups of this process grant: the least on the way up, None without."""
    quotas = []
    for folder in _cgroup_folders("cpu", root):
        quota, period = (_read(folder / "cpu.max") or "").split() or (None, None)
        if quota is None:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        micros, every = _number(quota), _number(period)
        if micros and every:
            quotas.append(micros / every)
    return min(quotas, default=None)


def memory_of(root: Path) -> Memory:
    """`memory()` from the proc and cgroup files under `root`."""
    meminfo = _fields(root / "proc/meminfo")
    total = meminfo.get("MemTotal:", 0) * 1024
    available = meminfo.get("MemAvailable:", meminfo.get("MemFree:", 0)) * 1024
    limits = []
    for folder in _cgroup_folders("memory", root):
        limit = _number(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes"))
        used = _number(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes"))
        if limit is None or used is None or limit >= total:  # "max", or version 1's huge number for no limit
            continue
        stat = _fields(folder / "memory.stat")
        reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        limits.append(limit)
        available = min(available, max(0, limit - max(0, used - reclaimable)))
    return Memory(total=min([total, *limits]), available=available, limit=min(limits, default=None))


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders that can limit this process, from its own control group up to the mounted top.

    /proc/self/cgroup has `0::/path` (version 2) and `7:cpu,cpuacct:/path` (version 1); /proc/self/mountinfo has
    `36 25 0:31 /root /mount/point opts - cgroup2 source options`.
    """
    paths = {}
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            paths["cgroup2"] = path
        elif controller in names.split(","):
            paths["cgroup"] = path
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        mounted_root, mount_point = before.split()[3:5]
        top = root / mount_point.lstrip("/")
        inside = posixpath.relpath(paths[kind], mounted_root)
        parts = [] if inside == "." or inside.startswith("..") else inside.split("/")
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth])


def _read(path: Path) -> str | None:
    """The stripped text of a small file, None where it is missing or forbidden."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    """A whole number that is a limit; None for "max", for version 1's -1 and for nothing."""
    return int(text) if text and text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of `name number [unit]`."""
    lines = (line.split() for line in (_read(path) or "").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) >= 2 and words[1].isdigit()}
