"""The model before it is quantized: prepared, and what its nodes were when it came in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
    from onnxshrink.graph.forms.qdq import Node
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized

_log = logging.getLogger(__name__)

#: Rewriters that leave fewer nodes between integer kernels, in this order.
_PREPARING = (
    "forward_constants",
    "fold_constants",
    "fold_batch_norms",
    "fold_pads",
    "fold_biases",
    "share_duplicates",
    "share_subexpressions",
    "drop_unused",
)
_EXACT = 1e-3  # relative output error that preparing a model may cause


@dataclass(frozen=True)
class FormerNode:
    """What a node was called in the model that came in.

    Attributes:
        op_type: Its type.
        names: Its own, its outputs', those of its constants.
        constants: Name and bytes of its constants, by the number of the input.
    """

    op_type: str
    names: tuple[str, ...]
    constants: Mapping[int, tuple[str, int]]


@dataclass(frozen=True)
class Alias:
    """A weight under all its names, for patterns."""

    op_type: str
    types: set[str]
    names: tuple[str, ...]


class Preparation:
    """One model on its way, and what its nodes were when it came in.

    Args:
        model: Edited in place.
        ctx: Inputs, worker and report.

    Attributes:
        reasons: Why nodes stay in floating point.
        taken: How weights were stored that are plain floats for now.
    """

    def __init__(self, model: Model, ctx: Context):
        from onnxshrink.graph.forms import codes, integer_kernels

        self.model, self.ctx = model, ctx
        self.taken = codes.take_out(model, integer_kernels.wants_codes, halves=True)
        self.origins = {node: _origin(node) for node in model.nodes}
        self.reasons: dict[Node, str] = {}
        every = self.origins.values()
        self._names = {name for origin in every for name, _ in origin.constants.values()}

    def leave(self, one: IntegerCandidate, reason: str) -> None:
        """Report a node that stays in floating point."""
        self.reasons[one.node] = reason
        self.ctx.skip(one.name, reason)

    def why_stored(self, view: WeightView) -> str:
        """Why no integer kernel takes a weight, as far as it is one of a product."""
        known = (self.reasons[use.node] for use in view.uses if use.node in self.reasons)
        product = view.main.product is not None
        return next(known, f"no integer kernel for {view.op_type}" if product else "")

    def came_with(self, name: str) -> bool:
        """Whether the model had a constant of this name."""
        return name in self._names

    def raise_opset(self, version: int) -> list[str]:
        """Raise the operator set to what quantize and dequantize nodes need; what was done.

        Raises:
            UnsupportedModel: The converter refuses the model.
        """
        from onnxshrink.graph.rewrite import opset

        before = self.model.opset
        known = {origin.names[1]: origin for origin in self.origins.values()}
        if not opset.raise_opset(self.model, version):
            return []
        self.origins = {
            node: known[name]
            for node in self.model.nodes
            if (name := node.outputs[0].name or "") in known
        }
        return [f"opset {opset.needs(before, self.model)}"]

    def prepare(self) -> list[str]:
        """Fold what stands between integer kernels; what was done."""
        from onnxshrink.graph.rewrite import inline

        inline.tell_apart(self.model)
        trial, origins, done = self._rewritten(_PREPARING)
        if not done or not self._wrong(_PREPARING, trial):
            self._adopt(trial, origins)
            return done
        done = []
        for name in _PREPARING:  # one of them is wrong; the others may stand
            trial, origins, did = self._rewritten((name,))
            if did and (reason := self._wrong((name,), trial)):
                self.ctx.skip(name, f"dropped: {reason}")
            elif did:
                self._adopt(trial, origins)
                done += did
        return done

    def _wrong(self, names: tuple[str, ...], trial: Model) -> str:
        """Why a copy after some rewriters does not answer as before, found out once in a step."""
        known: dict[tuple[str, ...], str] = self.ctx.memo.setdefault("preparing", {})
        if names not in known:
            known[names] = self.ctx.verify(trial, _EXACT)
        return known[names]

    def _adopt(self, trial: Model, origins: dict[Node, FormerNode]) -> None:
        self.model.adopt(trial)
        self.origins = origins

    def _rewritten(self, names: Sequence[str]) -> tuple[Model, dict[Node, FormerNode], list[str]]:
        """A copy after some rewriters, what its nodes were, and what was done."""
        from onnxshrink.graph.rewrite import clean, fold

        model, origins, done = self.model, self.origins, []
        for name in names:
            trial = model.clone()
            pairs = zip(model.nodes, trial.nodes, strict=True)
            followed = {copy: origins[node] for node, copy in pairs if node in origins}
            before = sum(1 for _ in trial.nodes)
            try:
                getattr(fold if hasattr(fold, name) else clean, name)(trial)
            except Exception:  # a foreign rewriter may raise anything; the copy is lost
                _log.debug("%s fails on this model", name, exc_info=True)
                self.ctx.skip(name, "does not work on this model, which it leaves as it is")
                continue
            if removed := before - sum(1 for _ in trial.nodes):
                model, origins = trial, followed
                done.append(f"{name}: {removed} nodes less")
        return model, origins, done

    def named(self, one: IntegerCandidate) -> IntegerCandidate:
        """The same under the names that its node had too."""
        origin = self.origins.get(one.node)
        if origin is None:
            return one
        return replace(one, aliases=origin.names, types={one.op_type, origin.op_type})

    def alias(self, view: WeightView) -> Alias:
        """A weight under the names that it had too."""
        origins = [self.origins[use.node] for use in view.uses if use.node in self.origins]
        types = view.types | {origin.op_type for origin in origins}
        more = (name for origin in origins for name in origin.names)
        return Alias(view.op_type, types, (*view.names, *more))

    def original(self, node: Node, index: int) -> tuple[str, int] | None:
        """Name and bytes that a node's constant came with; None if it came with none."""
        origin = self.origins.get(node)
        found = None if origin is None else origin.constants.get(index)
        if found is not None and found[0] in self.taken:
            return found[0], self.taken[found[0]].nbytes
        return found

    def codes(self, one: IntegerCandidate) -> Quantized | None:
        """The codes that a product's weight came in, in 8 bits; None where it came in floats.

        Their scales are those of the weight as it is now.
        """
        view = one.weight
        assert view is not None
        name, _ = self.original(one.node, 1 - one.operands[0]) or (view.name, 0)
        found = self.taken.get(name)
        found = None if found is None else found.of(view)
        return None if found is None else found.eight_bits()

    def put_back(self) -> None:
        """Store weights that are still floats, and came in another form, in that."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codes

        views = list(weights.find(self.model))
        why = {view.name: self.why_stored(view) for view in views if view.name in self.taken}
        for name in codes.put_back(self.model, views, self.taken):
            reason = f" ({why[name]})" * bool(why[name])
            self.ctx.skip(name, f"stays in the form in which it came{reason}")


def _origin(node: Node) -> FormerNode:
    from onnxshrink.graph.read import constant

    constants = {}
    for index, value in enumerate(node.inputs):
        tensor = None if value is None else constant(value)
        if value is not None and tensor is not None:
            constants[index] = value.name or "", tensor.nbytes
    outputs = [value.name or "" for value in node.outputs] or [""]
    names = (node.name or "", *outputs, *(name for name, _ in constants.values()))
    return FormerNode(node.op_type, names, constants)
