"""k-means: exact on the line, by Lloyd's iteration from k-means++ seeds for vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_FINE = 2**16  # bins of a large tensor; up to as many values are taken as they are
_COARSE = 2**12  # cells that dynamic programming sees
_EXACT = 64  # more clusters than these start from cells of equal weight instead
_CHUNK = 2**20
_SAMPLE = 2**14
_ROUNDS = 100
_VECTOR_ROUNDS = 15


def histogram(
    values: npt.NDArray[np.floating], importance: npt.NDArray[np.floating] | None
) -> tuple[Array64, Array64]:
    """Points on the line and their mass, ascending.

    Args:
        values: Finite, any shape, at least one.
        importance: The mass of each value, not negative; None is 1 each.

    Returns:
        The distinct values of up to 65,536; of more, the means of as many equal bins. Where all
        mass is 0 it counts as if it were 1.
    """
    flat = values.reshape(-1)
    mass = None if importance is None or not importance.any() else importance.reshape(-1)
    if flat.size <= _FINE:
        ordered = flat.astype(np.float64)
        order = np.argsort(ordered, kind="stable")
        ordered = ordered[order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        each = np.ones(flat.size) if mass is None else mass[order].astype(np.float64)
        points, weight = ordered[first], np.add.reduceat(each, first)
        return points[weight > 0], weight[weight > 0]
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return np.array([low]), np.array([float(flat.size)])
    weight, total = np.zeros(_FINE), np.zeros(_FINE)
    for at in range(0, flat.size, _CHUNK):
        part = flat[at : at + _CHUNK].astype(np.float64)
        bins = ((part - low) * ((_FINE - 1) / (high - low))).astype(np.int64)
        here = np.ones(part.size) if mass is None else mass[at : at + _CHUNK].astype(np.float64)
        weight += np.bincount(bins, here, _FINE)
        total += np.bincount(bins, part * here, _FINE)
    used = weight > 0
    return total[used] / weight[used], weight[used]


def kmeans(points: Array64, mass: Array64, clusters: int, *, pin: float | None = None) -> Array64:
    """Centres with the least squared distance to weighted points on the line.

    Exact for up to 64 clusters of 4,096 points (dynamic programming over the ends of intervals,
    divide and conquer on their monotone optimum); beyond, points are first merged into cells as
    narrow as they are dense, and the result is improved by Lloyd's iteration on all of them.

    Args:
        points: Ascending.
        mass: Positive.
        clusters: At most so many centres.
        pin: One centre that must be among them, however little mass lies there.

    Returns:
        Ascending; all points when there are no more than ``clusters``.
    """
    if pin is not None:
        return _kmeans_pinned(points, mass, clusters, pin)
    if len(points) <= clusters:
        return points
    return _lloyd(points, mass, _start(points, mass, clusters), None)


def _kmeans_pinned(points: Array64, mass: Array64, clusters: int, pin: float) -> Array64:
    """The pinned centre takes what lies on it; the others are found without that."""
    rest = points != pin
    points, mass = points[rest], mass[rest]
    if len(points) < clusters:
        return np.union1d(points, [pin])
    centres = _start(points, mass, clusters - 1)
    return _lloyd(points, mass, np.union1d(centres, [pin]), pin)


def _start(points: Array64, mass: Array64, clusters: int) -> Array64:
    """Centres to improve; the best for the cells that they are found on."""
    cells = _COARSE if clusters <= _EXACT else clusters
    if len(points) > cells:
        points, mass = _merged(points, mass, cells)
    if clusters > _EXACT:
        return points
    ends = _intervals(points, mass, clusters)
    return _means(_sums(mass), _sums(mass * points), ends)


def _merged(points: Array64, mass: Array64, cells: int) -> tuple[Array64, Array64]:
    """Neighbours put together, so that entries would lie as dense as cells do.

    The best density of a fine quantizer is the cube root of that of the points (Panter and Dite,
    1951).
    """
    spacing = np.gradient(points)
    along = np.cumsum(np.cbrt(mass * spacing**2))
    cuts = np.searchsorted(along, np.linspace(0, along[-1], cells + 1)[1:-1])
    first = np.unique(np.concatenate([[0], cuts]))
    weight = np.add.reduceat(mass, first)
    return np.add.reduceat(mass * points, first) / weight, weight


def _sums(values: Array64) -> Array64:
    """Sums of the first 0, 1, .. values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _means(mass: Array64, moment: Array64, ends: Indices) -> Array64:
    """The mean of each interval that is not empty, from running sums."""
    weight, total = np.diff(mass[ends]), np.diff(moment[ends])
    return np.asarray(total[weight > 0] / weight[weight > 0])


def _lloyd(points: Array64, mass: Array64, centres: Array64, pin: float | None) -> Array64:
    """Improve centres until no point changes sides. Each round takes a search per centre."""
    weight, moment = _sums(mass), _sums(mass * points)
    before = np.zeros(0, np.int64)
    for _ in range(_ROUNDS):
        middles = (centres[1:] + centres[:-1]) / 2
        ends = np.concatenate([[0], np.searchsorted(points, middles), [len(points)]])
        if np.array_equal(ends, before):
            break
        before = ends
        share, total = np.diff(weight[ends]), np.diff(moment[ends])
        moved = np.where(share > 0, total / np.where(share > 0, share, 1), centres)
        if pin is not None:
            moved[centres == pin] = pin
        centres = np.sort(moved)
    return centres


