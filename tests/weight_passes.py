"""Run a weight pass on a tiny model, and hold ONNX Runtime to the weights that it must use."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from weight_models import Case

from onnxshrink.contract import Settings
from onnxshrink.graph import surgery, weights
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

EVERY = Select(min_size=0)
LEVELS = [SessionOptions(optimization=level) for level in ("disable", "all")]
# Half of the last place of what is stored, summed up.
TOLERANCE = {ir.DataType.FLOAT16: 3e-3, ir.DataType.BFLOAT16: 3e-2}


def apply(model: onnx.ModelProto, folder: Path, *steps: Pass) -> Result:
    """Run passes unchecked: the tests check, and more strictly."""
    path = folder / "before.onnx"
    path.write_bytes(model.SerializeToString())
    result = run(steps, Model.load(path), Settings(check="off"))
    result.model.save(folder / "after.onnx")
    return result


def check(
    case: Case, expected: Mapping[str, np.ndarray], worker: Worker, folder: Path,
    tolerance: float = 1e-6,
) -> None:  # fmt: skip
    """The saved result answers what the model answers with other values in its weights."""
    model = Model.from_proto(case.model)
    views = {view.name: view for view in weights.find(model)}
    kinds = [views[name].dtype for name in expected]
    for name, values in expected.items():
        surgery.set_constant(model, views[name].value, values)
    reference = folder / "reference.onnx"
    model.save(reference)
    worker.check(folder / "after.onnx")
    wanted = worker.run(reference, [case.feed], LEVELS[0]).outputs[0]
    bound = max([tolerance, *(TOLERANCE.get(kind, 0) for kind in kinds)])
    for options in LEVELS:
        found = worker.run(folder / "after.onnx", [case.feed], options).outputs[0]
        for y, exact in zip(found, wanted, strict=True):
            assert (y.dtype, y.shape) == (exact.dtype, exact.shape)
            assert np.linalg.norm(y - exact) <= bound * np.linalg.norm(exact)


def check_against_numpy(
    case: Case, expected: Mapping[str, np.ndarray], worker: Worker, folder: Path,
    tolerance: float = 1e-6,
) -> None:  # fmt: skip
    """The saved result answers what numpy makes of these weights, where numpy has the operator."""
    if case.formula is None:
        return
    views = {view.name: view for view in weights.find(Model.from_proto(case.model))}
    matrices = {name: view.matrix for name, view in views.items()}
    for name, values in expected.items():
        shape, order = views[name]._canonical
        split = values.reshape(shape).transpose(order)
        matrices[name] = split.reshape(matrices[name].shape)
    wanted = case.formula(matrices, case.feed)
    (found,) = worker.run(folder / "after.onnx", [case.feed], LEVELS[0]).outputs[0]
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


def gone(names: Mapping[str, np.ndarray], folder: Path) -> bool:
    """Whether no constant of the saved result has one of these names any more."""
    stored = {t.name for t in round_trip.tensors(onnx.load(folder / "after.onnx"))}
    return not stored & set(names)
