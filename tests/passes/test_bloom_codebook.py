"""share-codebook --method bloom: ONNX Runtime must look up exactly what the filter holds."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import Case, normal, operators, parsed
from weight_passes import EVERY, apply, check, check_against_numpy, gone

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import codebook, sharing
from onnxshrink.kernels import bloomier
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.worker import Worker

VARIANTS: dict[str, dict[str, Any]] = {
    "slots of 4 bits": {"bits": 2, "false_positives": 0.2},
    "slots of 8 bits": {"false_positives": 0.06},
    "slots of 16 bits": {},
    "one entry": {"entries": 2, "false_positives": 0.07},
    "255 entries": {"bits": 8, "false_positives": 0.004},
}


def sparse(rows: int, columns: int, zeros: float = 0.95) -> np.ndarray:
    """Normal weights, most of them zero."""
    kept = np.random.default_rng(rows).random((rows, columns)) >= zeros
    return normal(rows, columns) * kept


def product(values: np.ndarray) -> onnx.ModelProto:
    rows, columns = values.shape
    text = f"g (float[n, {rows}] x) => (float[n, {columns}] y) {{ y = MatMul(x, W) }}"
    return parsed(text, W=values)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The weights that passes store from now on, decoded, by name."""
    kept: dict[str, np.ndarray] = {}
    replace = codebook.CodebookWriter.replace_filtered

    def spy(self: Any, view: Any, filtered: bloomier.BloomierFilter, table: np.ndarray) -> int:
        codes = np.minimum(filtered.decode(view.size), len(table))
        kept[view.name] = np.append(table, np.float32(0))[codes].reshape(view.shape)
        return replace(self, view, filtered, table)

    monkeypatch.setattr(codebook.CodebookWriter, "replace_filtered", spy)
    return kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_runtime_looks_up_the_same_bits(
    variant: str, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    values = sparse(400, 301)
    # The identity as input: each output is one weight, bit for bit.
    case = Case("sparse", product(values), ("W",), {"x": np.eye(400, dtype=np.float32)})
    step = ShareCodebook(method="bloom", **VARIANTS[variant])
    (row,) = apply(case.model, tmp_path, step).report.steps
    (change,) = (change for change in row.changes if change.what == "W")
    size = (tmp_path / "after.onnx").stat().st_size
    assert row.bytes_after == size
    assert abs((row.bytes_before - size) - (change.before - change.after)) <= 400
    check(case, stored, worker, tmp_path)
    check_against_numpy(case, stored, worker, tmp_path)
    assert gone(stored, tmp_path)
    outputs = worker_outputs(tmp_path / "after.onnx", case.feed)
    np.testing.assert_array_equal(outputs, stored["W"])

    # What it holds: the entry nearest to each weight, and zeros but for the false positives.
    found, entries = stored["W"], step.most - 1
    zero = values == 0
    budget = entries / 2 ** bloomier.slot_bits(entries, step.false_positives)
    wrong, deviation = (found[zero] != 0).mean(), np.sqrt(budget * (1 - budget) / zero.sum())
    assert budget <= step.false_positives
    assert abs(wrong - budget) < 4 * deviation
    assert f"{(found[zero] != 0).sum():,} false positives ({wrong:.2%} of the zeros)" in change.note
    assert f"{(~zero).sum():,} non-zeros in {bloomier.slot_count((~zero).sum()):,}" in change.note
    for entry in np.unique(found[found != 0]):
        assert entry == pytest.approx(values[found == entry].mean(dtype=np.float64), rel=1e-5)


def worker_outputs(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """As ONNX Runtime computes it, without the model that came before."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("case", operators(), ids=str)
def test_every_operator(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    """Small weights are not worth a filter: here they are told to be."""
    step = ShareCodebook(method="bloom", weights=EVERY, vectors="keep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "OVERHEAD", 10**6)
        patch.setattr(
            "onnxshrink.graph.weights.views.WeightView.nbytes", property(lambda view: 10**6)
        )
        patch.setattr(codebook, "FILTER_OVERHEAD", 0)
        result = apply(case.model, tmp_path, step)
    if result.report.steps[0].status != "done":
        assert "bigger" in result.report.steps[0].reason
        return
    assert set(stored) == set(case.weights)
    check(case, stored, worker, tmp_path)
    check_against_numpy(case, stored, worker, tmp_path)


def reason(values: np.ndarray, **options: Any) -> str:
    """Why the only weight was left alone."""
    model = product(values)
    step = ShareCodebook(method="bloom", weights=EVERY, **options)
    done = run([step], Model.from_proto(model), Settings(check="off"))
    (row,) = done.report.steps
    assert row.status == "nothing to do"
    assert done.model.digest() == Model.from_proto(model).digest()
    return next(skip.reason for skip in row.skips if skip.what == "W")


def test_why_a_weight_is_left_alone() -> None:
    assert reason(normal(300, 200), false_positives=0.06) == (
        "would not be smaller: a filter of 60,000 weights that are not zero takes 74,897 bytes,"
        " a table of 16 30,364, itself 240,000"
    )
    assert "would not be smaller" in reason(np.full((40, 40), 0.5, np.float32))
    assert "would not be smaller" in reason(sparse(8, 8))
    assert "nothing but zeros" in reason(np.zeros((40, 40), np.float32))


def test_the_filter_is_never_larger_than_the_codebook(tmp_path: Path) -> None:
    """Nor taken long before or after it would be smaller."""
    for zeros in (0.5, 0.55, 0.65, 0.75, 0.9):
        model = product(sparse(400, 300, zeros))
        sizes = []
        for method in ("kmeans", "bloom"):
            step = ShareCodebook(method=method, scale="none", false_positives=0.06)
            done = apply(model, tmp_path, step)
            sizes.append((tmp_path / "after.onnx").stat().st_size)
        if done.report.steps[0].changes:
            assert sizes[1] < sizes[0]
        assert bool(done.report.steps[0].changes) == (zeros > 0.6)


def test_constant_weights_that_are_left_come_back(tmp_path: Path) -> None:
    values = np.where(sparse(300, 300) != 0, np.float32(0.25), np.float32(0))
    step = ShareCodebook(method="bloom", false_positives=0.02)
    apply(product(values), tmp_path, step)
    feeds = {"x": np.eye(300, dtype=np.float32)}
    found = worker_outputs(tmp_path / "after.onnx", feeds)
    # One value alone: slots of 8 bits are enough, and their mistakes pull it towards zero.
    wrong = np.count_nonzero(found[values == 0])
    share = np.count_nonzero(values) / (np.count_nonzero(values) + wrong)
    np.testing.assert_allclose(found[values != 0], 0.25 * share, rtol=1e-6)


def test_importance_moves_entries(tmp_path: Path) -> None:
    """Large weights meet small inputs here: least error of weights is not that of outputs."""
    size = np.linspace(0.1, 3, 300, dtype=np.float32)
    values, inputs = sparse(300, 200) / size[:, None], normal(50, 300) * size**2
    errors = []
    for weighed in ("false", "true"):
        step = ShareCodebook(method="bloom", importance=weighed, bits=2)
        settings = Settings(check="off", feeds=[{"x": inputs}])
        done = run([step], Model.from_proto(product(values)), settings)
        done.model.save(tmp_path / "after.onnx")
        found = worker_outputs(tmp_path / "after.onnx", {"x": np.eye(300, dtype=np.float32)})
        errors.append(float(np.linalg.norm(inputs @ (found - values))))
    assert errors[1] < errors[0]


def test_seeded(tmp_path: Path) -> None:
    contents = []
    for seed in (1, 1, 2):
        done = run(
            [ShareCodebook(method="bloom")],
            Model.from_proto(product(sparse(200, 200))),
            Settings(check="off", seed=seed),
        )
        done.model.save(tmp_path / "after.onnx")
        contents.append((tmp_path / "after.onnx").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_what_pruning_leaves_is_filtered(tmp_path: Path) -> None:
    text = "g (float[16, 256] x) => (float[16, 64] y) { h = MatMul(x, W) y = MatMul(h, V) }"
    model = parsed(text, W=normal(256, 512), V=normal(512, 64))
    pruned = PruneMagnitude(ratio=0.95, scope="weight")

    def sized(*steps: Any) -> tuple[Result, int]:
        done = run([pruned, *steps], Model.from_proto(model), Settings(check="off"))
        done.model.save(tmp_path / "after.onnx")
        return done, (tmp_path / "after.onnx").stat().st_size

    _, plain = sized(ShareCodebook(scale="none"))
    done, filtered = sized(ShareCodebook(method="bloom", false_positives=0.06))
    assert filtered < plain / 4
    notes = [change.note for change in done.report.steps[1].changes if change.what in "WV"]
    assert len(notes) == 2
    assert all("slots of 8 bits" in note for note in notes)
    onnx.checker.check_model(onnx.load(tmp_path / "after.onnx"), full_check=True)


def test_a_pruned_cnn_stays_within_the_contract(worker: Worker, tmp_path: Path) -> None:
    """With the contract checked; filters and then codebooks beat codebooks by far."""
    folder = Path(__file__).parents[2] / "models" / "vision_cnn"
    images = np.load(folder / "calibration.npz")["image"][:32]
    pruned = PruneMagnitude(ratio=0.95)
    run([pruned], Model.load(folder / "model.onnx"), Settings(check="off")).model.save(
        tmp_path / "pruned.onnx"
    )
    sizes, settings = [], Settings(feeds=[{"image": images}])
    for steps in (
        [ShareCodebook()],
        [ShareCodebook(method="bloom", bits=6, vectors="keep"), ShareCodebook(bits=8)],
    ):
        done = run(steps, Model.load(tmp_path / "pruned.onnx"), settings, worker)
        assert [step.status for step in done.report.steps] == ["done"] * len(steps)
        done.model.save(tmp_path / "after.onnx", durable=False)
        sizes.append((tmp_path / "after.onnx").stat().st_size)
    assert sizes[1] < 0.75 * sizes[0]
