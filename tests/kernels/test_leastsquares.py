"""Least squares from sums alone, against numpy's lstsq on the samples themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import leastsquares
from onnxshrink.kernels.leastsquares import Affine, Linear, Seen, judge, reduced_rank, solve

ELIMINATION, ITERATION = 1e9, 0.0


def samples(seed: int, rows: int, width: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs that are not centred, and outputs that are nearly linear in them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) + 1
    y = x @ rng.standard_normal((width, outputs)) + rng.standard_normal((rows, outputs)) + 3
    return x, y


def sums(x: np.ndarray, y: np.ndarray) -> Seen:
    """In one group."""
    full = np.column_stack([x, np.ones(len(x))])
    return Seen((full.T @ full)[None], (y.T @ full)[None], (y**2).sum(0)[None])


def layer(matrix: np.ndarray, shift: np.ndarray | None = None) -> Affine:
    return Affine(matrix[None], np.zeros((1, len(matrix))) if shift is None else shift[None])


def plain(matrix: np.ndarray) -> Linear:
    """Every element is a number of its own."""
    return Linear(np.ones((1, *matrix.shape)), np.arange(matrix.size).reshape(1, *matrix.shape))


def ridge(
    x: np.ndarray,
    y: np.ndarray,
    columns: np.ndarray,
    start: np.ndarray,
    damping: float,
    shift: bool,
) -> np.ndarray:
    """What ``solve`` minimises for one output, as one system of rows for lstsq.

    The matrix row is ``columns @ n``: columns [width, numbers].
    """
    centred = x - x.mean(0) if shift else x
    mean = (centred**2).mean(0).mean()
    design = centred @ columns
    wanted = y - y.mean() if shift else y
    pull = np.sqrt(damping * mean * len(x)) * columns
    system = np.concatenate([design, pull])
    return np.linalg.lstsq(system, np.concatenate([wanted, pull @ start]), rcond=None)[0]


@pytest.fixture(params=[ELIMINATION, ITERATION], ids=["elimination", "iteration"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leastsquares, "_EXPECTED", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("damping", [1e-4, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_kept_weights_equal_lstsq(shift: bool, damping: float, share: float) -> None:
    x, y = samples(1, 200, 12, 5)
    rng = np.random.default_rng(2)
    start = rng.standard_normal((5, 12)) * (rng.random((5, 12)) >= share)
    numbers, made = solve(
        plain(start), start.ravel(), layer(start), sums(x, y), damping, shift=shift, tolerance=1e-12
    )
    for row in range(5):
        kept = start[row] != 0
        wanted = ridge(x, y[:, row], np.eye(12)[:, kept], start[row, kept], damping, shift)
        found = numbers.reshape(5, 12)[row]
        np.testing.assert_allclose(found[kept], wanted, rtol=1e-6, atol=1e-8)
        assert not found[~kept].any()
    np.testing.assert_allclose(made.matrix[0], numbers.reshape(5, 12))
    if shift:
        np.testing.assert_allclose(made.shift[0], (y - x @ made.matrix[0].T).mean(0), atol=1e-9)
    else:
        assert not made.shift.any()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_scales_of_codes_equal_lstsq(shift: bool, blocks: int) -> None:
    x, y = samples(3, 150, 12, 4)
    codes = np.random.default_rng(4).integers(-8, 8, (4, 12)).astype(float)
    start = np.full((4, blocks), 0.25)
    index = np.arange(4 * blocks).reshape(4, blocks).repeat(12 // blocks, axis=1)
    linear = Linear(codes[None], index[None])
    held = layer(linear.expand(start.ravel())[0])
    numbers, _ = solve(linear, start.ravel(), held, sums(x, y), 0.01, shift=shift, tolerance=1e-12)
    for row in range(4):
        columns = np.zeros((12, blocks))
        columns[np.arange(12), index[row] - row * blocks] = codes[row]
        wanted = ridge(x, y[:, row], columns, start[row], 0.01, shift)
        np.testing.assert_allclose(numbers.reshape(4, blocks)[row], wanted, rtol=1e-7)


def test_a_table_that_all_outputs_share_equals_lstsq() -> None:
    x, y = samples(5, 150, 10, 4)
    rng = np.random.default_rng(6)
    start, codes = np.array([-1.0, 0.0, 0.5, 2.0, 9.0]), rng.integers(0, 4, (4, 10))
    scale = rng.uniform(0.5, 2, (4, 1)) * np.ones((4, 10))
    linear = Linear(scale[None], codes[None])
    held = layer(linear.expand(start)[0], np.full(4, 0.5))
    numbers, _ = solve(linear, start, held, sums(x, y), 0.01, shift=False, tolerance=1e-13)
    mean = (x**2).mean(0).mean()
    design, pull, wanted = [], [], []
    for row in range(4):
        columns = np.zeros((10, 5))
        columns[np.arange(10), codes[row]] = scale[row]
        design.append(x @ columns)
        pull.append(np.sqrt(0.01 * mean * len(x)) * columns)
        wanted.append(y[:, row] - 0.5)
    free = [0, 2, 3]  # an entry of zero stays so, and nothing has the last one
    system = np.concatenate([*design, *pull])[:, free]
    target = np.concatenate([*wanted, *(p @ start for p in pull)])
    np.testing.assert_allclose(
        numbers[free], np.linalg.lstsq(system, target, rcond=None)[0], rtol=1e-6
    )
    assert numbers[1] == 0
    assert numbers[4] == 9


@pytest.mark.usefixtures("way")
def test_groups_are_apart() -> None:
    parts = [samples(seed, 100, 6, 3) for seed in (7, 8)]
    both = [sums(*part) for part in parts]
    seen = Seen(*(np.concatenate([getattr(s, n) for s in both]) for n in ("xx", "xy", "yy")))
    start = np.random.default_rng(9).standard_normal((2, 3, 6))
    start[0, 0, 2] = start[1, 1, 3] = 0
    linear = Linear(np.ones(start.shape), np.arange(start.size).reshape(start.shape))
    held = Affine(start, np.zeros((2, 3)))
    numbers, made = solve(linear, start.ravel(), held, seen, 0.05, shift=True, tolerance=1e-12)
    for group in range(2):
        alone, one = solve(
            plain(start[group]), start[group].ravel(), layer(start[group]), both[group], 0.05,
            shift=True, tolerance=1e-12,
        )  # fmt: skip
        np.testing.assert_allclose(numbers.reshape(2, -1)[group], alone, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(made.shift[group], one.shift[0], rtol=1e-6)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 40))
def test_the_loss_is_that_of_the_samples(seed: int, rows: int) -> None:
    x, y = samples(seed, rows, 5, 3)
    rng = np.random.default_rng(seed)
    one = layer(rng.standard_normal((3, 5)), rng.standard_normal(3))
    exact = ((x @ one.matrix[0].T + one.shift[0] - y) ** 2).sum()
    assert one.loss(sums(x, y)) == pytest.approx(exact, rel=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 30), shift=st.booleans())
def test_it_never_fits_worse_even_of_deficient_rank(seed: int, rows: int, shift: bool) -> None:
    x, y = samples(seed, rows, 12, 3)
    x[:, 5] = x[:, 4]  # the same input twice
    x[:, 7] = 0  # and a dead one
    start = np.random.default_rng(seed).standard_normal((3, 12))
    start[:, 0] = 0
    seen, held = sums(x, y), layer(start)
    numbers, made = solve(plain(start), start.ravel(), held, seen, 1e-3, shift=shift)
    assert np.isfinite(numbers).all()
    assert made.loss(seen) <= held.loss(seen) * (1 + 1e-9)
    found = numbers.reshape(3, 12)
    if not shift:
        np.testing.assert_allclose(found[:, 7], start[:, 7])  # nothing is known of it
    assert not found[:, 0].any()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_inputs_whose_mean_is_far_beyond_their_spread(share: float) -> None:
    """In single precision their covariance is not positive definite."""
    rng = np.random.default_rng(12)
    x = (1000 + 0.01 * rng.standard_normal((300, 24))).astype(np.float32)
    full = np.concatenate([x, np.ones((300, 1), np.float32)], 1)
    y = rng.standard_normal((300, 4)).astype(np.float32)
    xx, xy = (full.T @ full).astype(np.float64), (y.T @ full).astype(np.float64)
    seen = Seen(xx[None], xy[None], (y**2).sum(0, dtype=np.float64)[None])
    spread = xx[:-1, :-1] / 300 - np.outer(xx[:-1, -1], xx[:-1, -1]) / 300**2
    assert np.linalg.eigvalsh(spread).min() < 0
    held = Affine(rng.standard_normal((1, 4, 24)), np.zeros((1, 4)))
    numbers = held.matrix.reshape(-1) * (rng.random(96) < share)
    linear = Linear(np.ones((1, 4, 24)), np.arange(96).reshape(1, 4, 24))
    held = Affine(linear.expand(numbers), held.shift)
    found, made = solve(linear, numbers, held, seen, 1e-3, shift=True)
    assert np.isfinite(found).all()
    assert made.loss(seen) <= held.loss(seen)


def test_inputs_that_are_all_dead_change_nothing() -> None:
    start = np.ones((2, 4))
    seen = sums(np.zeros((9, 4)), np.ones((9, 2)))
    numbers, made = solve(plain(start), start.ravel(), layer(start), seen, 0.01, shift=True)
    assert (numbers == 1).all()
    np.testing.assert_allclose(made.shift, 1)


@pytest.mark.parametrize("shift", [False, True])
def test_the_factors_are_the_best_of_their_rank(shift: bool) -> None:
    x, y = samples(11, 300, 10, 8)
    seen, held = sums(x, y), layer(np.zeros((8, 10)))
    left, right, made = reduced_rank(held, 3, seen, 1e-9, shift=shift)
    np.testing.assert_allclose((left @ right), made.matrix[0])
    assert (left.shape, right.shape) == ((8, 3), (3, 10))
    # Izenman: the fitted values of full least squares, projected to their main directions.
    a, b = (x - x.mean(0), y - y.mean(0)) if shift else (x, y)
    fitted = a @ np.linalg.lstsq(a, b, rcond=None)[0]
    _, _, main = np.linalg.svd(fitted, full_matrices=False)
    best = fitted @ main[:3].T @ main[:3]
    assert made.loss(seen) == pytest.approx(((best - b) ** 2).sum(), rel=1e-5)


def test_factors_of_full_rank_are_plain_least_squares() -> None:
    x, y = samples(12, 300, 6, 6)
    seen = sums(x, y)
    start = np.random.default_rng(1).standard_normal((6, 6))
    _, _, made = reduced_rank(layer(start), 6, seen, 0.05, shift=True)
    _, plainly = solve(plain(start), start.ravel(), layer(start), seen, 0.05, shift=True)
    np.testing.assert_allclose(made.matrix, plainly.matrix, rtol=1e-8)


def test_few_samples_are_not_believed() -> None:
    """With fewer rows than inputs and outputs of noise, no fit is better on the other half."""
    rng = np.random.default_rng(13)
    start = rng.standard_normal((4, 30))
    halves = []
    for _ in range(2):
        x = rng.standard_normal((12, 30))
        halves.append(sums(x, x @ start.T + rng.standard_normal((12, 4))))
    held = layer(start)

    def fit(seen: Seen, damping: float) -> Affine:
        return solve(plain(start), start.ravel(), held, seen, damping, shift=False)[1]

    verdict = judge(held, (halves[0], halves[1]), fit)
    assert verdict.after > verdict.before
    assert verdict.damping == max(leastsquares.DAMPINGS)


def test_many_samples_are() -> None:
    x, y = samples(14, 400, 8, 3)
    start = np.zeros((3, 8)) + 0.1
    held = layer(start)
    halves = sums(x[::2], y[::2]), sums(x[1::2], y[1::2])

    def fit(seen: Seen, damping: float) -> Affine:
        return solve(plain(start), start.ravel(), held, seen, damping, shift=True)[1]

    verdict = judge(held, halves, fit)
    crossed = fit(halves[0], verdict.damping).loss(halves[1]) + fit(
        halves[1], verdict.damping
    ).loss(halves[0])
    assert verdict.after == pytest.approx(crossed / (y**2).sum())
    assert verdict.before == pytest.approx(held.loss(halves[0] + halves[1]) / (y**2).sum())
    assert verdict.after < 0.1 * verdict.before
