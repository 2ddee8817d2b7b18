from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgellm.errors import ModelNotFound, ResourceError
from edgellm.hub.transfer import check_room, lock, megabytes, trying


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (98362432, "98.4 MB"),
        (999_950_000, "1.00 GB"),
        (10**10, "10.00 GB"),
    ],
)
def test_megabytes(count: int, text: str) -> None:
    assert megabytes(count) == text


def test_check_room_names_both_numbers(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"1000000000\.00 GB are needed in .* are free"):
        check_room(tmp_path, 10**18)


def test_full_disk_and_other_errors(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="full"), trying("write in", tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError, match="Permission denied"), trying("write in", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ResourceError, match="odd"), trying("write in", tmp_path):
        raise OSError(errno.EIO, "odd")
    with pytest.raises(ModelNotFound), trying("write in", tmp_path):  # an OSError too, but one that says what is wrong
        raise ModelNotFound("x")


def test_lock_waits_for_another_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    waited, order = threading.Event(), []

    def second() -> None:
        with lock(path, waited.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with lock(path, lambda: order.append("first waited")):
        thread.start()
        assert waited.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import os, sys; from pathlib import Path; from edgellm.hub.transfer import lock\n"
        "with lock(Path(sys.argv[1]), lambda: None): os._exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 3
    with lock(path, lambda: pytest.fail("it is still held")):
        pass
