"""The same rows, stacked in one array or given one by one, give models that are as good."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hard_models import text

from onnxshrink import api
from onnxshrink.kernels.metrics import relative_error
from onnxshrink.options import build
from onnxshrink.recipe import Recipe, find_pass

SIZE = 96


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A model of two layers, rows to calibrate with, and fresh rows of the same kind."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, SIZE))

    def rows(count: int) -> np.ndarray:
        noise = 0.3 * rng.standard_normal((count, SIZE))
        return (rng.standard_normal((count, 24)) @ mix / 5 + noise).astype(np.float32)

    w, v = rng.standard_normal((2, SIZE, SIZE)).astype(np.float32) / np.sqrt(SIZE)
    proto = text(
        f"g (float[n, {SIZE}] x) => (float[n, {SIZE}] y) "
        "{ a = Gemm(x, w, b)  r = Relu(a)  y = Gemm(r, v, b) }",
        w=w, v=v, b=np.zeros(SIZE, np.float32),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("stacked") / "model.onnx"
    onnx.save(proto, path)
    return path, rows(32), rows(400)


def answers(path: Path, rows: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"x": rows})[0]


RD, SPARSE, MAGNITUDE, FIT = "quantize-rd", "prune-sparsegpt", "prune-magnitude", "reconstruct"
LOOSE = {"max_error": 2.0}


def built(*steps: tuple[str, dict[str, object]]) -> Recipe:
    return Recipe(tuple(build(find_pass(name), options, name) for name, options in steps))


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("recipe", [
    built((RD, {"bits_per_weight": 3, **LOOSE})),
    built((RD, LOOSE)),
    built((SPARSE, LOOSE)),
    built((MAGNITUDE, LOOSE), (FIT, {})),
], ids=["rd-bits", "rd-fidelity", "sparsegpt", "reconstruct"])  # fmt: skip
def test_stacked_and_single_rows_are_worth_the_same(
    recipe: Recipe, case: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model, rows, fresh = case
    forms = {"stacked": {"x": rows}, "single": [{"x": row[None]} for row in rows]}
    errors = {}
    for form, calibration in forms.items():
        out = tmp_path / f"{form}.onnx"
        report = api.apply_recipe(recipe, model, out, api.Options(calibration=calibration))
        assert {step.status for step in report.steps} == {"done"}
        errors[form] = relative_error(answers(model, fresh), answers(out, fresh))
    assert max(errors.values()) <= 1.3 * min(errors.values()), errors


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("recipe", [
    built((RD, {"bits_per_weight": 4, **LOOSE})),
    built((SPARSE, LOOSE)),
    built(("prune-channels", LOOSE)),
    built(("quantize-weights", {"rounding": "gptq"})),
], ids=["rd", "sparsegpt", "channels", "gptq"])  # fmt: skip
def test_a_fit_that_is_judged_by_itself_says_so(
    recipe: Recipe, case: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model, rows, _ = case
    for feeds, told in (([{"x": rows}], 1), ([{"x": rows[:16]}, {"x": rows[16:]}], 0)):
        options = api.Options(calibration=feeds)
        report = api.apply_recipe(recipe, model, tmp_path / "out.onnx", options)
        assert sum("judged by it" in warning for warning in report.warnings) == told
