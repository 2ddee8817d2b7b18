from __future__ import annotations

import random
import tempfile

import pytest

from edgellm.jobs import order
from edgellm.jobs.order import Order


@pytest.mark.parametrize("run", [100, 1000, 1 << 20])
def test_more_is_sorted_than_is_held(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "RUNS", 4)
    chance = random.Random(run)
    keys = [chance.randbytes(chance.randrange(4)) for _ in range(500)]
    found = Order(run)
    for number, key in enumerate(keys):
        found.add(key, number)
    assert list(found.numbers()) == [number for _, number in sorted(zip(keys, range(500), strict=True))]
    assert list(found.numbers()) == []


def test_a_disk_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space"):
        Order(1).add(b"a", 1)
