"""The coder: the sizes that it promises, and streams that it refuses."""

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
import shares
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import entropy, filters
from onnxshrink.kernels.bits import pack as pack_bits
from onnxshrink.kernels.filters import CHUNK, Filter


def coded_size(data, unit, floating=False):
    """Bytes of a whole tensor as the sidecar stores it, table included, checked by decoding."""
    sizes = []
    for choice in entropy.choose(data, unit, floating=floating):
        how, table = choice
        step = entropy.block_symbols(data, choice) * unit // 8
        size = 0 if table is None else table.size
        for start in range(0, data.size, step):
            block = data[start : start + step]
            streams = filters.encode(block, how, table)
            assert max(s.size for s in streams) <= CHUNK
            assert np.array_equal(filters.decode(streams, how, block.size, table), block)
            for stream in streams:
                coded = entropy.deflate(stream)
                assert coded is None or entropy.inflate(coded, stream.size) == stream.tobytes()
                size += stream.size if coded is None else len(coded)
        sizes.append((size, how))
    return min(sizes, key=lambda pair: pair[0])


def _weights(sparsity, size=1 << 20):
    """Laplace, as trained weights nearly are, the smallest set to zero."""
    weights = np.random.default_rng(7).laplace(size=size).astype(np.float32)
    weights[np.abs(weights) < np.quantile(np.abs(weights), sparsity)] = 0
    return weights


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "indices"])
def test_within_a_percent_of_the_order_0_entropy(kind, sparsity):
    weights = _weights(sparsity)
    if kind in ("int8", "uint8"):
        codes = np.clip(np.rint(weights * (127 / 8)), -127, 127).astype(np.int8)
        data, unit = (codes ^ (-128 if kind == "uint8" else 0)).view(np.uint8), 8
    else:
        levels = np.clip(np.rint(weights * (7 / 4)), -8, 7).astype(np.int8).view(np.uint8) & 15
        if kind == "int4":
            data, unit = pack_bits(levels, 4), 4
        else:  # a codebook's indices, one a byte, in an order that says nothing of their values
            data, unit = np.random.default_rng(3).permutation(16).astype(np.uint8)[levels], 8
    size, how = coded_size(data, unit)
    assert size * 8 / weights.size <= 1.01 * entropy.order0_bits(data, unit), how


@pytest.mark.parametrize(("width", "share"), [("fp32", 0.835), ("bf16", 0.67)])
def test_floats_lose_their_exponent(width, share):
    bits = np.random.default_rng(5).normal(size=1 << 20).astype(np.float32).view(np.uint32)
    data = (bits if width == "fp32" else (bits >> 16).astype(np.uint16)).view(np.uint8)
    size, how = coded_size(data, 32 if width == "fp32" else 16, floating=True)
    assert how.rotate
    assert size < share * data.size


def test_a_few_distinct_floats_become_indices():
    values = np.array([0.25, -1.5, np.nan, -0.0, 3e38], np.float32)
    data = np.random.default_rng(2).choice(values, 100_000).view(np.uint8)
    size, how = coded_size(data, 32, floating=True)
    assert how.table
    assert how.bits == 4
    assert size * 8 / 100_000 < 1.01 * 4.72 / 2  # Huffman on pairs: 7 of 4 bits, 18 of 5


def test_a_constant_costs_nothing():
    size, _ = coded_size(np.full(1 << 20, 3.5, np.float32).view(np.uint8), 32, floating=True)
    assert size < 100


def test_repeats_are_found():
    mask = np.tril(np.ones((512, 512), np.uint8)).reshape(-1)
    size, _ = coded_size(mask, 8)
    assert size < mask.size / 100


def test_noise_is_stored():
    noise = np.random.default_rng(1).integers(0, 256, CHUNK, np.uint8)
    assert entropy.deflate(noise) is None
    assert entropy.deflate(noise[:100]) is None
    assert entropy.deflate(noise[:0]) is None


