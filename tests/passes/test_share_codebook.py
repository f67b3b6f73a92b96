"""share-codebook: ONNX Runtime must compute with exactly the entries that were chosen."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import shares
from weight_models import Case, homes, normal, operators, parsed
from weight_passes import EVERY, apply, check, check_against_numpy, gone

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import codebook, sharing
from onnxshrink.kernels import codebooks
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.pipeline import run
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

VARIANTS: dict[str, dict[str, Any]] = {
    "16 entries": {},
    "2 entries, unscaled": {"bits": 1, "scale": "none"},
    "3 entries": {"entries": 3, "scale": "channel"},
    "4 entries": {"bits": 2},
    "6 entries": {"entries": 6, "rounding": "nearest"},
    "40 entries": {"entries": 40},
    "uniform": {"method": "uniform"},
    "nf4": {"method": "nf4", "scale": "channel"},
    "pow2": {"method": "pow2", "bits": 3},
    "tables for rows": {"rows": 2, "entries": 6},
    "tables for rows, bytes": {"rows": 2, "entries": 20},
    "pairs": {"width": 2, "bits": 4},
    "fours": {"width": 4, "bits": 5},
    "one table": {"table": "model"},
    "hash": {"method": "hash"},
    "4-bit tensors": {"packing": "uint4", "scale": "channel"},
    "rows of codes": {"form": "gather"},
    "rows of codes, 3 entries": {"form": "gather", "entries": 3},
    "rows of codes, bytes": {"form": "gather", "bits": 5},
    "rows of codes, pairs": {"form": "gather", "width": 2},
}
FEW = ("16 entries", "3 entries", "tables for rows", "4-bit tensors", "rows of codes")


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The weights that passes store from now on, decoded, by name."""
    kept: dict[str, np.ndarray] = {}
    replace, hashed = codebook.CodebookWriter.replace, codebook.CodebookWriter.replace_hashed
    looked_up_rows = codebook.CodebookWriter.replace_lookups

    def spy(self: Any, view: Any, shared: sharing.Shared, **how: Any) -> int:
        table, codes = shared.stored.table, shared.stored.codes
        looked_up = np.stack([t[c].ravel() for t, c in zip(table, codes, strict=True)])
        values = view.from_matrix(looked_up) if shared.rows else looked_up.reshape(view.shape)
        kept[view.name] = values if shared.scale is None else values * shared.scale
        np.testing.assert_array_equal(shared.values, kept[view.name])
        return (replace if how else looked_up_rows)(self, view, shared, **how)

    def spy_hashed(self: Any, view: Any, table: np.ndarray, *seed: int) -> int:
        places = codebooks.hash_positions(view.size, *seed, len(table))
        kept[view.name] = table[places].reshape(view.shape)
        return hashed(self, view, table, *seed)

    monkeypatch.setattr(codebook.CodebookWriter, "replace", spy)
    monkeypatch.setattr(codebook.CodebookWriter, "replace_lookups", spy)
    monkeypatch.setattr(codebook.CodebookWriter, "replace_hashed", spy_hashed)
    return kept


def one(name: str) -> Case:
    return next(case for case in operators() + homes() if case.name == name)


def usable(case: Case, variant: str) -> bool:
    """Rows of a grouped ConvTranspose, or a single one, cannot share a table."""
    if variant.startswith("tables"):
        return case.name not in ("ConvTranspose grouped", "MatMul vector")
    return True


EVERYWHERE = [
    pytest.param(case, variant, id=f"{case}-{variant}")
    for case in operators() + homes()
    for variant in VARIANTS
    if variant == FEW[0]
    or (variant in FEW and shares.chosen(f"{case}-{variant}", 3))
    or case.name in ("MatMul right", "Conv 2-D", "ConvTranspose grouped", "GRU")
    or (variant.startswith("rows of") and case.name.startswith("Gather"))
    if usable(case, variant)
]


