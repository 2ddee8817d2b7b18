from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgellm import _native, machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
x86 = pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86 Linux")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


V2_MOUNT = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1000000 kB\nMemAvailable: 8000000 kB\n"


# --- what the kernel and psutil say -------------------------------------------------------------------------------


@x86
def test_features_agree_with_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(next(line for line in cpuinfo.splitlines() if line.startswith("flags")).split(":")[1].split())
    names = {"sse2", "ssse3", "sse4_2", "popcnt", "bmi2", "avx", "fma", "f16c", "avx2", "avx512f"}
    names |= {"avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
    names |= {"pclmulqdq", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
    assert machine.cpu_features() == flags & names
    assert machine.cpu_name() in cpuinfo


@x86
def test_asking_does_not_take_the_amx_permission() -> None:
    program = "from edgellm import _native; _native.cpu_features(); print(_native.amx_permitted())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@linux
def test_what_was_freed_leaves_memory() -> None:
    """Below a block in use, from where a C library gives nothing back by itself."""
    program = (
        "import ctypes, psutil; from edgellm import _native; c = ctypes.CDLL(None)\n"
        "c.malloc.restype = ctypes.c_void_p; c.free.argtypes = [ctypes.c_void_p]\n"
        "blocks = [c.malloc(50_000) for _ in range(1_000)]\n"
        "for block in blocks: ctypes.memset(block, 1, 50_000)\n"
        "for block in blocks[:-1]: c.free(block)\n"
        "before = psutil.Process().memory_info().rss; _native.trim_heap()\n"
        "print(before - psutil.Process().memory_info().rss)"
    )
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("another C library than glibc")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000_000


def test_nothing_is_reported_when_a_program_ends() -> None:
    """PySide6 frees no QThread of a module, nor the model it refers to: here, a reference too many."""
    program = (
        "import ctypes; from edgellm import _native; ctypes.pythonapi.Py_IncRef(ctypes.py_object(_native.AbortFlag()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_cores_agree_with_psutil() -> None:
    cores = machine.cores()
    assert cores.logical == psutil.cpu_count()
    assert 1 <= cores.usable == machine.usable_cores() <= cores.physical <= (psutil.cpu_count(logical=False) or 1)


@linux
def test_the_affinity_mask_counts() -> None:
    one = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{one}]); from edgellm import machine; print(machine.cores())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usable=1," in done.stdout
    assert "allowed=1, physical=1," in done.stdout


def test_memory_is_within_what_psutil_says() -> None:
    memory = machine.memory()
    outside = psutil.virtual_memory()
    assert 0 < memory.available <= memory.total <= outside.total
    assert memory.available <= outside.available * 1.2


def test_describe_holds_plain_values() -> None:
    import json

    described = machine.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["cores"]["usable"] == machine.usable_cores()


# --- topology -----------------------------------------------------------------------------------------------------


def siblings(pairs: dict[int, str]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{text}\n" for n, text in pairs.items()}


@pytest.mark.parametrize(
    ("cpus", "physical"),
    [([0, 1, 2, 3], 2), ([0, 2], 1), ([0, 1], 2), ([3], 1)],
)
def test_hyperthreads_share_a_core(tmp_path: Path, cpus: list[int], physical: int) -> None:
    root = tree(tmp_path, siblings({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}))
    assert machine.physical_of(cpus, root) == physical


def test_without_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert machine.physical_of([0, 1, 2], tree(tmp_path, siblings({0: "0"}))) == 3


# --- control groups -----------------------------------------------------------------------------------------------


def test_quota_of_version_2_is_the_least_on_the_way_up(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a.slice/b.scope\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/a.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n",
        },
    )
    assert machine.cpu_quota(root) == 1.5


def test_quota_of_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n",
            "proc/self/mountinfo": "33 32 0:30 /docker/1f /sys/fs/cgroup/cpu,cpuacct ro - cgroup c rw,cpu,cpuacct\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.cpu_quota(root) == 2


@pytest.mark.parametrize("quota", ["-1", "", "nonsense"])
def test_no_quota_of_version_1(tmp_path: Path, quota: str) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.cpu_quota(root) is None


@pytest.mark.parametrize(("quota", "usable"), [(0.5, 1), (1.9, 1), (2.0, 2), (64.0, 4), (None, 4)])
def test_usable_cores_under_a_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, usable: int) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "physical_of", lambda cpus, root: 4)
    monkeypatch.setattr(machine, "cpu_quota", lambda root: quota)
    assert machine.usable_cores() == usable


def test_memory_limit_of_version_2(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/memory.max": "4000000000\n",
            "sys/fs/cgroup/pod/memory.current": "3000000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 5\ninactive_file 500000000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.current": "1000\n",
        },
    )
    assert machine.memory_of(root) == machine.Memory(total=4_000_000_000, available=1_500_000_000, limit=4_000_000_000)


def test_memory_limit_of_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/box\n0::/\n",
            "proc/self/mountinfo": "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1900000000\n",
            "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 400000000\n",
        },
    )
    assert machine.memory_of(root) == machine.Memory(total=2_000_000_000, available=500_000_000, limit=2_000_000_000)


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/../elsewhere\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "2000\n",
        },
    )
    assert machine.memory_of(root).available == 0


def test_memory_without_control_groups(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO})
    assert machine.memory_of(root) == machine.Memory(total=16_384_000_000, available=8_192_000_000, limit=None)


# --- the abort flag -----------------------------------------------------------------------------------------------


def test_native_code_reads_the_abort_flag() -> None:
    import ctypes

    flag = _native.AbortFlag()
    requested = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(flag.callback)
    assert (requested(flag.data), flag.is_set) == (False, False)
    flag.set()
    assert (requested(flag.data), flag.is_set) == (True, True)
    other = _native.AbortFlag()
    assert requested(other.data) is False
    flag.clear()
    assert (requested(flag.data), flag.is_set) == (False, False)