@settings(max_examples=shares.EXAMPLES)
@given(st.sampled_from([2, 4, 8, 16, 32, 64]), st.booleans(), st.data())
def test_any_tensor_is_no_larger_than_raw(unit, floating, data):
    size = max(1, unit // 8)
    element = st.integers(0, 3) | st.integers(0, (1 << 8 * size) - 1)
    values = data.draw(st.lists(element, max_size=300))
    raw = np.frombuffer(b"".join(v.to_bytes(size, "little") for v in values), np.uint8)
    assert coded_size(raw, unit, floating)[0] <= raw.size


def test_choice_of_a_large_tensor_looks_at_a_sample_only(monkeypatch):
    seen = []
    real = filters.encode
    monkeypatch.setattr(entropy, "encode", lambda d, *a: seen.append(d.size) or real(d, *a))
    entropy.choose(_weights(0.8, 1 << 22).view(np.uint8), 32, floating=True)
    assert 0 < max(seen) <= 1 << 18


def _raw_deflate(data):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize(
    ("payload", "length", "why"),
    [
        (_raw_deflate(bytes(1000)), 999, "exactly 999"),
        (_raw_deflate(bytes(1000)), 1001, "exactly 1001"),
        (_raw_deflate(bytes(1000))[:-1], 1000, "exactly 1000"),
        (_raw_deflate(bytes(1000)) + b"\0", 1000, "exactly 1000"),
        (zlib.compress(bytes(1000)), 1000, "damaged|exactly"),
        (b"", 0, "exactly 0"),
        (b"\xff" * 40, 10, "damaged"),
    ],
)
def test_inflate_refuses(payload, length, why):
    with pytest.raises(ValueError, match=why):
        entropy.inflate(payload, length)


def test_inflate_of_a_bomb_allocates_only_what_it_may():
    bomb = _raw_deflate(bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="exactly"):
        entropy.inflate(bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # zlib's window and state; the bomb is 64 MiB


@settings(max_examples=shares.EXAMPLES)
@given(st.binary(max_size=3000), st.integers(0, 4000))
def test_inflate_of_anything_gives_the_length_or_refuses(payload, length):
    with contextlib.suppress(ValueError):
        assert len(entropy.inflate(payload, length)) == length


@pytest.mark.parametrize("unit", [2, 4, 8, 16, 32, 64])
def test_entropy_of_two_equal_halves_is_a_bit(unit):
    high = np.zeros(1, f"<u{max(1, unit // 8)}")
    high[0] = (1 << unit) - 1
    data = (
        pack_bits(np.tile([0, (1 << unit) - 1], 64).astype(np.uint8), unit)
        if unit < 8
        else np.concatenate([np.zeros_like(high), high] * 64).view(np.uint8)
    )
    assert entropy.order0_bits(data, unit) == pytest.approx(1)
    assert entropy.order0_bits(data[:0], unit) == 0


def test_isal_reads_the_same_bytes():
    pytest.importorskip("isal", reason="the [fast] extra is not installed")
    raw = _weights(0.5, 100_000).view(np.uint8)
    coded = entropy.deflate(filters.encode(raw, Filter(32, 32, rotate=True))[3])
    assert entropy.inflate(coded, 100_000) == zlib.decompress(coded, -15)


def test_rows_are_dealt_by_how_common_their_elements_are():
    rng = np.random.default_rng(13)
    wide = rng.random(1000) < 0.4
    table = np.where(
        wide[:, None], rng.integers(0, 200, (1000, 50)), rng.integers(0, 3, (1000, 50))
    )
    dealt = entropy.deal(table.astype(np.uint8).reshape(-1), 8, 1000)
    assert sorted(np.unique(dealt)) == list(range(dealt.max() + 1))
    of_wide, of_narrow = set(dealt[wide]), set(dealt[~wide])
    assert len(of_wide & of_narrow) <= 1  # the part in which one kind ends and the other begins


@pytest.mark.parametrize("rows", [255, 1000, 999, 50_000])
def test_what_is_not_worth_dealing(rows):
    """Few rows, rows that are alike, what has no such rows, and rows that are too short."""
    data = np.random.default_rng(14).integers(0, 200, 50_000).astype(np.uint8)
    assert entropy.deal(data, 8, rows) is None
    assert entropy.deal(data, 4, 1000) is None
    assert entropy.deal(np.arange(50_000, dtype=np.uint16).view(np.uint8), 16, 1000) is None


@pytest.mark.parametrize("spread", [0.2, 0.3, 0.35, 0.4, 0.45, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("count", [3000, 1 << 14, 40000])
def test_the_quick_look_for_repeats_decides_as_the_thorough_one(spread: float, count: int) -> None:
    codes = np.rint(np.random.default_rng(count).normal(0, spread, count)).astype(np.int8)

    def coded(raw: bytes, strategy: int) -> bytes:
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        return coder.compress(raw) + coder.flush()

    start, strategy = codes[: 1 << 14].tobytes(), zlib.Z_HUFFMAN_ONLY
    if len(coded(start, zlib.Z_DEFAULT_STRATEGY)) < 0.95 * len(coded(start, strategy)):
        strategy = zlib.Z_DEFAULT_STRATEGY
    assert entropy.deflate(codes.view(np.uint8)) == coded(codes.tobytes(), strategy)
