"""Bloomier filters: the codes of few positions, without the positions (Weightless, 1711.04686).

Every position is hashed to one slot in each of three parts of a table, and its code is the sum of
the three slots modulo ``base``. The slots are found by peeling (Botelho et al., 2007): as long as
some slot belongs to a single position that is left, that position can be settled last. Positions
that were not put in get any of the ``base`` codes, all about as often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.codebooks import PRIME

Integers = npt.NDArray[np.int64]

#: Peeling succeeds from 1.222 slots for each position on, where there are many.
SLOTS_PER_KEY = 1.23
PARTS = 3

_SPARE = 32  # further slots: few positions do not spread as evenly
_TRIES = 64
_CHUNK = 2**20


@dataclass(frozen=True)
class Hash:
    """Where positions are looked up, in whole numbers that int64 holds.

    With ``y = (factor * position + offset) % PRIME``, the slot in part ``i`` is
    ``y * (y + shifts[i]) % PRIME % width``.

    Attributes:
        factor: See above.
        offset: See above.
        shifts: One for each part.
        width: Slots of a part.
    """

    factor: int
    offset: int
    shifts: tuple[int, ...]
    width: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, width: int) -> Hash:
        """One at random."""
        factor, offset, *shifts = (int(x) for x in rng.integers(1, PRIME, 2 + PARTS))
        return cls(factor, offset, tuple(shifts), width)

    def slots(self, positions: Integers) -> Integers:
        """Slots of positions, [3, positions]; those of a part lie behind those before."""
        spread = (positions * self.factor + self.offset) % PRIME
        shifts = np.array(self.shifts, np.int64)[:, None]
        first = self.width * np.arange(PARTS, dtype=np.int64)[:, None]
        return spread * (spread + shifts) % PRIME % self.width + first


@dataclass(frozen=True)
class BloomierFilter:
    """Codes of some positions.

    Attributes:
        hash: Where positions are looked up.
        slots: Numbers below ``base``, uint8 or uint16.
        base: Distinct codes that slots can give.
        seed: Of the hash, and of the slots that no position settles.
    """

    hash: Hash
    slots: npt.NDArray[np.unsignedinteger]
    base: int
    seed: int

    def decode(self, count: int) -> npt.NDArray[np.uint16]:
        """Codes of the positions from 0 to ``count``, put in or not."""
        found = np.empty(count, np.uint16)
        for at in range(0, count, _CHUNK):
            positions = np.arange(at, min(at + _CHUNK, count), dtype=np.int64)
            found[at : at + _CHUNK] = _sums(self.slots[self.hash.slots(positions)], self.base)
        return found


def slot_count(keys: int) -> int:
    """Slots for so many positions: a multiple of 3."""
    return PARTS * -(-(int(np.ceil(SLOTS_PER_KEY * keys)) + _SPARE) // PARTS)


def build(positions: Integers, codes: Integers, base: int, seed: int) -> BloomierFilter:
    """Put the codes of some positions into a filter.

    Args:
        positions: Distinct, at least 0 and below ``PRIME``.
        codes: Of each position, below ``base``.
        base: Distinct codes, up to 65,536.
        seed: The first to try. Hashes that leave positions unsettled are drawn again, with the next
            seed.

    Raises:
        ValueError: No seed settles all positions.
    """
    total = slot_count(len(positions))
    for one in range(seed, seed + _TRIES):
        rng = np.random.default_rng(one)
        hashed = Hash.drawn(rng, total // PARTS)
        places = hashed.slots(positions)
        order = peel(places, total)
        if order is not None:
            # Free slots are random too, so that codes of other positions are spread evenly.
            slots = rng.integers(0, base, total, dtype=np.int64)
            for keys, owned in reversed(order):
                slots[owned] = 0
                slots[owned] = (codes[keys] - slots[places[:, keys]].sum(0)) % base
            return BloomierFilter(
                hashed, slots.astype(np.uint8 if base <= 256 else np.uint16), base, one
            )
    raise ValueError(f"no filter of {total:,} slots holds its {len(positions):,} values")


def peel(places: Integers, total: int) -> list[tuple[Integers, Integers]] | None:
    """The order in which keys can be taken away; they are settled in the opposite one.

    Args:
        places: Slots of each key, [3, keys], in distinct parts.
        total: Slots.

    Returns:
        Rounds of keys and the slot that each has to itself as soon as earlier rounds are gone; None
        if some keys share all their slots with each other.
    """
    count = places.shape[1]
    degree = np.bincount(places.ravel(), minlength=total)
    # The keys of a slot as their sum: where one is left, this is its number.
    keys = np.zeros(total, np.int64)
    for part in places:
        np.add.at(keys, part, np.arange(count))
    rounds, left = [], count
    free = np.flatnonzero(degree == 1)
    while len(free):
        gone, first = np.unique(keys[free], return_index=True)
        rounds.append((gone, free[first]))
        left -= len(gone)
        touched = places[:, gone]
        np.subtract.at(degree, touched, 1)
        np.subtract.at(keys, touched, np.broadcast_to(gone, touched.shape))
        candidates = np.unique(touched)
        free = candidates[degree[candidates] == 1]
    return None if left else rounds


def slot_bits(entries: int, false_positives: float) -> int:
    """The narrowest slots, 4, 8 or 16 bits, in which other positions seldom get a code in use.

    Args:
        entries: Codes in use.
        false_positives: Largest expected share of other positions that get one of them.

    Raises:
        ValueError: 16 bits are too few.
    """
    for bits in (4, 8, 16):
        if entries <= false_positives * 2**bits:
            return bits
    raise ValueError(f"{entries} entries need more than 16 bits for so few false positives")


def refit(
    weights: npt.NDArray[np.floating],
    codes: npt.NDArray[np.unsignedinteger],
    entries: int,
    importance: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float32]:
    """The table with the least squared error, given what each position is looked up as.

    Args:
        weights: Any shape, of finite values.
        codes: Of each weight, from :meth:`BloomierFilter.decode`; those from ``entries`` on are
            zeros.
        entries: Of the table.
        importance: What a squared error of each weight counts; like ``weights``.
    """
    used = codes < entries
    where, values = codes[used], weights.reshape(-1)[used].astype(np.float64)
    counts = np.ones(len(values)) if importance is None else importance.reshape(-1)[used]
    mass = np.bincount(where, counts, minlength=entries)
    total = np.bincount(where, counts * values, minlength=entries)
    return np.divide(total, mass, out=np.zeros(entries), where=mass > 0).astype(np.float32)


def _sums(slots: npt.NDArray[np.unsignedinteger], base: int) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = slots.sum(0, dtype=np.int64) % base
    return found
