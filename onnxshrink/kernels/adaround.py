"""Rounding up or down as an optimisation: what the outputs lose, relaxed and then made hard.

AdaRound (Nagel et al., 2004.10568). Every weight lies between two codes; ``h`` in [0, 1] says how
far up it goes. The layer's squared output error ``tr(E H E^T)``, with H the second moment of its
inputs, is quadratic in ``h``, so its gradient is one product and no activations are needed; a
regulariser that grows sharper drives every ``h`` to 0 or 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_STRETCH = 1.1, -0.1  # of the sigmoid, so that it reaches 0 and 1 (zeta and gamma of the paper)
_RATE = 0.1
_WEIGHT = 10.0  # of the regulariser; the unit is the error of one weight rounded to nearest
_SHARPNESS = 20.0, 2.0  # its exponent, at first and at last
_WARM_UP = 0.2  # share of the steps without it
_LEAST = 1e-7  # of the mean error of a row: what a turned rounding must gain
_MOMENTS = 0.9, 0.999  # of Adam (1412.6980)


def quantize(
    weights: npt.NDArray[np.floating],
    moment: npt.NDArray[np.floating],
    scale: npt.NDArray[np.floating],
    zero: npt.NDArray[np.floating],
    lowest: int,
    highest: int,
    *,
    iterations: int = 300,
) -> Floats:
    """Codes of a matrix, each rounded up or down so that together they disturb the outputs least.

    Args:
        weights: [rows, width].
        moment: H, [width, width], positive semidefinite; damp it where few inputs were seen.
        scale: [rows, width], every column its own.
        zero: Zero points in the same shape.
        lowest: Smallest code.
        highest: Largest code.
        iterations: Steps of the optimiser; each costs one product of the weights with H.

    Returns:
        Codes in the shape of the weights. A row whose error ends above that of rounding to nearest
        is rounded to nearest instead.
    """
    exact = np.asarray(weights, np.float32) / scale + zero
    nearest: Floats = np.clip(np.rint(exact), lowest, highest).astype(np.float32)
    h = np.array(moment, np.float32)
    scale = np.asarray(scale, np.float32)
    target = np.clip(exact, lowest, highest).astype(np.float32)  # what is clipped is lost anyway
    below = np.minimum(np.floor(target), np.float32(highest - 1))
    clipped = (exact - target) * scale

    def error(codes: Floats) -> npt.NDArray[np.float64]:
        off = (exact - codes) * scale
        return np.asarray(np.einsum("ij,ij->i", off @ h, off, dtype=np.float64))

    # In units of what rounding to nearest loses, so that one rate and one weight suit all layers.
    plain = error(nearest)
    unit = float(plain.mean()) / weights.shape[1]
    if unit <= 0:
        return nearest
    high, low = _STRETCH
    start = np.clip(target - below, 0.01, 0.99)
    relaxed = (start - low) / (high - low)
    v = np.log(relaxed / (1 - relaxed)).astype(np.float32)
    mean, square = np.zeros_like(v), np.zeros_like(v)
    first = int(_WARM_UP * iterations)
    for step in range(iterations):
        sigmoid = 1 / (1 + np.exp(-v))
        up = np.clip(sigmoid * (high - low) + low, 0, 1)
        off = (target - below - up) * scale + clipped
        gradient = (off @ h) * scale * np.float32(-2 / unit)
        if step >= first:
            share = (step - first) / max(iterations - first, 1)
            sharp = _SHARPNESS[1] + (_SHARPNESS[0] - _SHARPNESS[1]) * (1 - share)
            centred = 2 * up - 1
            gradient -= (2 * _WEIGHT * sharp * np.sign(centred)
                         * np.abs(centred) ** (sharp - 1)).astype(np.float32)  # fmt: skip
        gradient *= sigmoid * (1 - sigmoid) * (high - low)
        mean += (1 - _MOMENTS[0]) * (gradient - mean)
        square += (1 - _MOMENTS[1]) * (np.square(gradient) - square)
        unbiased = np.sqrt(square / (1 - _MOMENTS[1] ** (step + 1))) + 1e-8
        v -= np.float32(_RATE) * (mean / (1 - _MOMENTS[0] ** (step + 1))) / unbiased
    rounded: Floats = (below + (v >= 0)).astype(np.float32)
    _descend(rounded, exact, below, scale, h / np.float32(plain.mean()))
    worse = error(rounded) > plain
    rounded[worse] = nearest[worse]
    return rounded


def _descend(codes: Floats, exact: Floats, below: Floats, scale: Floats, h: Floats) -> None:
    """Turn roundings, in every row the one that gains most, until none gains any more.

    Args:
        codes: Changed in place.
        exact: What they stand for, not rounded.
        below: The lower of the two codes of each weight.
        scale: Steps.
        h: The second moment.
    """
    off = (exact - codes) * scale
    pull = 2 * off @ h
    turn = (2 * (codes - below) - 1) * scale  # what turning would add to the error
    curve = h.diagonal()
    rows = np.arange(len(codes))
    for _ in range(codes.shape[1]):
        gain = turn[rows] * (pull[rows] + turn[rows] * curve)
        best = gain.argmin(1)
        least = gain[np.arange(len(rows)), best]
        rows, best = rows[least < -_LEAST], best[least < -_LEAST]
        if not rows.size:
            return
        change = turn[rows, best]
        codes[rows, best] -= np.sign(change)
        turn[rows, best] = -change
        pull[rows] += 2 * change[:, None] * h[best]