@pytest.mark.parametrize(("case", "variant"), EVERYWHERE)
def test_the_runtime_computes_with_what_was_stored(
    case: Case, variant: str, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    step = ShareCodebook(weights=EVERY, vectors="keep", **VARIANTS[variant])
    result = apply(case.model, tmp_path, step)
    (row,) = result.report.steps
    changes = [change for change in row.changes if change.kind != "model"]
    if not changes:  # some hundred bytes of nodes are too much for the smallest models
        assert any("would not be smaller" in skip.reason for skip in row.skips)
        return
    assert {change.what for change in changes} == set(stored)
    check(case, stored, worker, tmp_path)
    check_against_numpy(case, stored, worker, tmp_path)
    assert gone(stored, tmp_path)
    size = (tmp_path / "after.onnx").stat().st_size
    assert row.bytes_after == size < row.bytes_before
    saved = sum(change.before - change.after for change in changes)
    assert abs((row.bytes_before - size) - saved) <= 600 * len(stored)


# ------------------------------------------------------------------------- what is written


def large(values: np.ndarray) -> onnx.ModelProto:
    rows, columns = values.shape
    text = f"g (float[n, {rows}] x) => (float[n, {columns}] y) {{ y = MatMul(x, W) }}"
    return parsed(text, W=values)


@pytest.mark.parametrize(
    ("entries", "bits_a_weight"), [(2, 1), (3, 1.6), (4, 2), (6, 8 / 3), (16, 4), (256, 8)]
)
def test_a_byte_holds_as_many_codes_as_fit(
    entries: int, bits_a_weight: float, tmp_path: Path
) -> None:
    apply(large(normal(300, 400)), tmp_path, ShareCodebook(entries=entries, scale="none"))
    after = onnx.load(tmp_path / "after.onnx")
    largest = max(after.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    assert largest.data_type == onnx.TensorProto.UINT8
    assert len(largest.raw_data) == pytest.approx(300 * 400 * bits_a_weight / 8, abs=1)
    # Any operator set will do: that of the model stays.
    assert after.opset_import == large(normal(1, 1)).opset_import
    extra = (tmp_path / "after.onnx").stat().st_size - len(largest.raw_data)
    assert extra < 600 + 4 * entries + 256 * (entries < 17) * codebooks.codes_per_byte(entries)


def test_constants_that_all_weights_need_are_there_once(tmp_path: Path) -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, A) y = MatMul(h, B) }"
    model = parsed(text, A=normal(64, 64), B=normal(64, 64, seed=1))
    apply(model, tmp_path, ShareCodebook(table="model", scale="none"))
    after = onnx.load(tmp_path / "after.onnx")
    kinds = [(t.data_type, tuple(t.dims)) for t in after.graph.initializer]
    assert kinds.count((onnx.TensorProto.UINT8, (256, 2))) == 1
    assert kinds.count((onnx.TensorProto.FLOAT, (16,))) == 1
    assert kinds.count((onnx.TensorProto.UINT8, (2048,))) == 2


