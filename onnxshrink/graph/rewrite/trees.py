"""Tree ensembles of ai.onnx.ml, in the fewest numbers that give the same answers.

The operators of versions 1 to 3 spell out every leaf as a node, every mode as a text, and a weight
for each class at each leaf. ``TreeEnsemble`` of version 5 has arrays for the splits alone, and any
number of splits may name one leaf. Where a leaf weighs several classes, the trees answer with the
number of a row, and the rows are a table beside them, which others can shrink.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.ml import DOMAIN, MlOperator, Standard, label_of, labels_of

KINDS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
#: The version that has ``TreeEnsemble``, and has the older operators no more.
VERSION = 5
_MODES = {
    "BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4,
    "BRANCH_NEQ": 5,
}  # fmt: skip
_LEAF = "LEAF"
AGGREGATES = {"AVERAGE": 0, "SUM": 1}
_INPUTS = {ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64}
_MOST_ROWS = 2**24  # numbers of rows are float32 on the way

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Forest:
    """Trees: splits, and the leaves that they end at.

    Attributes:
        feature: Of each split, the input's column.
        threshold: What the column is compared with.
        mode: How, by the numbers of ``TreeEnsemble``.
        missing: Whether a missing value takes the true branch.
        children: [splits, 2]: the true and the false branch; a split, or ``~row`` for a leaf.
        roots: The same for each tree.
        rows: [leaves, targets]: what leaves weigh; float32.
        votes: Which of these a leaf weighs at all.
    """

    feature: Ints
    threshold: Floats
    mode: npt.NDArray[np.uint8]
    missing: npt.NDArray[np.bool_]
    children: Ints
    roots: Ints
    rows: Floats
    votes: npt.NDArray[np.bool_]

    @property
    def single(self) -> bool:
        """Whether no leaf weighs more than one target."""
        return bool((self.votes.sum(1) <= 1).all())

    @property
    def complete(self) -> bool:
        """Whether every target has a tree all of whose leaves weigh it."""
        found = np.zeros(self.votes.shape[1], bool)
        for root in self.roots.tolist():
            votes, ahead = np.ones(self.votes.shape[1], bool), [root]
            while ahead and votes.any():
                child = ahead.pop()
                if child < 0:
                    votes &= self.votes[~child]
                else:
                    ahead += self.children[child].tolist()
            found |= votes
        return bool(found.all())

    def merged(self) -> Forest:
        """The same trees without splits whose sides are equal, and with equal leaves as one."""
        whole = np.concatenate([self.rows.view(np.uint32), self.votes], 1)
        first, row = np.unique(whole, axis=0, return_index=True, return_inverse=True)[1:]
        row = row.reshape(-1)
        known: dict[tuple[Any, ...], int] = {}
        kept: list[int] = []
        sides: list[tuple[int, int]] = []
        number: dict[int, int] = {}  # a split before -> what it is now

        def now(child: int) -> int:
            return ~int(row[~child]) if child < 0 else number[child]

        roots = []
        shape: dict[int, int] = {}  # equal subtrees have equal numbers

        def form(child: int) -> int:
            return child if child < 0 else shape[child]

        for root in self.roots.tolist():
            ahead = [root]
            while ahead:  # children before their parents
                split = ahead[-1]
                if split < 0 or split in number:
                    ahead.pop()
                    continue
                later = [c for c in self.children[split].tolist() if c >= 0 and c not in number]
                if later:
                    ahead += later
                    continue
                ahead.pop()
                true, false = (now(child) for child in self.children[split].tolist())
                if form(true) == form(false):
                    number[split] = true
                    continue
                number[split] = len(kept)
                kept.append(split)
                sides.append((true, false))
                key = (
                    int(self.feature[split]), float(self.threshold[split]),
                    int(self.mode[split]), bool(self.missing[split]), form(true), form(false),
                )  # fmt: skip
                shape[number[split]] = known.setdefault(key, number[split])
            roots.append(now(root))
        used = np.array(kept, np.int64)
        return replace(
            self, feature=self.feature[used], threshold=self.threshold[used],
            mode=self.mode[used], missing=self.missing[used],
            children=np.array(sides, np.int64).reshape(-1, 2), roots=np.array(roots, np.int64),
            rows=self.rows[first], votes=self.votes[first],
        )._in_order()  # fmt: skip

    def _in_order(self) -> Forest:
        """The splits that are reached, a parent in front of its branches, a tree at a time."""
        order: list[int] = []
        for root in self.roots.tolist():
            ahead = [root]
            while ahead:
                split = ahead.pop()
                if split >= 0:
                    order.append(split)
                    ahead += self.children[split, ::-1].tolist()
        used = np.array(order, np.int64)
        place = np.zeros(len(self.feature), np.int64)
        place[used] = np.arange(len(used))

        def moved(found: Ints) -> Ints:
            return np.where(found < 0, found, place[np.maximum(found, 0)] if len(place) else found)

        return replace(
            self, feature=self.feature[used], threshold=self.threshold[used],
            mode=self.mode[used], missing=self.missing[used],
            children=moved(self.children[used]), roots=moved(self.roots),
        )  # fmt: skip


def forest(node: ir.Node, targets: int) -> Forest:
    """The trees of a node, with every leaf a row of ``targets`` weights.

    Raises:
        ValueError: It says something else than trees do, or in a way that is not known.
    """
    role = "class" if node.op_type == KINDS[0] else "target"

    def ints(name: str) -> Ints:
        return np.array(read.integers(node, name) or (), np.int64)

    known = "_as_tensor" in "".join(node.attributes)
    if known:
        raise ValueError("has thresholds or weights of float64")
    tree, own = ints("nodes_treeids"), ints("nodes_nodeids")
    modes = np.array(read.texts(node, "nodes_modes") or ())
    values = np.array(read.numbers(node, "nodes_values") or (), np.float32)
    count = len(own)
    if not count or {len(tree), len(modes), len(values)} != {count}:
        raise ValueError("has lists of different lengths")
    if unknown := set(modes.tolist()) - set(_MODES) - {_LEAF}:
        raise ValueError(f"compares by {', '.join(sorted(unknown))}")
    place = {pair: at for at, pair in enumerate(zip(tree.tolist(), own.tolist(), strict=True))}
    if len(place) != count:
        raise ValueError("has two nodes of one number")
    leaf = modes == _LEAF
    leaves, splits = np.flatnonzero(leaf), np.flatnonzero(~leaf)
    code = np.zeros(count, np.int64)
    code[leaves], code[splits] = ~np.arange(len(leaves)), np.arange(len(splits))
    children = np.zeros((len(splits), 2), np.int64)
    for side, name in enumerate(("nodes_truenodeids", "nodes_falsenodeids")):
        ends = ints(name)
        for at, split in enumerate(splits.tolist()):
            end = place.get((int(tree[split]), int(ends[split])))
            if end is None:
                raise ValueError("names nodes that it does not have")
            children[at, side] = code[end]
    rows = np.zeros((len(leaves), targets), np.float32)
    votes = np.zeros((len(leaves), targets), bool)
    weights = np.array(read.numbers(node, f"{role}_weights") or (), np.float32)
    pairs = zip(ints(f"{role}_treeids").tolist(), ints(f"{role}_nodeids").tolist(), strict=True)
    ids = ints(f"{role}_ids")
    ends = np.array([~code[place[pair]] if pair in place else -1 for pair in pairs], np.int64)
    if len(ends) != len(ids) or len(ids) != len(weights) or (ends < 0).any():
        raise ValueError("weighs what is no leaf")
    which = ids if targets > 1 else np.zeros_like(ids)
    if (which < 0).any() or (which >= targets).any():
        raise ValueError("weighs targets that it does not have")
    np.add.at(rows, (ends, which), weights)
    votes[ends, which] = True
    starts = np.unique(tree, return_index=True)[1]
    below = np.zeros(count, bool)
    below[splits[children[children >= 0]]] = True
    below[leaves[~children[children < 0]]] = True
    if below[starts].any() or (~below).sum() != len(starts):
        raise ValueError("has trees that do not begin with their root")
    missing = ints("nodes_missing_value_tracks_true").astype(bool)
    return Forest(
        ints("nodes_featureids")[splits], values[splits],
        np.array([_MODES[mode] for mode in modes[splits].tolist()], np.uint8),
        missing[splits] if len(missing) else np.zeros(len(splits), bool),
        children, code[starts], rows, votes,
    )  # fmt: skip


def merges(node: ir.Node) -> bool:
    """Whether a node is one that :func:`rewrite` knows."""
    return node.domain == DOMAIN and node.op_type in KINDS


def is_ensemble(node: ir.Node) -> bool:
    """Whether a node holds trees, in whichever version."""
    return node.domain == DOMAIN and node.op_type in (*KINDS, "TreeEnsemble")


def rewrite(model: Model, operator: MlOperator) -> tuple[int, int, str]:
    """Put ``TreeEnsemble`` in the place of a node.

    Args:
        model: The model, whose journal is kept; the caller sets the version of the domain.
        operator: One of ``ml.find`` of :data:`KINDS`.

    Returns:
        Bytes of the node, and of what took its place; and what was merged.

    Raises:
        ValueError: Why it is left alone; the model is as it was.
    """
    node = operator.node
    if reason := read.obstacle(node):
        raise ValueError(f"{reason}; inline it first")
    if operator.dtype not in _INPUTS:
        raise ValueError("reads float64, or a type that is not known")
    if operator.rank != 2:
        raise ValueError("reads an input that is not known to have two axes")
    opset = (model.ir.opset_imports | operator.root.opset_imports).get("", VERSION)
    if opset < 13:
        raise ValueError(f"needs opset 13 or later, the model has {opset}")
    before = len(ir.to_proto(node).SerializeToString())
    standard = Standard(model, operator, opset)
    if node.op_type == KINDS[0]:
        results, note = _classifier(standard)
    else:
        results, note = _regressor(standard)
    return before, standard.finish(results), note


def _classifier(standard: Standard) -> tuple[list[ir.Value], str]:
    node = standard.operator.node
    labels = labels_of(standard.operator)
    if not isinstance(labels, list) and not labels.size:
        labels = np.array(read.integers(node, "classlabels_int64s") or (), np.int64)
    ids = set(read.integers(node, "class_ids") or ())
    transform = read.text(node, "post_transform", "NONE")
    base = standard.operator.numbers("base_values")
    if len(labels) == 2:
        return _binary(standard, labels, ids, transform, base)
    if len(labels) < 3 or len(base) not in (0, len(labels)):
        raise ValueError(f"has {len(labels)} classes and {len(base)} base values")
    if transform not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise ValueError(f"has the post_transform {transform!r}")
    found = forest(node, len(labels))
    if not found.complete:  # ONNX Runtime does not take it for the answer, whatever its score
        raise ValueError("has a class for which no tree votes at every leaf")
    scores, note = _scores(standard, found, len(labels), "SUM", base)
    results = {
        "NONE": lambda: scores,
        "SOFTMAX": lambda: standard.node("Softmax", scores, axis=1),
        "LOGISTIC": lambda: standard.node("Sigmoid", scores),
    }[transform]()
    return [label_of(standard, scores, labels), results], note


def _binary(
    standard: Standard, labels: np.ndarray | list[bytes], ids: set[int], transform: str,
    base: np.ndarray,
) -> tuple[list[ir.Value], str]:  # fmt: skip
    """Two classes of which one is weighed: the other has the rest, or the opposite."""
    node = standard.operator.node
    if ids != {0} or len(base) or transform not in ("NONE", "LOGISTIC"):
        raise ValueError(
            f"has two classes, weights of {len(ids)}, {len(base)} base values, and ends in "
            f"{transform}"
        )
    positive = min(read.numbers(node, "class_weights") or (0,)) >= 0
    score, note = _scores(standard, forest(node, 1), 1, "SUM", base)
    opposite = standard.node("Neg", score)
    rest = opposite
    if positive:  # shares, of which more than a half decides
        one = standard.constant(np.array([1], np.float32), "one")
        rest = standard.node("Sub", one, score)
    decided = standard.node("Concat", rest, score, axis=1)
    results = decided
    if transform == "LOGISTIC":
        results = standard.node("Concat", opposite, score, axis=1) if positive else decided
        results = standard.node("Sigmoid", results)
    return [label_of(standard, decided, labels), results], note


def _regressor(standard: Standard) -> tuple[list[ir.Value], str]:
    node = standard.operator.node
    targets = read.integer(node, "n_targets", 1)
    aggregate = read.text(node, "aggregate_function", "SUM")
    transform = read.text(node, "post_transform", "NONE")
    if aggregate not in AGGREGATES or transform != "NONE":
        raise ValueError(f"aggregates by {aggregate} and ends in {transform}")
    base = standard.operator.numbers("base_values")
    if len(base) not in (0, targets):
        raise ValueError(f"has {targets} targets and {len(base)} base values")
    result, note = _scores(standard, forest(node, targets), targets, aggregate, base)
    return [result], note


def _scores(
    standard: Standard, before: Forest, targets: int, aggregate: str, base: np.ndarray
) -> tuple[ir.Value, str]:
    """What the trees say, [rows, targets], and what was merged."""
    found = before.merged()
    trees = len(found.roots)
    if found.single:
        result = ensemble(standard, found, targets, aggregate)
        note = ""
    else:
        if len(found.rows) >= _MOST_ROWS:
            raise ValueError(f"has {len(found.rows)} different leaves")
        numbers = ensemble(standard, found, trees, "SUM", numbered=True)
        table = standard.constant(found.rows, "leaves")
        rows = standard.node("Gather", table, standard.cast(numbers, ir.DataType.INT32), axis=0)
        axis = standard.constant(np.array([1], np.int64), "trees")
        result = standard.node("ReduceSum", rows, axis, keepdims=0)
        if aggregate == "AVERAGE":
            share = standard.constant(np.array(1 / trees, np.float32), "share")
            result = standard.node("Mul", result, share)
        note = f", a table of {len(found.rows):,} leaves"
    if base.size:
        result = standard.node("Add", result, standard.constant(base, "base"))
    splits, leaves = len(before.feature) - len(found.feature), len(before.rows) - len(found.rows)
    return result, f"TreeEnsemble{note}; {splits:,} splits and {leaves:,} leaves merged"


def ensemble(
    standard: Standard, found: Forest, targets: int, aggregate: str, numbered: bool = False
) -> ir.Value:
    """A TreeEnsemble; ``numbered``: each tree is a target, and says the number of its row."""
    roots, children = found.roots, found.children
    feature, threshold, mode = found.feature, found.threshold, found.mode
    missing = found.missing
    if (bare := roots < 0).any():  # a tree that is a leaf begins with a split all the same
        more = int(bare.sum())
        children = np.concatenate([children, np.repeat(roots[bare][:, None], 2, 1)])
        roots = roots.copy()
        roots[bare] = np.arange(len(feature), len(feature) + more)
        feature = np.concatenate([feature, np.zeros(more, np.int64)])
        threshold = np.concatenate([threshold, np.zeros(more, np.float32)])
        mode = np.concatenate([mode, np.zeros(more, np.uint8)])
        missing = np.concatenate([missing, np.zeros(more, bool)])
    ends = np.flatnonzero((children < 0).reshape(-1))
    row = ~children.reshape(-1)[ends]
    if numbered:
        pairs = np.stack([_tree_of(children, roots)[ends // 2], row], 1)
        leaves, which = np.unique(pairs, axis=0, return_inverse=True)
        target, weight = leaves[:, 0], leaves[:, 1].astype(np.float32)
    else:
        kept, which = np.unique(row, return_inverse=True)
        target, weight = found.votes[kept].argmax(1), found.rows[kept].max(1, initial=-np.inf)
        picked = np.take_along_axis(found.rows[kept], target[:, None], 1)[:, 0]
        weight = picked.astype(np.float32)
    flat = children.reshape(-1).copy()
    flat[ends] = which.reshape(-1)
    places, is_leaf = flat.reshape(-1, 2), (children < 0).astype(np.int64)
    attributes: dict[str, Any] = {
        "n_targets": targets, "aggregate_function": AGGREGATES[aggregate], "post_transform": 0,
        "tree_roots": roots.tolist(), "nodes_featureids": feature.tolist(),
        "nodes_splits": ir.Tensor(threshold), "nodes_modes": ir.Tensor(mode),
        "nodes_truenodeids": places[:, 0].tolist(), "nodes_trueleafs": is_leaf[:, 0].tolist(),
        "nodes_falsenodeids": places[:, 1].tolist(), "nodes_falseleafs": is_leaf[:, 1].tolist(),
        "leaf_targetids": target.tolist(), "leaf_weights": ir.Tensor(weight),
    }  # fmt: skip
    if missing.any():
        attributes["nodes_missing_value_tracks_true"] = missing.astype(np.int64).tolist()
    value = standard.cast(standard.input, ir.DataType.FLOAT)
    result = standard.node("TreeEnsemble", value, domain=DOMAIN, **attributes)
    if standard.operator.node.name and (made := result.producer()) is not None:
        made.name = standard.operator.node.name  # reports know it by that
    return result


def _tree_of(children: Ints, roots: Ints) -> Ints:
    """The tree that each split is in."""
    tree = np.zeros(len(children), np.int64)
    for number, root in enumerate(roots.tolist()):
        ahead = [root]
        while ahead:
            split = ahead.pop()
            tree[split] = number
            ahead += [child for child in children[split].tolist() if child >= 0]
    return tree


def import_version(model: Model) -> None:
    """Let the model, and functions that need it, have the version of ``TreeEnsemble``."""
    imports = [model.ir.opset_imports, *(f.opset_imports for f in model.ir.functions.values())]
    for versions in imports:
        if DOMAIN in versions:
            versions[DOMAIN] = max(VERSION, versions[DOMAIN])
