"""Run a weight pass on a tiny model, and hold ONNX Runtime to the weights that it must use."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from weight_models import Case, normal, parsed

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

MIXED_WEIGHTS = ("conv", "table", "gemm", "last")
_RNG = np.random.default_rng(5)
MIXED_FEEDS = [
    {"x": _RNG.standard_normal((2, 8, 6, 6)).astype(np.float32), "ids": _RNG.integers(0, 90, (2,))}
    for _ in range(2)
]


def mixed() -> onnx.ModelProto:
    """A convolution, a lookup, a Gemm with a bias and a MatMul."""
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[2, 8, 6, 6] x, int64[2] ids) => (float[2, 50] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, conv)  r = Relu(c)  f = Flatten(r)
        e = Gather(table, ids)  j = Concat<axis = 1>(f, e)
        h = Gemm<transB = 1>(j, gemm, bias)  t = Tanh(h)  y = MatMul(t, last)
    }"""
    return parsed(
        text, "", conv=normal(16, 8, 3, 3) / 8, table=normal(90, 64, seed=1),
        gemm=normal(72, 640, seed=2) / 25, bias=normal(72, seed=3), last=normal(72, 50, seed=4),
    )  # fmt: skip


def computed(result: Result) -> dict[str, np.ndarray]:
    """The weights of the mixed model that ONNX Runtime computes with, under their names."""
    proto = result.model.to_proto()
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    made = {name for node in proto.graph.node for name in node.output}
    wanted = [name for name in MIXED_WEIGHTS if name not in found and name in made]
    for name in wanted:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    del proto.graph.value_info[:]
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rebuilt = session.run(wanted, MIXED_FEEDS[0]) if wanted else []
    return {n: found[n] for n in MIXED_WEIGHTS if n in found} | dict(
        zip(wanted, rebuilt, strict=True)
    )


def apply(model: onnx.ModelProto, folder: Path, *steps: Pass) -> Result:
    """Run passes unchecked: the tests check, and more strictly."""
    path = folder / "before.onnx"
    path.write_bytes(model.SerializeToString())
    result = run(steps, Model.load(path), Settings(check="off"))
    result.model.save(folder / "after.onnx", durable=False)
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
    model.save(reference, durable=False)
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