def test_few_values_lose_nothing(worker: Worker, tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice([-0.5, 0.0, 0.1, 2.0, 7.0], (100, 80))
    values = values.astype(np.float32)
    case = Case("few", large(values), ("W",), {"x": normal(3, 100)})
    for options in ({"method": "unique"}, {"bits": 3, "scale": "none"}, {"method": "adaptive"}):
        result = apply(case.model, tmp_path, ShareCodebook(**options))
        (change,) = result.report.steps[0].changes
        assert change.error == {"sqnr_db": np.inf}
        assert change.note.startswith("5 entries, 3 codes a byte")
        check(case, {"W": values}, worker, tmp_path, tolerance=0)


def test_adaptive_takes_the_smallest_table_that_is_good_enough(tmp_path: Path) -> None:
    for least, entries in ((3, 2), (6, 3), (9, 4), (11, 6), (18, 16), (30, 256)):
        step = ShareCodebook(method="adaptive", min_sqnr_db=least, scale="none")
        result = apply(large(normal(300, 400)), tmp_path, step)
        (change,) = result.report.steps[0].changes
        assert entries // 2 < int(change.note.split()[0]) <= entries
        assert change.error["sqnr_db"] >= least


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for seed in (1, 1, 2):
        path = tmp_path / "before.onnx"
        path.write_bytes(large(normal(64, 64)).SerializeToString())
        step = ShareCodebook(method="hash", bits=6)
        done = run([step], Model.load(path), Settings(check="off", seed=seed))
        done.model.save(tmp_path / "after.onnx")
        contents.append((tmp_path / "after.onnx").read_bytes())
    assert contents[0] == contents[1] != contents[2]


# ------------------------------------------------------------------------- what is refused


def reason(model: onnx.ModelProto, **options: Any) -> str:
    """Why the only weight was left alone."""
    options.setdefault("weights", EVERY)
    done = run([ShareCodebook(**options)], Model.from_proto(model), Settings(check="off"))
    (step,) = done.report.steps
    assert step.status == "nothing to do"
    assert done.model.digest() == Model.from_proto(model).digest()
    return next(skip.reason for skip in step.skips if skip.what == "W")


def test_why_a_weight_is_left_alone() -> None:
    weight = normal(30, 25)
    assert reason(large(weight), method="unique") == "has 750 distinct values, more than 16"
    assert "cannot be taken 4 at a time" in reason(large(weight), width=4)
    assert reason(large(weight), rows=10) == "25 output channels cannot be shared 10 at a time"
    assert "would not be smaller" in reason(large(normal(4, 4)))
    assert "hashed" in reason(large(normal(8, 8)), method="hash", bits=8)
    assert "fewer than 256" in reason(large(normal(4, 4)), weights=Select())
    spoiled = weight.copy()
    spoiled[3, 3] = np.nan
    for options in ({}, {"table": "model"}, {"method": "hash"}, {"method": "bloom"}, {"width": 2}):
        assert "NaN or infinity" in reason(large(spoiled), **options)


def test_constant_weights_are_one_entry(worker: Worker, tmp_path: Path) -> None:
    values = np.full((40, 40), 0.25, np.float32)
    case = Case("constant", large(values), ("W",), {"x": normal(3, 40)})
    for options in ({}, {"method": "uniform"}, {"bits": 8}, {"width": 4}):
        apply(case.model, tmp_path, ShareCodebook(**options))
        check(case, {"W": values}, worker, tmp_path, tolerance=1e-7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entries": 1}, "'entries' takes 2 to 256"),
        ({"entries": 257}, "at most 256"),
        ({"bits": 9}, "at most 8"),
        ({"method": "nf4", "width": 2}, "'width' works with method 'kmeans' only"),
        ({"table": "model", "rows": 4}, "no 'rows'"),
        ({"table": "model", "method": "uniform"}, "needs method 'kmeans'"),
        ({"table": "model", "method": "bloom"}, "needs method 'kmeans'"),
        ({"method": "bloom", "rounding": "gptq"}, "needs a table"),
        ({"method": "bloom", "false_positives": 0.001}, "at least 0.004"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        ShareCodebook(**options)


def test_dense_codebooks_are_floats_of_few_values(tmp_path: Path) -> None:
    """The same weights as those of the other form, in no node; the packer sees what they share."""
    model = parsed("g (float[3, 64] x) => (float[3, 40] y) { y = MatMul(x, W) }", W=normal(64, 40))
    dense = ShareCodebook(bits=3, scale="none", form="dense", weights=EVERY)
    (step,) = apply(model, tmp_path, dense).report.steps
    (change,) = step.changes
    assert (change.what, change.after) == ("W", change.before)
    assert change.note.endswith("smaller once packed")
    after = onnx.load(tmp_path / "after.onnx")
    assert [node.op_type for node in after.graph.node] == ["MatMul"]
    found = onnx.numpy_helper.to_array(after.graph.initializer[0])
    assert len(np.unique(found)) == 8
    folded = ShareCodebook(bits=3, scale="none", form="fold", weights=EVERY)
    other = apply(model, tmp_path, folded).model.to_proto()
    x = normal(3, 64, seed=1)
    answers = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (after, other)
    ]
    one, two = (session.run(None, {"x": x})[0] for session in answers)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