def _intervals(points: Array64, mass: Array64, clusters: int) -> Indices:
    """Ends of the intervals of points with the least squared distance to their means.

    ``best[j]`` is the least cost of the first j points in the clusters so far; the place of the
    last end grows with j, so half of all j narrow the search for the other half.
    """
    centred = points - (points @ mass) / mass.sum()
    weight, moment, power = _sums(mass), _sums(mass * centred), _sums(mass * centred**2)

    def cost(start: Indices, end: Indices) -> Array64:
        share, total = weight[end] - weight[start], moment[end] - moment[start]
        spread = total**2 / np.where(share > 0, share, 1)
        return np.maximum(power[end] - power[start] - spread, 0)

    count = len(points)
    everything = np.arange(count + 1)
    best = cost(np.zeros(count + 1, np.int64), everything)
    places = []
    for _ in range(clusters - 1):
        place = np.zeros(count + 1, np.int64)
        least = best.copy()
        stride = 1 << int(count).bit_length()
        while stride := stride // 2:
            ends = np.arange(stride, count + 1, 2 * stride)
            low, after = place[ends - stride], ends + stride
            high = np.where(after <= count, place[np.minimum(after, count)], ends)
            high = np.maximum(np.minimum(high, ends), low)  # rounding may cross them
            length = high - low + 1
            first = np.cumsum(length) - length
            owner = np.repeat(np.arange(len(ends)), length)
            start = np.arange(len(owner)) - (first - low)[owner]
            value = best[start] + cost(start, ends[owner])
            minimum = np.minimum.reduceat(value, first)
            hits = np.flatnonzero(value == minimum[owner])
            hits = hits[np.unique(owner[hits], return_index=True)[1]]
            place[ends], least[ends] = start[hits], minimum
        places.append(place)
        best = least
    found = [count]
    for place in reversed(places):
        found.append(int(place[found[-1]]))
    return np.array([0, *reversed(found)], np.int64)


def kmeans_vectors(
    vectors: npt.NDArray[np.float32],
    clusters: int,
    rng: np.random.Generator,
    importance: npt.NDArray[np.floating] | None = None,
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Clusters of vectors: k-means++ seeds (Arthur and Vassilvitskii, 2007), then Lloyd.

    Fitted to a sample of 16,384 vectors; at last every centre becomes the mean of all its vectors.

    Args:
        vectors: [count, width].
        clusters: At most so many.
        rng: Draws the sample and the seeds.
        importance: The mass of each vector.

    Returns:
        The cluster of each vector, and the centres, [clusters, width].
    """
    mass = np.ones(len(vectors)) if importance is None or not importance.any() else importance
    mass = mass.astype(np.float64)
    chosen = slice(None)
    if len(vectors) > _SAMPLE:
        chosen = np.sort(rng.choice(len(vectors), _SAMPLE, replace=False))  # type: ignore[assignment]
    sample, weight = vectors[chosen], mass[chosen]
    centres = _seeds(sample, weight, clusters, rng)
    for _ in range(_VECTOR_ROUNDS):
        moved = _moved(sample, weight, closest(sample, centres), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    centres = _moved(vectors, mass, closest(vectors, centres), centres)
    return closest(vectors, centres), centres


def _seeds(
    vectors: npt.NDArray[np.float32], mass: Array64, clusters: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Vectors drawn one after the other, each by its distance to those drawn before."""
    found = [vectors[rng.choice(len(vectors), p=mass / mass.sum())]]
    distance = np.full(len(vectors), np.inf)
    while len(found) < clusters:
        distance = np.minimum(distance, np.square(vectors - found[-1], dtype=np.float64).sum(1))
        chance = distance * mass
        if not chance.any():  # every vector is a seed
            break
        found.append(vectors[rng.choice(len(vectors), p=chance / chance.sum())])
    return np.stack(found)


def closest(vectors: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> Indices:
    """The nearest centre of each vector."""
    size = np.square(centres).sum(1) / 2
    step = max(1, _CHUNK // len(centres))
    found = np.empty(len(vectors), np.int64)
    for at in range(0, len(vectors), step):
        found[at : at + step] = (size - vectors[at : at + step] @ centres.T).argmin(1)
    return found


def _moved(
    vectors: npt.NDArray[np.float32],
    mass: Array64,
    cluster: Indices,
    centres: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Each centre at the mean of its vectors; one without any stays."""
    weight = np.bincount(cluster, mass, len(centres))
    sums = [np.bincount(cluster, mass * column, len(centres)) for column in vectors.T]
    means = np.stack(sums, 1) / np.where(weight > 0, weight, 1)[:, None]
    return np.where(weight[:, None] > 0, means, centres).astype(np.float32)
