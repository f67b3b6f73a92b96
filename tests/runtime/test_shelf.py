"""The proof's memory: answers lie in a file, and are compared in pieces."""

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hard_models import text

from onnxshrink.kernels.metrics import Agreement
from onnxshrink.runtime import shelf
from onnxshrink.runtime.worker import Worker


def test_arrays_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "IN_MEMORY", 100)
    monkeypatch.setattr(shelf, "_AT_ONCE", 300)
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = [
        rng.standard_normal((3, 4), np.float32), rng.standard_normal((5, 6)).T, np.zeros((0, 3)),
        np.float32(3.5).reshape(()), np.array(["a", "b" * 200], object), rng.random(7) < 0.5,
        rng.standard_normal(9).astype(ml_dtypes.bfloat16),
    ]  # fmt: skip
    with shelf.Shelf() as keeper:
        kept = keeper.keep(arrays)
    for _ in shelf.read([kept, kept]):
        for array, other in zip(arrays, kept, strict=True):
            assert (array.dtype, array.shape) == (other.dtype, other.shape)
            assert np.array_equal(array, other)
    assert kept[0] is arrays[0]
    assert kept[1].base is not None


def test_many_arrays_take_few_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "IN_MEMORY", 0)
    with shelf.Shelf() as keeper:
        kept = keeper.keep(np.full(3, number) for number in range(3000))
    assert [array[2] for array in kept] == list(range(3000))


def test_answers_of_a_run_lie_in_a_file(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    proto = text("g (float[n, 4] x) => (float[n, 4] y) { y = Neg(x) }")
    path.write_bytes(proto.SerializeToString())
    feeds = [{"x": np.full((2, 4), number, np.float32)} for number in range(4)]
    monkeypatch.setattr(shelf, "IN_MEMORY", 40)
    found = worker.run(path, feeds).outputs
    assert all(np.array_equal(-feed["x"], y) for feed, (y,) in zip(feeds, found, strict=True))
    assert [y.flags.writeable for (y,) in found] == [True, False, False, False]


@pytest.mark.parametrize("shape", [(1, 60, 40_000), (600, 4_000), (3, 8, 500, 200)])
def test_figures_do_not_depend_on_pieces(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a pair of 19 MB is compared in much less than its own size."""
    rng = np.random.default_rng(1)
    x = 3 * rng.standard_normal(shape, np.float32)
    y = x + 0.1 * rng.standard_normal(shape, np.float32)
    x[..., 5], y[..., 7] = np.nan, np.nan
    x[..., 6] = np.inf
    y[..., 5:7] = x[..., 5:7]
    for other in (y, np.where(np.isnan(y), 0, y)):
        tracemalloc.start()
        parts = Agreement(atol=0.1)
        parts.add(x, other)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with monkeypatch.context() as patched:
            patched.setattr("onnxshrink.kernels.metrics._PIECE", 10**9)
            whole = Agreement(atol=0.1)
            whole.add(x, other)
        found, expected = parts.result("y").to_dict(), whole.result("y").to_dict()
        for name, figure in expected.items():
            close = pytest.approx(figure, rel=1e-9) if isinstance(figure, float) else figure
            assert found[name] == close, name
        assert peak < 100e6
