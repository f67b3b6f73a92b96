"""What a removed channel costs, and which to remove: scores of units, and choices among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_DOUBT = 0.01  # of the time, in a guess of what is saved
_MOST_MORE = 1.25  # times what was asked for, by rounding
_LEAST = 0.75  # of what was asked for, by rounding
_FAINT = 1e-9  # of the largest: less makes no difference
_PRICES, _HALVINGS = (1e-12, 1e12), 60  # of all that is to be saved, in units of loss
_FINEST = 4  # no kernel is known to be fast for multiples of less


def index_power(
    weights: npt.NDArray[np.floating], axis: int, order: int, factors: Array | None = None
) -> Array:
    """Sum of ``|w|^order`` for every index of one axis.

    Args:
        weights: Any shape.
        axis: The axis whose indices are scored.
        order: 1 or 2.
        factors: What each index is multiplied with when the weights are used, for instance the
            root mean square of the channel that they read (Wanda, 2306.11695).
    """
    values = np.abs(np.moveaxis(np.asarray(weights, np.float64), axis, 0)).reshape(
        weights.shape[axis], -1
    )
    if order == 2:
        values = np.square(values)
    power: Array = values.sum(1)
    return power if factors is None else power * np.abs(factors) ** order


def units_to_keep(count: int, wanted: float, granule: int, minimum: int) -> int:
    """How many units to keep: the multiple of ``granule`` nearest to ``wanted``.

    Of two multiples the larger one, where the smaller would remove much more than asked for; where
    the larger would remove much less, multiples of half a granule are tried. At least one granule
    or ``minimum`` stay; a group smaller than a granule stays whole.
    """
    lowest = max(1, min(minimum, count))
    if granule <= 1:
        return min(count, max(lowest, math.floor(wanted + 0.5)))
    if count < granule:
        return count
    floor = math.ceil(max(lowest, granule) / granule) * granule
    kept = granule * math.floor(wanted / granule + 0.5)
    if count - kept > _MOST_MORE * (count - wanted):
        kept += granule
    kept = min(count, max(floor, kept))
    if count - kept < _LEAST * (count - wanted) and granule % (2 * _FINEST) == 0:
        return units_to_keep(count, wanted, granule // 2, minimum)
    return kept


def choose_local(
    scores: Sequence[Array], wanted: Sequence[float], granules: Sequence[int], minimum: int = 1
) -> list[Indices]:
    """The lowest units of every group.

    Args:
        scores: For each group, a score for each unit.
        wanted: For each group, how many units to keep.
        granules: For each group, what the number of units kept is a multiple of.
        minimum: Units that every group keeps.

    Returns:
        For each group, the units to remove, in ascending order.
    """
    chosen = []
    for own, goal, granule in zip(scores, wanted, granules, strict=True):
        count = len(own)
        keep = units_to_keep(count, goal, granule, minimum) if goal < count else count
        chosen.append(_lowest(own, count - keep))
    return chosen


def choose_global(
    scores: Sequence[Array], costs: Sequence[float], ratio: float, granules: Sequence[int],
    minimum: int = 1, most: float = 0.9,
) -> list[Indices]:  # fmt: skip
    """The units that are cheapest to lose for what they save, wherever they are.

    Scores are divided by the mean of their group, which makes layers comparable, and by the cost
    of a unit relative to the others'.

    Args:
        scores: For each group, a score for each unit.
        costs: For each group, what removing one unit saves.
        ratio: Share of the total cost to remove.
        granules: For each group, what the number of units kept is a multiple of.
        minimum: Units that every group keeps.
        most: Largest share of a group that may go.
    """
    if not scores or ratio <= 0:
        return [np.empty(0, np.int64) for _ in scores]
    weights = np.array([max(cost, 1e-12) for cost in costs])
    weights = np.sqrt(weights / np.exp(np.log(weights).mean()))
    ranked = [
        np.sort(own / max(own.mean(), 1e-30)) / weight
        for own, weight in zip(scores, weights, strict=True)
    ]
    allowed = [min(int(most * len(own)), len(own) - max(1, minimum)) for own in scores]
    group = np.concatenate([np.full(max(n, 0), i) for i, n in enumerate(allowed)])
    value = np.concatenate([r[: max(n, 0)] for r, n in zip(ranked, allowed, strict=True)])
    order = np.argsort(value, kind="stable")
    saved = np.cumsum(np.asarray(costs, float)[group[order]])
    total = sum(cost * len(own) for cost, own in zip(costs, scores, strict=True))
    taken = group[order[: int(np.searchsorted(saved, ratio * total)) + 1]]
    counts = np.bincount(taken, minlength=len(scores))
    chosen = []
    for own, count, granule in zip(scores, counts.tolist(), granules, strict=True):
        keep = units_to_keep(len(own), len(own) - count, granule, minimum) if count else len(own)
        chosen.append(_lowest(own, len(own) - keep))
    return chosen


def loss_curve(scores: Array, counts: Sequence[int], losses: Sequence[float]) -> Array:
    """What a group loses with so many of its units, from what was measured for a few counts.

    Scores say how the loss grows from unit to unit; what is measured says how much of it comes
    through. Between two counts that factor goes evenly from one to the other, as its logarithm.

    Args:
        scores: Of its units, not negative.
        counts: How many units, the lowest, were removed; ascending.
        losses: What was lost with each of these counts.

    Returns:
        [units + 1], from none to all; never falling.
    """
    expected = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    least = _FAINT * max(expected[-1], np.finfo(np.float64).tiny)
    seen = np.maximum(losses, _FAINT * max(*losses, 1e-9))
    factors = np.log(seen / np.maximum(expected[np.asarray(counts)], least))
    every = np.exp(np.interp(np.arange(len(expected)), counts, factors))
    curve: Array = np.maximum.accumulate(expected * every)
    return curve


def choose_by_loss(
    losses: Sequence[Array], costs: Sequence[float], ratio: float, granules: Sequence[int],
    minimum: int = 1, most: Sequence[float] = (0.6, 0.9),
) -> list[int]:  # fmt: skip
    """How many units of each group to remove so that all lose the least together.

    Losses add up, as those of small changes do. At a price for what is saved every group removes
    as many as pay best; the price is raised until enough goes.

    Args:
        losses: For each group, what is lost with 0, 1, 2, ... units.
        costs: For each group, what removing one unit saves.
        ratio: Share of the total cost to remove.
        granules: For each group, what the number of units kept is a multiple of.
        minimum: Units that every group keeps.
        most: Largest share of a group that may go; the next one only where the ones before do not
            reach the ratio: curves are least sure where much is gone.
    """
    sizes = [len(loss) - 1 for loss in losses]
    goal = ratio * sum(cost * size for cost, size in zip(costs, sizes, strict=True))
    if ratio <= 0 or not goal > 0:
        return [0] * len(losses)
    for share in most:
        allowed, saved = [], []
        for size, cost, granule in zip(sizes, costs, granules, strict=True):
            least = max(granule, minimum, math.ceil((1 - share) * size))
            kept = np.arange(-(-least // granule) * granule, size, granule)
            allowed.append(np.append(0, size - kept[::-1]))
            saved.append(cost * allowed[-1])
        if sum(worth[-1] for worth in saved) >= goal:
            break

    def at(price: float) -> list[int]:
        return [
            int(np.argmin(loss[counts] - price * worth))
            for loss, counts, worth in zip(losses, allowed, saved, strict=True)
        ]

    low, high = _PRICES
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        taken = at(middle / goal)
        enough = sum(w[t] for w, t in zip(saved, taken, strict=True)) >= goal
        low, high = (low, middle) if enough else (middle, high)
    return [int(counts[t]) for counts, t in zip(allowed, at(high / goal), strict=True)]


def believed_saving(guess: float, seen: float, width: float) -> float:
    """The share of the time that is saved, from a guess and from a measurement.

    Each counts by one over its squared error. A guess from the work that goes may be off by as
    much as it is; on a busy machine, what is measured of a small group is worth less than that.

    Args:
        guess: The share of the work that goes.
        seen: The share of the time that was seen to go, or less than zero.
        width: The width of its confidence interval.
    """
    trust, other = 1 / (guess + _DOUBT) ** 2, 1 / max(width, 1e-6) ** 2
    return max(0.0, (trust * guess + other * seen) / (trust + other))


def balanced_counts(
    sizes: Sequence[int], wanted: Sequence[float], parts: Sequence[npt.NDArray[np.floating]],
    round_to: int = 1,
) -> Indices:  # fmt: skip
    """Whole numbers next to what is wanted that take equally much from all parts of an axis.

    Args:
        sizes: What there is of each kind; at least one of each stays.
        wanted: How much of each kind to take, at best.
        parts: For each axis, [parts, kinds]: how much of a part goes with one of each kind.
        round_to: What the lengths of axes are to be multiples of, where that can be.

    Returns:
        How much to take; nothing where there is no answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    count, goal = len(sizes), np.asarray(wanted, np.float64)
    even = np.concatenate([np.diff(axis, axis=0) for axis in parts])
    # Minimise the distances from what is wanted of each kind, and above all those of whole parts.
    first = np.array([axis[0] for axis in parts])
    near = np.concatenate([np.eye(count), first])
    # What is left of a part is so many times this.
    times = np.array([round_to / math.gcd(round_to, len(axis)) for axis in parts])
    slack, blank = np.eye(len(near)), np.zeros((len(near), len(parts)))
    left = first @ np.asarray(sizes, np.float64)
    constraints = [
        LinearConstraint(np.hstack([even, np.zeros((len(even), len(near) + len(parts)))]), 0, 0),
        LinearConstraint(np.hstack([near, -slack, blank]), -np.inf, near @ goal),
        LinearConstraint(np.hstack([near, slack, blank]), near @ goal, np.inf),
        LinearConstraint(
            np.hstack([first, np.zeros((len(parts), len(near))), np.diag(times)]), left, left
        ),
    ]
    most = np.concatenate(
        [np.maximum(np.asarray(sizes) - 1, 0), np.full(len(near) + len(parts), np.inf)]
    )
    found = milp(
        np.concatenate([np.zeros(count), np.ones(count), np.full(len(parts), 10.0), blank[0]]),
        constraints=constraints, bounds=Bounds(0, most), options={"node_limit": 10_000},
        integrality=np.concatenate([np.ones(count), np.zeros(len(near)), np.ones(len(parts))]),
    )  # fmt: skip
    taken = None if found.x is None else np.asarray(np.rint(found.x[:count]), np.int64)
    near_enough = taken is not None and _LEAST <= taken.sum() / goal.sum() <= _MOST_MORE
    if round_to > 1 and not near_enough:
        return balanced_counts(sizes, wanted, parts, max(1, round_to // 2))
    return np.zeros(count, np.int64) if taken is None else taken


def _lowest(scores: Array, count: int) -> Indices:
    return np.sort(np.argsort(scores, kind="stable")[:count])
