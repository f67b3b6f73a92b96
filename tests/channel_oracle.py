"""The oracle of channel removal: what the original computes with the removed weights at zero.

Outputs alone are weak (a saturated softmax agrees with anything), so every float intermediate of
the zeroed original is compared, without its removed indices, with the pruned model's. Inputs of
norms that are not zero where channels go are made so: that is what removal means there. Values in
bodies are handed out of them, all turns of a loop stacked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from onnxshrink.channels import groups as grouping
from onnxshrink.channels.facts import Facts, Runs, inner, watched
from onnxshrink.channels.groups import Cost, Group
from onnxshrink.channels.labels import Walk, analyse
from onnxshrink.channels.plan import Plan
from onnxshrink.channels.probing import observe, probe
from onnxshrink.channels.removal import Cut
from onnxshrink.channels.shares import Allocation
from onnxshrink.graph import read
from onnxshrink.graph.analysis.instrument import instrument
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.worker import Worker

#: Operands that are codes, by operator, and which operand says what code is zero.
_CODES = {
    ("ConvInteger", 1): 3, ("DequantizeLinear", 0): 2, ("DynamicQuantizeMatMul", 1): 3,
    ("MatMulInteger", 1): 3, ("MatMulIntegerToFloat", 1): 5, ("QGemm", 3): 5,
    ("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5, ("QAttention", 1): 7,
    ("DynamicQuantizeLSTM", 1): 9, ("DynamicQuantizeLSTM", 2): 11,
}  # fmt: skip
#: Operands that must not be zeroed: what is divided by, variances, scales, zero points.
_NOT_ZEROED = {
    ("Div", 1), ("BatchNormalization", 4), ("DequantizeLinear", 1), ("QuantizeLinear", 1),
    ("QLinearConv", 4), ("Pow", 1), *((op, point) for (op, _), point in _CODES.items()),
}  # fmt: skip


@dataclass
class Verdict:
    """What a removal did, and how far the result is from the zeroed original.

    Attributes:
        error: Largest difference of any intermediate value, relative to that value's largest.
        where: The value.
        compared: How many values were compared.
    """

    model: Model
    walk: Walk
    groups: list[Group]
    before: Cost
    after: Cost
    error: float
    where: str
    compared: int

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant of the result, wherever it is."""
        constants = {v.name: v for n in self.model.nodes for v in (*n.inputs, *n.outputs) if v}
        tensor = read.constant(constants[name])
        assert tensor is not None
        return tuple(tensor.shape.numpy())


def build(text: str, seed: int = 0, check: bool = True, **tensors: object) -> Model:
    """A model in ONNX text with initializers: shapes of random ones, or arrays."""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, given in tensors.items():
        array = given
        if isinstance(given, tuple):
            fan = max(int(np.prod(given[1:])), 1) if len(given) > 1 else 1
            array = (rng.standard_normal(given) * (2 / fan) ** 0.5).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    if check:
        onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def prune(
    model: Model, feed: Mapping[str, np.ndarray], worker: Worker, ratio: float = 0.3,
    seed: int = 0, runs: Runs | None = None, also: Sequence[Mapping[str, np.ndarray]] = (),
    inside: bool = True,
) -> Verdict:  # fmt: skip
    """Remove a random share of every group, and compare with the oracle.

    Args:
        model: The model, which is only read.
        feed: Inputs to analyse it with, and to compare on.
        worker: Where to run.
        ratio: The share.
        seed: For what goes.
        runs: What two runs showed, if that is known.
        also: More inputs to compare on.
        inside: Whether to compare values in bodies too, which must not change their shape.
    """
    runs = runs or probe(model, feed, worker)
    pruned = model.clone()
    walk = analyse(pruned, Facts(pruned, runs))
    groups = grouping.find(walk)
    rng = np.random.default_rng(seed)
    scores = [rng.random(len(group)) for group in groups]
    spread = Allocation({}, everywhere=False, round_to=1, minimum=1)
    removed = spread.choose(Plan(walk, groups, scores, [], {}), ratio).removed
    before, after = grouping.cost(walk), grouping.cost(walk, removed)
    reference = _zeroed(walk, removed)
    values = [slot for slot in walk.labels if not isinstance(slot, tuple)]
    kept = {value.name: _kept(walk, value, removed) for value in values}
    made = [v for v in inner(pruned) if inside and read.constant(v) is None]
    floats = [v.name for v in made if walk.facts.dtype(v) == np.float32]
    Cut(walk, removed).apply()
    _assert_in_order(pruned)
    verdict = Verdict(pruned, walk, groups, before, after, 0.0, "", 0)
    feeds = [feed, *also]
    wanted = list(_everything(reference, floats, feeds, worker))
    found = list(_everything(pruned, floats, feeds, worker))
    for expected, actual in zip(wanted, found, strict=True):
        for name, value in expected.items():
            if name in actual and name in kept and value.dtype.kind == "f":
                _compare(verdict, name, value, actual[name], kept[name])
        for output in pruned.ir.graph.outputs:
            assert actual[output.name or ""].shape == expected[output.name or ""].shape
    return verdict


def _kept(walk: Walk, value: ir.Value, removed: np.ndarray) -> list[object]:
    """What stays of each axis: a mask; a list of them for digits, None for one that varies."""

    def mask(labels: np.ndarray | None) -> np.ndarray | None:
        return None if labels is None else walk.atoms.kept(labels, removed)

    found: list[object] = [mask(labels) for labels in walk.labels[value]]
    for axis in range(len(found)):
        if digits := walk.digits.get((value, axis)):
            found[axis] = [mask(digit.labels) for digit in digits]
    return found


