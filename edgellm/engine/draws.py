"""Draws: the random numbers of one generation, the same for a seed on every platform and in every version.

They are those of `numpy.random.PCG64`, whose module takes 12 ms to import:

- PCG XSL-RR 128/64 (M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
  Random Number Generation", 2014);
- seeded by a hash of the seed into 128 bits and from there into the generator's 256 (M. E. O'Neill, "Developing a
  seed_seq Alternative", 2015, as numpy's `SeedSequence` has it).
"""

from __future__ import annotations

from collections.abc import Iterator

_WORD, _STATE = 2**32 - 1, 2**128 - 1
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_POOL = 4  # words


class Draws:
    """seed: not negative."""

    def __init__(self, seed: int) -> None:
        words = list(_words(_pool(seed)))
        state, stream = (sum(words[at + i] << shift for i, shift in enumerate((64, 96, 0, 32))) for at in (0, 4))
        self._increment = (stream << 1 | 1) & _STATE
        self._state = (self._increment + state) & _STATE
        self._step()

    def uniform(self) -> float:
        """The next number: at least 0, below 1, a multiple of 2**-53."""
        self._step()
        mixed, turn = (self._state >> 64 ^ self._state) & (2**64 - 1), self._state >> 122
        return (((mixed >> turn | mixed << (64 - turn)) & (2**64 - 1)) >> 11) * 2.0**-53

    def _step(self) -> None:
        self._state = (self._state * _MULTIPLIER + self._increment) & _STATE


class _Hash:
    """A hash of words of which each is mixed with another constant."""

    def __init__(self, first: int, multiplier: int) -> None:
        self._constant, self._multiplier = first, multiplier

    def __call__(self, word: int) -> int:
        word ^= self._constant
        self._constant = self._constant * self._multiplier & _WORD
        word = word * self._constant & _WORD
        return word ^ word >> 16


def _pool(seed: int) -> list[int]:
    """All bits of a seed, of any length, in a few words."""
    entropy = [seed >> at & _WORD for at in range(0, max(1, seed.bit_length()), 32)]
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    pool = [hashed(word) for word in (entropy + [0] * _POOL)[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        pool = [_mixed(each, hashed(word)) for each in pool]
    return pool


def _mixed(x: int, y: int) -> int:
    mixed = (0xCA01F9DD * x - 0x4973F715 * y) & _WORD
    return mixed ^ mixed >> 16


def _words(pool: list[int]) -> Iterator[int]:
    """Eight words from a pool."""
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    return (hashed(word) for word in pool * 2)
