"""Steps, codes and their bytes."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from onnxshrink import sidecar
from onnxshrink.kernels import obs, rate
from onnxshrink.kernels.moments import damped


def layer(name: str, sensitivity: float, *shape: int, seed: int = 0) -> rate.GridTensor:
    weights = np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)
    return rate.GridTensor(name, weights, None, sensitivity)


def test_every_weight_spends_the_same() -> None:
    layers = [layer("a", 2.0, 30, 10), layer("b", 500.0, 5, 20)]
    steps = rate.steps(layers, 0.1)
    spent = [found.sensitivity * steps[found.name] ** 2 / found.size for found in layers]
    assert spent == pytest.approx([0.1 / 400] * 2)
    finer = rate.steps(layers, 0.025)
    assert finer["a"] == pytest.approx(steps["a"] / 2)


def test_steps_are_optimal_among_their_neighbours() -> None:
    """No other split of the same bits (log2 of the steps) has less predicted distortion."""
    layers = [layer("a", 2.0, 30, 10), layer("b", 500.0, 5, 20), layer("c", 9.0, 7, 7)]
    steps = rate.steps(layers, 0.05)

    def distortion(factors: tuple[float, ...]) -> float:
        return sum(
            one.sensitivity * (steps[one.name] * f) ** 2
            for one, f in zip(layers, factors, strict=True)
        )

    best = distortion((1, 1, 1))
    for a, b in itertools.product(np.linspace(-0.5, 0.5, 11), repeat=2):
        c = -(a * layers[0].size + b * layers[1].size) / layers[2].size  # the same bits in all
        assert distortion((2.0**a, 2.0**b, 2.0**c)) >= best * (1 - 1e-12)


def test_a_layer_that_never_mattered_may_yet_matter() -> None:
    """It is taken to matter as the median layer does, once in so many inputs and two more."""
    layers = [layer("a", 4.0, 8, 8), layer("b", 0.0, 8, 8), layer("c", 6.0, 8, 8)]
    power = float(np.square(layers[0].weights, dtype=np.float64).mean())
    told = {each.name: each.sensitivity for each in rate.doubted(layers, 6)}
    assert told == {"a": 4.0, "b": pytest.approx(4.0 / 8), "c": 6.0}
    sure = {each.name: each.sensitivity for each in rate.doubted(layers, 10**9)}
    assert sure["b"] == pytest.approx(4.0 / 10**9, rel=1e-6)
    small = rate.GridTensor("d", layers[1].weights / 2, None, 0.0)
    assert rate.doubted([layers[0], layers[0], small], 6)[2].sensitivity * power / 4 == (
        pytest.approx(4.0 * power / 8)
    )
    nothing = rate.GridTensor("e", np.zeros((1, 4, 4), np.float32), None, 0.0)
    assert rate.doubted([nothing], 3)[0].sensitivity == 0.0


def test_steps_have_limits() -> None:
    nothing, everything = layer("a", 1e-30, 8, 8), layer("b", 1e30, 8, 8)
    steps = rate.steps([nothing, everything], 0.01)
    assert steps["a"] == pytest.approx(6 * nothing.weights.std(), rel=0.1)
    probed = rate.steps([nothing, everything], 0.01, 3.0)
    assert probed == pytest.approx({"a": steps["a"] / 2, "b": steps["b"]})
    assert np.abs(everything.codes(steps["b"])).max() <= 32767
    zeros = rate.GridTensor("z", np.zeros((1, 4, 4), np.float32), None, 0.0)
    assert not zeros.codes(rate.steps([zeros], 0.1)["z"]).any()


def test_codes_are_multiples_with_and_without_feedback() -> None:
    plain = layer("a", 1.0, 6, 12)
    np.testing.assert_array_equal(plain.codes(0.25), np.rint(plain.weights * 4))
    x = np.random.default_rng(1).standard_normal((50, 12))
    known = obs.factor(x.T @ x)
    fed = rate.GridTensor("a", plain.weights, (known,), 1.0)
    expected = obs.quantize(plain.weights[0], known, obs.uniform(0.25))
    np.testing.assert_allclose(fed.codes(0.25)[0] * 0.25, expected, atol=1e-7)


def inputs_of(width: int, *, count: int = 400, seed: int = 3) -> np.ndarray:
    """Correlated inputs, [count, width], as those of real layers are."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((width // 4, width)) + 0.3 * rng.standard_normal((1, width))
    return rng.standard_normal((count, width // 4)) @ mixed + 0.1 * rng.standard_normal(width)


@pytest.mark.parametrize("deviations", [0.5, 2.0, 4.0])
def test_coarse_codes_neither_shrink_nor_grow_what_outputs_see(deviations: float) -> None:
    """<W, gQ> is <W, W> in the inner product of H, with one gain over groups of their own H."""
    weights = np.random.default_rng(0).laplace(size=(2, 24, 32)).astype(np.float32)
    moments = [x.T @ x / len(x) for x in (inputs_of(32), inputs_of(32, seed=4))]
    factors = tuple(obs.factor(h, 0.01) for h in moments)
    coarse = rate.GridTensor("w", weights, factors, 1.0)
    step = deviations * float(weights.std())
    codes = coarse.codes(step)
    assert len(set(codes.flat)) > 2
    values = coarse.values(codes, step)
    gains = values[codes != 0] / (codes[codes != 0] * np.float32(step))
    assert np.ptp(gains) < 1e-6  # one gain for the whole tensor: free in bytes
    total, kept = 0.0, 0.0
    for w, q, h in zip(weights.astype(np.float64), values, moments, strict=True):
        known = damped(h, 0.01)
        total, kept = total + np.vdot(w @ known, w), kept + np.vdot(w @ known, q)
    assert kept == pytest.approx(total, rel=2e-5)


@pytest.mark.parametrize("knows", [False, True])
def test_a_gain_takes_what_the_grid_missed_out_of_the_outputs(knows: bool) -> None:
    """Weights between 1.1 and 1.45 steps nearly all become one step: a tenth and more too small."""
    rng = np.random.default_rng(5)
    step, x = 0.2, rng.standard_normal((500, 48))
    weights = rng.uniform(1.1, 1.45, (1, 24, 48)) * step * rng.choice([-1, 1], (1, 24, 48))
    known = (obs.factor(x.T @ x / len(x), 0.8),) if knows else None
    coarse = rate.GridTensor("w", weights.astype(np.float32), known, 1.0)
    codes = coarse.codes(step)
    plain = np.linalg.norm(x @ (codes[0] * step - weights[0]).T)
    gained = np.linalg.norm(x @ (coarse.values(codes, step)[0] - weights[0]).T)
    assert gained < (0.9 if knows else 0.5) * plain


def test_without_a_second_moment_a_gain_must_bring_values_closer() -> None:
    for deviations in (0.3, 1.0, 2.0, 3.0):
        for seed in range(4):
            table = layer("t", 1.0, 40, 16, seed=seed)
            step = deviations * float(table.weights.std())
            codes = table.codes(step)
            plain = np.square(codes * np.float32(step) - table.weights).sum()
            assert np.square(table.values(codes, step) - table.weights).sum() <= plain * (1 + 1e-6)


def test_a_step_is_left_where_next_to_nothing_is_left_of_the_weights() -> None:
    few = layer("a", 1.0, 40, 40)
    coarsest = 6 * float(few.weights.std())
    codes = few.codes(coarsest)
    assert 0 < np.count_nonzero(codes) < 20  # what blows these up to all of W is worse than zero
    known = (obs.factor(np.eye(40), 0.01),)
    assert rate.GridTensor("a", few.weights, known, 1.0).unbiased(codes, coarsest) == coarsest
    assert few.unbiased(np.zeros_like(codes), coarsest) == coarsest


@pytest.mark.parametrize("step", [0.02, 0.3, 1.0, 2.5])
def test_bytes_are_those_of_the_sidecar(step: float, tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((300, 700))
    codes = rate.stored(np.rint(values / step).astype(np.int32))
    assert codes.dtype == (np.int16 if step == 0.02 else np.int8)
    name = codes.dtype.name.upper()
    with sidecar.Writer(tmp_path / "a.pack", data_name="a.data") as writer:
        entry = writer.add("w", name, codes.shape, codes.tobytes())
        writer.finish()
    ideal = rate.entropy_bits(codes) / 8
    assert 0.97 * ideal < rate.packed_bytes(codes) < 1.1 * ideal
    if codes.itemsize == 1:
        assert rate.packed_bytes(codes) == entry.packed
    else:  # large codes are kept apart, which packs better than this
        assert rate.packed_bytes(codes) < 0.95 * entry.packed


def test_entropy_of_known_counts() -> None:
    codes = np.repeat([-1, 0, 1, 2], [1, 4, 2, 1]).astype(np.int32)
    expected = 1 * 3 + 4 * 1 + 2 * 2 + 1 * 3
    assert rate.entropy_bits(codes) == pytest.approx(expected + 8 * 4)
    assert rate.entropy_bits(np.zeros(0, np.int32)) == 0


def test_codes_beyond_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 16 bits"):
        rate.stored(np.array([40000], np.int32))


@pytest.mark.parametrize("limit", [1e-6, 0.019, 0.02, 3.0, 1e5])
@pytest.mark.parametrize("power", [0.2, 1.0, 3.0])
def test_largest_finds_the_limit(limit: float, power: float) -> None:
    tried = []

    def cost(value: float) -> float:
        tried.append(value)
        return (value / limit) ** power

    found = rate.largest(cost, 0.02)
    assert limit / 1.05 <= found <= limit * (1 + 1e-9)
    assert len(tried) <= 5 + abs(np.log(limit / 0.02)) / np.log(4)
    assert rate.largest(lambda value: 2.0, 1.0) == 0


def test_largest_stands_costs_that_are_no_power() -> None:
    for limit in (0.03, 0.7):
        found = rate.largest(lambda value, limit=limit: 0.0 if value <= limit else 50.0, 0.02)
        assert limit / 1.05 <= found <= limit


@pytest.mark.parametrize("spread", [4, 8])
def test_rare_large_codes_are_taken_out_and_put_back(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    codes = np.rint(spread * rng.standard_normal((200, 600))).astype(np.int16)
    rare = rng.choice(codes.size, 5, replace=False)
    codes.flat[rare] = rng.integers(128, 30000, 5) * rng.choice([-1, 1], 5)
    apart = rate.escaped(codes)
    assert apart is not None
    back = apart.codes.reshape(-1).astype(np.int16)
    back[apart.places] = apart.large
    np.testing.assert_array_equal(back.reshape(codes.shape), codes)
    np.testing.assert_array_equal(apart.places, np.sort(rare))
    ideal = rate.entropy_bits(codes) / 8
    assert rate.packed_bytes(codes) < 1.05 * ideal + 1000
    assert rate.packed_bytes(codes) < rate.packed_bytes(apart.codes) + 500


def test_many_large_codes_stay_together() -> None:
    codes = np.random.default_rng(0).integers(-3000, 3000, (50, 50)).astype(np.int16)
    assert rate.escaped(codes) is None


def test_rows_have_steps_by_how_often_they_are_looked_up() -> None:
    lookups = np.array([81 * 16, 81, 81, 81, 16, 16, 1, 1])
    found = rate.relative_steps(lookups)
    assert found is not None
    np.testing.assert_array_equal(2 * np.log2(found), np.rint(2 * np.log2(found)))
    assert found[0] < found[1] == found[2] == found[3] < found[4] == found[5] < found[6]
    assert rate.relative_steps(np.zeros(5, np.int64)) is None
    assert rate.relative_steps(np.full(5, 100)) is None


def test_rows_never_looked_up_follow_the_law_of_the_others() -> None:
    """A vocabulary sorted by frequency: late rows are coarser, though none of them was seen."""
    rng = np.random.default_rng(0)
    share = 1 / (np.arange(5000) + 10.0)
    lookups = rng.multinomial(2000, share / share.sum())
    found = rate.relative_steps(lookups)
    assert found is not None
    unseen = np.flatnonzero(lookups == 0)
    assert found[unseen[0]] * 2 <= found[unseen[-1]]
    assert (np.diff(found[unseen]) >= 0).all()
    flat = rate.relative_steps(rng.multinomial(2000, np.full(5000, 1 / 5000)))
    assert flat is not None
    assert len(set(flat[lookups == 0])) <= 4


def test_values_of_rows_are_within_half_of_their_steps() -> None:
    relative = np.exp2(np.arange(-3, 3) / 2).astype(np.float32)
    table = rate.GridTensor("t", layer("t", 1.0, 6, 50).weights, None, 1.0, relative)
    scales = table.scales(0.123)
    np.testing.assert_array_equal(scales, scales.astype(np.float16))
    np.testing.assert_allclose(scales[0, :, 0], 0.123 * relative, rtol=2**-10)
    error = table.values(table.codes(0.123), 0.123) - table.weights
    assert (np.abs(error) <= scales / 2 * (1 + 1e-5)).all()