def _mask(keep, length: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    if not isinstance(keep, list):
        return keep
    known = int(np.prod([len(digit) for digit in keep if digit is not None]))
    whole = np.ones(1, bool)
    for digit in keep:
        part = np.ones(length // known, bool) if digit is None else digit
        whole = np.logical_and.outer(whole, part).ravel()
    return whole


def _everything(
    model: Model, inside: Sequence[str | None], feeds: Sequence[Mapping[str, np.ndarray]],
    worker: Worker,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """For each feed, all values of the main graph and some of those in bodies."""
    if not inside:
        yield from observe(model, watched(model), feeds, worker)
        return
    names = [value.name for value in watched(model)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        points = instrument(model, path, watch=[name for name in (*names, *inside) if name])
        outputs = list(worker.open(path).outputs)
        for feed in feeds:
            arrays = dict(zip(outputs, worker.step(feed)[0], strict=True))
            yield {name: arrays[output] for name, output in points.outputs.items()}
        worker.release()


def _assert_in_order(model: Model) -> None:
    _follow(model.ir.graph, set())


def _follow(graph: ir.Graph, outer: set[ir.Value]) -> None:
    made = outer | {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        late = [v.name for v in node.inputs if v is not None and v not in made]
        assert not late, f"{node.op_type} reads {late} before they are made"
        for body in read.bodies(node):
            _follow(body, made)
        made.update(node.outputs)
    assert made.issuperset(graph.outputs)


def _compare(verdict: Verdict, name: str, value: np.ndarray, actual: np.ndarray, kept) -> None:  # type: ignore[no-untyped-def]
    if value.size == 0:  # a branch that was not taken
        return
    turns = value.ndim - len(kept)  # one axis for each loop that it is in
    for axis, keep in enumerate(kept, turns):
        value = value if keep is None else value.compress(_mask(keep, value.shape[axis]), axis)
    assert value.shape == actual.shape, f"{name}: {actual.shape} instead of {value.shape}"
    finite = np.isfinite(value)
    if not finite.any():
        return
    largest = max(float(np.abs(value[finite]).max()), 1e-3)
    error = float(np.abs(value[finite].astype(np.float64) - actual[finite]).max()) / largest
    verdict.compared += 1
    if not error <= verdict.error:
        verdict.error, verdict.where = error, name


def _zeroed(walk: Walk, removed: np.ndarray) -> Model:
    """The original with zeros wherever a weight will be removed."""
    model = walk.model.clone()
    nodes = {node.outputs[0].name: node for node in model.ir.graph.all_nodes()}
    for slot, axes in walk.labels.items():
        value = slot[0] if isinstance(slot, tuple) else slot
        tensor = read.constant(value)
        keeps = [None if a is None else walk.atoms.kept(a, removed) for a in axes]
        if tensor is None or all(keep is None or keep.all() for keep in keeps):
            continue
        for use in value.uses():
            mine = not isinstance(slot, tuple) or (use.node, use.idx) == slot[1:]
            if not mine or (use.node.op_type, use.idx) in _NOT_ZEROED:
                continue
            array, zero = tensor.numpy().copy(), _zero_codes(use.node, use.idx, tensor)
            for axis, keep in enumerate(keeps):
                if keep is not None:
                    np.moveaxis(array, axis, 0)[~keep] = np.moveaxis(zero, axis, 0)[~keep]
            node = nodes[use.node.outputs[0].name]
            node.replace_input_with(use.idx, _initializer(model, value, array, tensor.dtype))
            model.touch_node(node)
    for node, labels in walk.gated:
        x, mine = node.inputs[0], nodes[node.outputs[0].name]
        assert x is not None
        kind = ir.DataType.from_numpy(walk.facts.dtype(x))
        mask = walk.atoms.kept(labels, removed).astype(kind.numpy())
        gate = ir.Node("", "Mul", [mine.inputs[0], _initializer(model, x, mask, kind)])
        gate.outputs[0].name = model.unused_name(f"{x.name}.gated")
        mine.graph.insert_before(mine, gate)
        mine.replace_input_with(0, gate.outputs[0])
        model.touch(gate.outputs[0].name)
        model.touch_node(mine)
    return model


def _zero_codes(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> np.ndarray:
    """For every element of an operand, the code that stands for zero."""
    shape = tuple(tensor.shape.numpy())
    point = _CODES.get((node.op_type, index))
    value = node.inputs[point] if point is not None and point < len(node.inputs) else None
    if value is None:
        return np.zeros(shape, tensor.numpy().dtype)
    points = read.constant(value).numpy()
    axis = {"DequantizeLinear": 1, "ConvInteger": 0, "QGemm": 0, "QLinearConv": 0}.get(
        node.op_type, -1
    )
    if "axis" in node.attributes:
        axis = node.attributes["axis"].as_int()
    if node.op_type == "DynamicQuantizeLSTM":  # [directions] or [directions, gates]
        points = points.reshape(len(points), 1, -1)
    elif points.ndim == 1 and points.size > 1:
        points = points.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    elif points.ndim > 1:
        block = node.attributes["block_size"].as_int()
        points = points.repeat(block, axis).take(range(shape[axis]), axis)
    return np.broadcast_to(points, shape)


def _initializer(model: Model, like: ir.Value, array: np.ndarray, kind: ir.DataType) -> ir.Value:
    name = model.unused_name(f"{like.name}.zeroed")
    value = ir.Value(
        name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, dtype=kind, name=name),
    )  # fmt: skip
    model.ir.graph.register_initializer(value)
    if model.ir.ir_version < 4:
        model.ir.graph.inputs.append(value)
    model.touch(name)
    return value
