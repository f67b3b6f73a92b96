"""Which tables suit given codes: trees of escapes, level by level, for the fewest bytes.

The rows of a level are the leaves of a tree of fixed depth: at each place some codes have branches
of their own, all others share the branch of escapes. For independent codes the best tree with a
given number of leaves is made of best trees of one place less (dynamic programming), where the
leaves are shared out among the branches one by one, each to the branch that gains most.

What an escape costs is what the next levels take for it; a chain of alphabets of 2, 3, 4, 6 or 16
symbols, which take whole bytes, is a good estimate of that (dynamic programming again).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.coded import Book, Bytes, Level, encode_level

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAVES = 256
_FEWEST_LEAVES = 32
_CODES_OF_A_ROW = 24  # a table with more rows would take too much of what it saves
_DEEPEST = 8
_BRANCHES = (*range(9), 10, 12, 14, 16, 20, 24, 32, 48, 63)  # tried beyond the first place
_ALPHABETS = ((2, 1.0), (3, 1.6), (4, 2.0), (6, 8 / 3), (16, 4.0))
_EFFORT = 0.033  # of the entropy: what one code less to rebuild, in any level, is worth at load
_TRIED = 3  # depths that are worked out
_MOST_LEVELS = 8
_WIDE = 2.6  # bits of entropy from which low bits may be kept apart; below, vectors may do
_LEFT = (1.3, 3.8)  # bits of entropy, about, that are left for levels beside lowest bits
_VECTOR_BITS = (2.0, 6.5)  # of entropy, in the rows of a level of vectors
_ALIKE = 0.9  # of its bytes that differences must go below
_LOOK = 512  # rows and columns that are looked at first


class _Price(NamedTuple):
    """What levels take beside their codes and tables.

    Attributes:
        nodes: Bytes of the nodes of one.
        effort: Bits that one code less to rebuild is worth: memory and time of loading.
    """

    nodes: int
    effort: float


def entropy_bytes(counts: Ints) -> float:
    """Bytes that an ideal order-0 coder takes for codes of these counts, its table left out."""
    found = counts[counts > 0].astype(np.float64)
    return float(-(found * np.log2(found / found.sum())).sum() / 8) if found.size else 0.0


def differences(values: npt.NDArray[Any], overhead: int) -> tuple[int, Bytes] | None:
    """The axis along which a tensor changes little, and its differences: int8, as flat bytes.

    Tables of sines and cosines do, by which attention tells places: the first numbers of a row are
    another's but for a little. Of other weights the differences take more bits than they do.

    Args:
        values: Integers between -128 and 255.
        overhead: Bytes that it takes to add differences up.

    Returns:
        None where that would take as many bytes, or no difference fits.
    """
    if values.ndim < 2 or not values.size:
        return None
    blocks, found = values.reshape(-1, *values.shape[-2:]), None
    part = blocks[:1, :_LOOK, :_LOOK]
    most = _ALIKE * _bytes_of(part)
    axes = [axis for axis in (1, 2) if _bytes_of(_steps(part, axis)) < most]
    least = _ALIKE * (_bytes_of(blocks) - overhead) if axes else 0.0  # large ones are not copied
    for axis in axes:
        steps = _steps(blocks, axis)
        if abs(steps).max() < 128 and (takes := _bytes_of(steps)) < least:
            codes = steps.astype(np.int8).reshape(-1).view(np.uint8)
            least, found = takes, (values.ndim - 3 + axis, codes)
    return found


def _steps(blocks: npt.NDArray[Any], axis: int) -> npt.NDArray[np.int16]:
    steps: npt.NDArray[np.int16] = blocks.astype(np.int16)
    rows = np.moveaxis(steps, axis, 0)
    rows[1:] -= rows[:-1].copy()
    return steps


def _bytes_of(numbers: npt.NDArray[Any]) -> float:
    """Bytes by order-0 entropy of integers between -255 and 255."""
    return entropy_bytes(np.bincount(numbers.astype(np.int16).reshape(-1) + 255, minlength=511))


def plan(codes: Bytes, overhead: int) -> Book:
    """The book for codes like these: few bytes, and little to do when they are read.

    Args:
        codes: Flat; independent draws, as far as the estimates go.
        overhead: Bytes that the nodes of one level take.
    """
    counts = _counted(codes)
    if not codes.size:
        return Book(())
    bits = 8 * entropy_bytes(counts) / codes.size
    price = _Price(overhead, _EFFORT * bits)
    books = [_plan_levels(counts, low, price) for low in _low_bits(bits)]
    if 0 < bits < _WIDE:
        books += _plan_vectors(codes, counts, bits, price)
    return min(books, key=lambda found: found[1])[0]


def _low_bits(bits: float) -> tuple[int, ...]:
    """How many lowest bits are worth keeping apart, by the entropy of a code."""
    if bits < _WIDE:
        return (0,)
    return tuple(low for low in (0, 1, 2, 4) if _LEFT[0] <= bits - low <= _LEFT[1]) or (0,)


def _counted(codes: Bytes) -> Ints:
    counts: Ints = np.bincount(codes, minlength=256)
    return counts


def _plan_levels(counts: Ints, low_bits: int, beside: _Price) -> tuple[Book, float]:
    """Levels whose rows are written as they are."""
    left = counts.astype(np.float64)
    total, price = left.sum(), 0.0
    if low_bits:
        step = 1 << low_bits
        joined = left.reshape(-1, step).sum(1)
        left = np.zeros(256)
        left[::step] = joined
        price = total * (low_bits + beside.effort / 2) / 8
        price += 256 * 8 // low_bits + beside.nodes
    levels: list[Level] = []
    while len(levels) < _MOST_LEVELS and left.sum() > 0:
        found = _best_level(left, beside)
        if found is None:
            break
        price += left.sum() * (1 / found[0].width + beside.effort / 8)
        price += found[0].table.size + beside.nodes
        levels.append(found[0])
        left = found[1]
    return Book(tuple(levels), low_bits), price + float(left.sum())


def _plan_vectors(
    codes: Bytes, counts: Ints, bits: float, beside: _Price
) -> list[tuple[Book, float]]:
    """A first level of vectors, and the numbers of its rows coded in turn."""
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0][:255]
    share = counts[order] / codes.size
    rest = max(1.0 - float(share.sum()), 0.0)
    trees = _Trees(share, 1 - np.log2(share), rest, codes.size)
    found = []
    for depth in range(2, trees.deepest + 1):
        if not _VECTOR_BITS[0] <= depth * bits <= _VECTOR_BITS[1] and depth > 2:
            continue
        level = _level(order, trees.rows(depth)[0])
        if level is None:
            continue
        rows, left = encode_level(codes, level)
        # Rows in the order of their frequency: the numbers of neighbours are about as frequent, so
        # that their lowest bits may be kept apart.
        often = np.argsort(-_counted(rows)[: len(level.table)], kind="stable")
        rank = np.empty_like(often)
        rank[often] = np.arange(often.size)
        level, rows = Level(level.table[often], level.escape), rank.astype(np.uint8)[rows]
        price = entropy_bytes(_counted(rows)) + entropy_bytes(_counted(left)) + level.table.size
        found.append((price, depth, level, rows, left))
    books = []
    for _, _, level, rows, left in sorted(found, key=lambda each: each[0])[:_TRIED]:
        spread = 8 * entropy_bytes(_counted(rows)) / max(rows.size, 1)
        choices = [_plan_levels(_counted(rows), low, beside) for low in _low_bits(spread)]
        inner, price = min(choices, key=lambda choice: choice[1])
        following, more = _plan_levels(_counted(left), 0, beside)
        book = Book((replace(level, rows=inner), *following.levels))
        first = level.table.size + beside.nodes + codes.size * beside.effort / 8
        books.append((book, price + more + first))
    return books


def _level(order: Ints, rows: list[tuple[int, ...]]) -> Level | None:
    """A level of rows of places in ``order``, -1 for an escape; None if no value is left for it."""
    taken = {int(order[code]) for row in rows for code in row if code >= 0}
    escape = next((value for value in range(255, -1, -1) if value not in taken), None)
    if escape is None:
        return None
    names = np.append(order, escape)
    return Level(names[np.array(rows, np.int64)].astype(np.uint8), escape)


def _best_level(left: Floats, beside: _Price) -> tuple[Level, Floats] | None:
    """The next level and the counts of what it leaves, or None where plain bytes do as well."""
    order = np.argsort(-left, kind="stable")
    order = order[left[order] > 0]
    if order.size > 255:
        order = order[:255]
    total = left.sum()
    share = left[order] / total
    rest = float(left.sum() - left[order].sum()) / total
    extra, effort = beside.nodes * 8 / total, beside.effort
    best: tuple[float, int, Floats, list[tuple[int, ...]]] | None = None
    cost = _chain_costs(share, extra, effort) - 1

    def consider(depth: int, rows: list[tuple[int, ...]], escapes: Floats) -> None:
        nonlocal best, cost
        again = np.argsort(-escapes, kind="stable")
        costs = np.empty_like(escapes)
        costs[again] = _chain_costs(escapes[again], extra, effort)
        price = 8 / depth + effort + float(escapes @ costs) + 8 * rest
        price += extra + 8 * depth * len(rows) / total
        if best is None or price < best[0]:
            best, cost = (price, depth, escapes, rows), costs

    for symbols, _ in _ALPHABETS:
        own = min(symbols - 1, share.size)
        depth = int(np.log(256.5) / np.log(own + 1))
        alphabet = (*range(own), -1)
        rows = list(product(alphabet, repeat=depth))
        consider(depth, rows, np.where(np.arange(share.size) < own, 0.0, share))
    trees = _Trees(share, np.maximum(cost, 0.5), rest, float(total))
    for depth in (np.argsort(trees.bits())[:_TRIED] + 1).tolist():
        consider(depth, *trees.rows(depth))
    if best is None or best[0] >= 8:
        return None
    _, _, escapes, rows = best
    level = _level(order, rows)
    if level is None:
        return None
    following = left.copy()
    following[order] = escapes * total
    if level.escape in order:  # spelled like an escape: always written as one
        following[level.escape] = left[level.escape]
    return level, following


def _chain_costs(share: Floats, extra: float, effort: float) -> Floats:
    """Bits of each symbol on the best chain of alphabets.

    Args:
        share: Of the symbols, the most frequent first; need not add up to 1.
        extra: What a level costs besides.
        effort: What a code of a level costs besides.
    """
    size = share.size
    tail = np.append(np.cumsum(share[::-1])[::-1], 0.0)
    cost, step, bits = np.zeros(size + 1), np.zeros(size + 1, np.int64), np.zeros(size + 1)
    for at in range(size - 1, -1, -1):
        cost[at], step[at], bits[at] = 8 * tail[at], size - at, 8.0
        for symbols, width in _ALPHABETS:
            taken = size - at if size - at <= symbols else symbols - 1
            price = (width + effort) * tail[at] + extra + cost[at + taken]
            if price < cost[at]:
                cost[at], step[at], bits[at] = price, taken, width + effort
    found, at, so_far = np.zeros(size), 0, 0.0
    while at < size:
        so_far += bits[at]
        found[at : at + step[at]] = so_far
        at += step[at]
    return found


class _Trees:
    """The best trees of all depths and numbers of leaves, for independent codes.

    ``gain[depth][leaves]`` is what the branches of a tree save of the costs of escapes.
    """

    def __init__(self, share: Floats, cost: Floats, rest: float, size: float):
        self.share, self.cost, self.rest = share, cost, rest
        self.leaves = int(np.clip(size / _CODES_OF_A_ROW, _FEWEST_LEAVES, _LEAVES))
        entropy = float(-(share * np.log2(share)).sum())
        self.deepest = int(np.clip(np.ceil(18 / max(entropy, 0.1)), 2, _DEEPEST))
        saved = np.append(0.0, np.cumsum(share * cost))
        first = saved[np.minimum(np.maximum(np.arange(self.leaves + 1) - 1, 0), share.size)]
        self.gain = [np.zeros(self.leaves + 1), first]
        most = min(share.size, self.leaves - 1)
        self.tried = np.array([each for each in _BRANCHES if each <= most])
        self.weight, self._turns = self._weights(), self._all_turns()
        self._chosen: list[tuple[Ints, Ints]] = []
        for _ in range(2, self.deepest + 1):
            self._deepen(saved)

    def bits(self) -> Floats:
        """Bits a code, by depth from 1, as the costs of escapes have it."""
        whole = float(self.share @ self.cost)
        depths = np.arange(1, self.deepest + 1)
        saved = np.array([self.gain[depth][self.leaves] for depth in depths])
        found: Floats = 8 / depths + whole - saved / depths
        return found

    def _deepen(self, saved: Floats) -> None:
        """One depth more: leaves go one by one to the branch where the next is worth most.

        The worth of the next leaf of a branch never grows, so that the turns of all leaves are
        those of a stable sort by it.
        """
        tried = self.tried  # how many branches beside that of escapes
        before = self.gain[-1]
        delta = np.append(np.diff(before), 0.0)
        slope = np.maximum.accumulate(delta[::-1])[::-1]
        branch, had = self._turns
        heavy = self.weight[:, branch]
        turns = np.argsort(-heavy * slope[had], axis=1, kind="stable")[:, : self.leaves - 1]
        heavy = np.take_along_axis(heavy * delta[had], turns, axis=1)
        gain = np.cumsum(np.concatenate([saved[tried][:, None], heavy], axis=1), axis=1)
        reached = np.full((self.leaves + 1, tried.size), -1.0)
        picks = np.zeros((self.leaves + 1, tried.size), np.int64)
        for line, branches in enumerate(tried.tolist()):
            reached[branches + 1 :, line] = gain[line, : self.leaves - branches]
            picks[branches + 2 :, line] = branch[turns[line, : self.leaves - branches - 1]]
        best = reached.max(1)
        best[0] = 0.0
        self.gain.append(best)
        self._chosen.append((reached.argmax(1), picks))

    def _weights(self) -> Floats:
        """How often a branch is taken, for each number of branches tried; the last is escapes."""
        weight = np.zeros((self.tried.size, int(self.tried[-1]) + 1))
        for line, branches in enumerate(self.tried.tolist()):
            weight[line, :branches] = self.share[:branches]
            weight[line, branches] = self.share[branches:].sum() + self.rest
        return weight

    def _all_turns(self) -> tuple[Ints, Ints]:
        """Branches, and the leaves that they have when another may come: all that can happen.

        A branch never has more leaves than one that is taken more often; escapes may be any.
        """
        count = int(self.tried[-1]) + 1
        most = np.where(
            np.isin(np.arange(count), self.tried),
            self.leaves,
            self.leaves // np.arange(1, count + 1),
        )
        branch = np.repeat(np.arange(count), most)
        return branch, np.concatenate([np.arange(1, each + 1) for each in most])

    def _shares(self, depth: int, leaves: int) -> list[int]:
        """Leaves of every branch; the last is that of escapes."""
        if depth == 1:
            return [1] * min(leaves, self.share.size + 1)
        chosen, picks = self._chosen[depth - 2]
        line = int(chosen[leaves])
        branches = int(self.tried[line])
        found = [1] * (branches + 1)
        for at in picks[branches + 2 : leaves + 1, line].tolist():
            found[at] += 1
        return found

    def rows(self, depth: int) -> tuple[list[tuple[int, ...]], Floats]:
        """The rows of the best tree, -1 for an escape, and how often each code is one."""
        share = self.share

        @cache
        def below(depth: int, leaves: int) -> tuple[list[tuple[int, ...]], Floats]:
            if depth == 0:
                return [()], np.zeros(share.size)
            parts = self._shares(depth, leaves)
            own = len(parts) - 1
            escapes = np.zeros(share.size)
            escapes[own:] = share[own:]
            rows: list[tuple[int, ...]] = []
            for branch, part in enumerate(parts):
                mass = share[branch] if branch < own else share[own:].sum() + self.rest
                more, inner = below(depth - 1, part)
                rows += [(branch if branch < own else -1, *row) for row in more]
                escapes = escapes + mass * inner
            return rows, escapes

        rows, escapes = below(depth, self.leaves)
        return rows, escapes / depth
