"""Spend bits where they matter: integer codes on uniform grids, made for entropy coding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxshrink.errors import InputsMissing, RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.observers import Need


@dataclass(frozen=True, kw_only=True)
class QuantizeRd(Pass):
    """Spend bits where they matter: integer codes on uniform grids, made for entropy coding.

    Every weight gets a grid of its own step, chosen by how much its noise moves the outputs, and
    is rounded with error feedback (GPTQ). Codes are stored as int8 and folded by ONNX Runtime when
    it loads the model; the saving beyond 8 bits comes with ``--storage coded`` or ``packed`` (or
    ``onnxshrink pack``), which code them at 2 to 4 bits a weight. Goals in bits and bytes are those
    of the storage that is asked for, of a packed sidecar where none is. Small, depthwise and
    one-hot layers keep 8 bits, or more where 8 lose what is to be spent.

    It needs real inputs, 32 to 64 of them. One half fits, the other judges; with no goal given it
    goes as far down as keeps 99 % of the top-1 answers where outputs are probabilities, else a
    likeness of .99 (the cosine, less what the scale is off), on the half that judges.
    """

    runs_models: ClassVar[bool] = True
    for_packing: ClassVar[bool] = True

    bits_per_weight: float | None = option(
        None, help="mean bits of a weight after entropy coding", ge=0.1, le=16
    )
    target_ratio: float | None = option(
        None, help="how many times smaller the packed or coded model must be than the input", ge=1
    )
    lam: float | None = option(
        None, help="squared output error to spend, shared by all weights", ge=0, also=("lambda",)
    )
    min_fidelity: float | None = option(
        None, help="least agreement or likeness on the inputs that judge", ge=0, le=1
    )
    measure: Literal["auto", "agreement", "cosine"] = option(
        "auto",
        help="what fidelity means; auto: agreement where outputs are probabilities, else likeness;"
        " cosine: the scale of outputs does not matter",
    )
    requantize: bool = option(
        False,
        help="weights that are integers already, too, which costs accuracy once more; those of "
        "integer kernels get coarser codes, and are rebuilt for them as the model loads",
    )
    beside_integers: bool = option(
        False,
        help="for integer kernels: where weights of 8 bits lose more than half of what may be lost,"
        " lose twice as much as they do",
    )
    weights: Select = select()

    @property
    def bound(self) -> float:
        """The search holds the outputs; this only refuses what no longer resembles them."""
        return 0.7

    def needs(self, model: Model) -> Iterator[Need]:
        """Second moments of what each selected weight is multiplied with; lookups of tables."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import codes
        from onnxshrink.graph.weights import second_moments
        from onnxshrink.passes.quantize_rd.plain_weights import kept_at_eight

        if self.requantize:
            model = model.clone()
            codes.take_out(model, codes.is_weight)
        for view in weights.find(model):
            if not self.weights.why_not(view) and not kept_at_eight(view):
                yield from second_moments.needs(view)
                if (lookups := second_moments.lookups(view)) is not None:
                    yield lookups

    def apply(self, model: Model, ctx: Context) -> None:
        """Measure, allocate, round, and store codes in place of weights."""
        from onnxshrink.graph.forms import codes, integer_codes
        from onnxshrink.graph.rewrite import clean
        from onnxshrink.passes.quantize_rd.bearing import delicate
        from onnxshrink.passes.quantize_rd.rates import StepSearch
        from onnxshrink.passes.quantize_rd.storage import store, store_packed

        self._check_goals()
        before = model.stored_bytes()
        taken = codes.take_out(model, codes.is_weight) if self.requantize else {}
        known = self._found(model)
        names = {(use.node, use.index): v.name for v in known if v.uses for use in [v.main]}
        norms = 0
        if any(
            (view.uses or integer_codes.takes(view))
            and not self.weights.why_not(view, any_role=True)
            for view in known
        ):
            _check_inputs(ctx)
            norms = _norms(model)
            clean.fold_batch_norms(model)  # a grid must suit the scales that norms multiply with
        views, vectors = [], []
        for view, _ in ctx.each(self, self._found(model), any_role=True):
            if view.uses or integer_codes.takes(view):
                views.append(view)
            elif view.is_vector:
                vectors.append(view)
            else:
                ctx.skip(view, view.why_not)
        views = [view for view in views if _fits(view, ctx)]
        if views and (left := delicate(model, views, vectors, self, ctx)):
            views, vectors = ([v for v in some if v not in left] for some in (views, vectors))
        if not views:
            codes.put_back(model, self._found(model), taken)
            return
        search = StepSearch(self, model, views, ctx)
        spend = search.spend()
        if self.bits_per_weight is not None:
            budget = self.bits_per_weight * sum(view.size for view in views) / 8
            spend = search.spend_bytes(budget, spend)
        if self.target_ratio is None:
            ctx.step.chosen["lam"] = spend
        # Folding a norm changes the weight's name, and not where it is used.
        called = {
            v: names.get((v.main.node, v.main.index), v.name) if v.uses else v.name for v in views
        }
        came = {name: (one.nbytes, search.nbytes(one.numbers)) for name, one in taken.items()}
        for view in views:
            if integer_codes.takes(view):
                came[view.name] = view.nbytes, search.nbytes(view.tensor.numpy())
                view.release()
        if self.target_ratio is None:
            store(model, search.stored(spend), vectors, called, came, ctx)
        else:
            goal = before / self.target_ratio
            store_packed(model, search, spend, goal, vectors, called, came, ctx)
        codes.put_back(model, self._found(model), taken)
        ctx.step.may_grow = bool(came)  # codes of int8 that pack to fewer bits take as much here
        if folded := norms - _norms(model):
            ctx.changed("norms", 0, kind="graph", note=f"{folded} folded into convolutions")

    def _found(self, model: Model) -> list[WeightView]:
        """The weights of a model; if they are asked for, those of integer kernels as free ones."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.forms import integer_codes

        found = weights.find(model)
        return list(integer_codes.unlocked(found) if self.requantize else found)

    def _check_goals(self) -> None:
        goals = ("bits_per_weight", "target_ratio", "lam", "min_fidelity")
        given = [name for name in goals if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{self.name}: give one of {' and '.join(given)}, not both")


def _check_inputs(ctx: Context) -> None:
    if not ctx.feeds or ctx.generated:
        raise InputsMissing("quantize-rd needs real inputs: give --calibration DATA")


def _fits(view: WeightView, ctx: Context) -> bool:
    import numpy as np

    finite = bool(np.isfinite(view.array().astype(np.float32)).all())
    view.release()
    if not finite:
        ctx.skip(view, "holds NaN or infinity")
    return finite


def _norms(model: Model) -> int:
    from onnxshrink.graph.operators import Norm, of

    rows = (of(node, Norm) for node in model.nodes)
    return sum(row is not None and bool(row.fixed) for row in rows)
