"""The numbers in ``TreeEnsemble``: read, rounded, and written where they were.

What leaves weigh is one table for every ensemble, wherever it is stored: in the node, or beside it
where leaves weigh several targets (see :mod:`onnxshrink.graph.rewrite.trees`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import ml, trees
from onnxshrink.graph.rewrite.trees import Floats, Forest
from onnxshrink.kernels.short_numbers import shortest_between

KIND = "TreeEnsemble"
_LEQ, _LT, _GTE, _GT = range(4)
_NEAR = 2.0**-8  # of a threshold beyond all data: how far it may move


@dataclass(frozen=True)
class Ensemble:
    """An ensemble, and where its leaves are.

    Attributes:
        operator: The node.
        forest: Its trees.
        table: The rows of leaves, where they lie beside the node.
    """

    operator: ml.MlOperator
    forest: Forest
    table: ir.Value | None

    @property
    def input(self) -> ir.Value:
        """What the node reads."""
        value = self.operator.node.inputs[0]
        assert value is not None
        return value


def find(model: Model) -> Iterator[tuple[ml.MlOperator, Ensemble | str]]:
    """Every ``TreeEnsemble``; one that is not understood with the reason."""
    for operator in ml.find(model, (KIND,)):
        try:
            yield operator, _read(operator)
        except ValueError as error:
            yield operator, str(error)


def with_fewer_leaves(forest: Forest, bits: int) -> Forest:
    """The trees with at most ``2**bits`` values of each sign for what a leaf weighs.

    Values are spread evenly: errors of trees add up in one unit. Zero and the largest value of a
    target stay as they are. Leaves that become equal are one, and splits between them go.
    """
    most = np.abs(forest.rows).max(axis=0, initial=0.0)
    step = np.where(most > 0, most.astype(np.float64) / (2**bits - 1), 1.0)
    rounded = (np.rint(forest.rows / step) * step).astype(np.float32)
    return replace(forest, rows=np.where(forest.votes, rounded, forest.rows)).merged()


def with_short_thresholds(forest: Forest, data: Floats) -> Forest:
    """The trees with the shortest thresholds that send every row of data the same way.

    A threshold goes no further than half the way to the next value of its column.

    Args:
        forest: The trees.
        data: [rows, columns]: what they read.
    """
    thresholds = forest.threshold.copy()
    for column in np.unique(forest.feature).tolist():
        values = np.unique(data[:, column][np.isfinite(data[:, column])])
        for at in np.flatnonzero(forest.feature == column).tolist():
            thresholds[at] = _shortened(thresholds[at], int(forest.mode[at]), values)
    return replace(forest, threshold=thresholds).merged()


def write(model: Model, stored: Ensemble, forest: Forest) -> tuple[int, int]:
    """Put other trees in the place of an ensemble's; bytes before and after.

    Args:
        model: The model, whose journal is kept.
        stored: One of :func:`find`.
        forest: The same number of trees, with leaves of as many targets.
    """
    node, operator = stored.operator.node, stored.operator
    before = len(ir.to_proto(node).SerializeToString())
    extra = 0
    if stored.table is not None:
        extra = forest.rows.nbytes
        before += stored.forest.rows.nbytes
        surgery.set_constant(model, stored.table, forest.rows)
    standard = ml.Standard(model, operator, trees.VERSION)
    targets = read.integer(node, "n_targets", 1)
    aggregate = read.integer(node, "aggregate_function", 1)
    name = next(name for name, number in trees.AGGREGATES.items() if number == aggregate)
    result = trees.ensemble(standard, forest, targets, name, numbered=stored.table is not None)
    return before, standard.finish([result]) + extra


def _shortened(threshold: np.float32, mode: int, values: Floats) -> np.float32:
    if mode not in (_LEQ, _LT, _GTE, _GT) or not np.isfinite(threshold):
        return threshold
    # What is equal to the threshold is below it for ``<=`` and ``>``, and above it for the others.
    side: str = "right" if mode in (_LEQ, _GT) else "left"
    place = int(np.searchsorted(values, threshold, side=side))  # type: ignore[call-overload]
    near = abs(float(threshold)) * _NEAR
    low = (float(values[place - 1]) + threshold) / 2 if place else threshold - near
    high = (float(values[place]) + threshold) / 2 if place < len(values) else threshold + near
    found = np.float32(shortest_between(float(low), float(high)))
    same = place == np.searchsorted(values, found, side=side)  # type: ignore[call-overload]
    return found if same else threshold


def _read(operator: ml.MlOperator) -> Ensemble:
    node = operator.node
    if reason := read.obstacle(node):
        raise ValueError(f"{reason}; inline it first")
    if operator.dtype != ir.DataType.FLOAT or operator.rank != 2:
        raise ValueError("reads an input that is not known to be float32 with two axes")
    if read.integer(node, "post_transform", 0) or "membership_values" in node.attributes:
        raise ValueError("has sets, or a transform of its own")
    splits, weights = (_tensor(node, name) for name in ("nodes_splits", "leaf_weights"))
    modes = _tensor(node, "nodes_modes").astype(np.uint8)
    table = _table(node)

    def ints(name: str) -> trees.Ints:
        return np.array(read.integers(node, name) or (), np.int64)

    sides = [
        np.where(ints(f"nodes_{side}leafs") != 0, ~ints(f"nodes_{side}nodeids"),
                 ints(f"nodes_{side}nodeids"))
        for side in ("true", "false")
    ]  # fmt: skip
    target = ints("leaf_targetids")
    if table is None:
        count = read.integer(node, "n_targets", 1)
        rows = np.zeros((len(weights), count), np.float32)
        votes = np.zeros(rows.shape, bool)
        rows[np.arange(len(weights)), target] = weights
        votes[np.arange(len(weights)), target] = True
    else:
        stored = read.constant(table)
        assert stored is not None
        rows = stored.numpy()[weights.astype(np.int64)]
        votes = np.ones(rows.shape, bool)
    missing = ints("nodes_missing_value_tracks_true").astype(bool)
    forest = Forest(
        ints("nodes_featureids"), splits, modes,
        missing if len(missing) else np.zeros(len(splits), bool),
        np.stack(sides, 1), ints("tree_roots"), rows, votes,
    )  # fmt: skip
    return Ensemble(operator, forest, table)


def _tensor(node: ir.Node, name: str) -> npt.NDArray[np.float32]:
    found = node.attributes.get(name)
    if found is None or found.type != ir.AttributeType.TENSOR:
        raise ValueError(f"has no {name}")
    values = found.as_tensor().numpy()
    if values.dtype not in (np.float32, np.uint8):
        raise ValueError(f"has {name} of {values.dtype}")
    return np.asarray(values)


def _table(node: ir.Node) -> ir.Value | None:
    """The table whose rows a node numbers, as ``merge-trees`` writes it."""
    for cast, _ in node.outputs[0].uses():
        for gather, place in cast.outputs[0].uses() if operators.moves(cast) == "converts" else ():
            data = gather.inputs[0]
            if operators.looks_up(gather) and place == 1 and data is not None:
                constant = read.constant(data)
                if constant is None or constant.dtype != ir.DataType.FLOAT or len(data.uses()) > 1:
                    raise ValueError("numbers rows of a table that is no constant of its own")
                return data
    return None
