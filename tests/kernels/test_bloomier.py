"""Bloomier filters: every member comes back, others as seldom as slots are wide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import bloomier


@settings(max_examples=60)
@given(
    count=st.integers(1, 3000),
    share=st.floats(0.001, 1),
    base=st.sampled_from([4, 16, 256, 65536]),
    seed=st.integers(0, 2**31),
)
def test_every_member_comes_back(count: int, share: float, base: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(count, max(1, int(share * count)), replace=False))
    codes = rng.integers(0, base, len(positions))
    found = bloomier.build(positions, codes, base, seed)
    np.testing.assert_array_equal(found.decode(count)[positions], codes)
    assert len(found.slots) == bloomier.slot_count(len(positions)) == 3 * found.hash.width
    assert found.slots.max() < base
    assert found.slots.dtype == (np.uint16 if base > 256 else np.uint8)
    again = bloomier.build(positions, codes, base, seed)
    np.testing.assert_array_equal(again.slots, found.slots)
    assert (again.hash, again.seed) == (found.hash, found.seed)


def test_nothing_to_hold() -> None:
    none = np.zeros(0, np.int64)
    assert len(bloomier.build(none, none, 16, 3).decode(10)) == 10
    assert len(bloomier.build(none, none, 16, 3).decode(0)) == 0


@pytest.mark.parametrize("base", [16, 256, 65536])
@pytest.mark.parametrize(
    "members",
    [
        np.random.default_rng(5).choice(400_000, 20_000, replace=False),
        np.arange(20_000),
        np.arange(0, 400_000, 20),
        (np.arange(300)[:, None] * 1024 + np.arange(64)).ravel(),
    ],
    ids=["scattered", "one run", "every 20th", "columns"],
)
def test_codes_of_others_are_spread_evenly(base: int, members: np.ndarray) -> None:
    """Also where members follow a pattern, which a weaker hash would repeat."""
    entries = 15
    found = bloomier.build(members, members % entries, base, 1).decode(400_000)
    others = np.delete(found, members)
    expected = entries / base
    deviation = np.sqrt(expected * (1 - expected) / len(others))
    assert abs((others < entries).mean() - expected) < 4 * deviation
    # 1.23 slots for each and no more.
    assert bloomier.slot_count(20_000) == 24_633


def test_positions_are_hashed_in_exact_whole_numbers() -> None:
    prime = bloomier.PRIME
    hashed = bloomier.Hash(prime - 1, prime - 1, (prime - 1, prime - 2, 1), 12_345)
    positions = [0, 1, 2, 10**6, prime - 2]
    slots = hashed.slots(np.array(positions, np.int64))
    for at, position in enumerate(positions):
        spread = (position * hashed.factor + hashed.offset) % prime
        exact = [
            spread * (spread + shift) % prime % hashed.width + part * hashed.width
            for part, shift in enumerate(hashed.shifts)
        ]
        assert slots[:, at].tolist() == exact


def test_the_next_seed_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloomier, "_SPARE", 0)
    positions = np.arange(12)
    seeds = {seed: bloomier.build(positions, positions, 16, seed).seed for seed in range(20)}
    assert any(found > seed for seed, found in seeds.items())
    for seed, found in seeds.items():
        assert all(seeds[one] == found for one in range(seed, min(found, 20)))


def test_too_few_slots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloomier, "SLOTS_PER_KEY", 1.0)
    positions = np.arange(5000)
    with pytest.raises(ValueError, match=r"no filter of 5,034 slots holds its 5,000 values"):
        bloomier.build(positions, positions % 16, 16, 0)


def test_peeling_two_keys_that_share_all_slots() -> None:
    assert bloomier.peel(np.array([[0, 0], [1, 1], [2, 2]]), 3) is None
    rounds = bloomier.peel(np.array([[0, 0], [1, 1], [2, 3]]), 4)
    assert rounds is not None
    ((keys, owned),) = rounds
    assert dict(zip(keys.tolist(), owned.tolist(), strict=True)) == {0: 2, 1: 3}


def test_width_of_slots() -> None:
    assert bloomier.slot_bits(15, 1) == 4
    assert bloomier.slot_bits(15, 0.06) == 8
    assert bloomier.slot_bits(15, 0.05) == 16
    assert bloomier.slot_bits(1, 0.07) == 4
    assert bloomier.slot_bits(255, 0.004) == 16
    with pytest.raises(ValueError, match="more than 16 bits"):
        bloomier.slot_bits(255, 0.003)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), weighed=st.booleans())
def test_the_refitted_table_is_the_least_squares_solution(seed: int, weighed: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(20, 15)) * (rng.random((20, 15)) < 0.2)).astype(np.float32)
    codes = rng.integers(0, 20, weights.size).astype(np.uint16)
    mass = rng.random(weights.shape) + 0.1 if weighed else None
    table = bloomier.refit(weights, codes, 6, mass)
    used = codes < 6
    chosen = np.eye(6)[codes[used]]
    root = np.sqrt(np.ones(weights.size) if mass is None else mass.ravel())[used]
    exact = np.linalg.lstsq(chosen * root[:, None], weights.ravel()[used] * root, rcond=None)[0]
    np.testing.assert_allclose(table, exact, rtol=1e-5, atol=1e-6)
