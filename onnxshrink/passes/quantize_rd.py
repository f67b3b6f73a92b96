"""Spend bits where they matter: integer codes on uniform grids, made for entropy coding."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.model import Model
    from onnxshrink.graph.weights import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.fidelity import Fidelity
    from onnxshrink.kernels.observers import Need
    from onnxshrink.kernels.rate import Codes, Layer
    from onnxshrink.runtime.trial import Trial
    from onnxshrink.runtime.worker import Worker

_log = logging.getLogger(__name__)
_PLAIN = 2048  # weights of fewer elements are not worth a search of their own
_LOOKED_UP = 2**20  # smaller tables are not worth the nodes that a lookup of integers takes
_MIDDLING = 0.5  # standard deviations: the step at which a layer's effect is first measured
_LEAST = 1e-9  # squared output error below which nothing was measured but rounding
_SPEND = 0.02  # squared output error that the search begins with
_FIDELITY = 0.99
_PROBES = 2, 4  # feeds on which the effect of each layer is measured, first and second time


@dataclass(frozen=True, kw_only=True)
class QuantizeRd(Pass):
    """Spend bits where they matter: integer codes on uniform grids, made for entropy coding.

    Every weight gets a grid of its own step, chosen by how much its noise moves the outputs, and
    is rounded with error feedback (GPTQ). Codes are stored as int8 and folded by ONNX Runtime when
    it loads the model; the saving beyond 8 bits comes with ``--storage packed`` (or ``onnxshrink
    pack``), which codes them at 2 to 4 bits a weight. Small, depthwise and one-hot layers keep 8
    bits.

    It needs real inputs, 32 to 64 of them. One half fits, the other judges; with no goal given it
    goes as far down as keeps 99 % of the top-1 answers where outputs are probabilities, else a
    cosine of .99, on the half that judges.
    """

    runs_models: ClassVar[bool] = True

    bits_per_weight: float | None = option(
        None, help="mean bits of a weight after entropy coding", ge=0.1, le=16
    )
    target_ratio: float | None = option(
        None, help="how many times smaller the packed model must be than the input", ge=1
    )
    lam: float | None = option(
        None, help="squared output error to spend, shared by all weights", ge=0, also=("lambda",)
    )
    min_fidelity: float | None = option(
        None, help="least agreement or cosine on the inputs that judge", ge=0, le=1
    )
    measure: Literal["auto", "agreement", "cosine"] = option(
        "auto", help="what fidelity means; auto: agreement where outputs are probabilities"
    )
    weights: Select = select()

    @property
    def bound(self) -> float:
        """The search holds the outputs; this only refuses what no longer resembles them."""
        return 0.7

    def needs(self, model: Model) -> Iterator[Need]:
        """Second moments of what each selected weight is multiplied with."""
        from onnxshrink.graph import moments, weights

        for view in weights.find(model):
            if not self.weights.why_not(view) and not _is_plain(view):
                yield from moments.needs(view)

    def apply(self, model: Model, ctx: Context) -> None:
        """Measure, allocate, round, and store codes in the place of weights."""
        from onnxshrink.graph import clean, weights
        from onnxshrink.passes.to_float16 import narrow
        from onnxshrink.runtime.worker import Worker

        self._check_goals()
        before = model.stored_bytes()
        if any(view.uses and not self.weights.why_not(view) for view in weights.find(model)):
            _check_inputs(ctx)
            clean.fold_batch_norms(model)  # a grid must suit the scales that norms multiply with
        views, vectors = [], []
        for view, _ in ctx.each(self, weights.find(model), any_role=True):
            if view.uses:
                views.append(view)
            elif len(view.shape) == 1:
                vectors.append(view)
            else:
                ctx.skip(view, view.why_not)
        views = [view for view in views if _fits(view, ctx)]
        if not views:
            return
        worker = ctx.worker or Worker()
        try:
            search = _Search(self, model, views, ctx, worker)
            spend = search.spend(before, sum(view.nbytes // 2 for view in vectors))
            for view, stored, note in search.stored(spend):
                _store(model, view, stored, note, ctx)
        finally:
            if worker is not ctx.worker:
                worker.close()
        for view in vectors:
            narrow(view, model, ctx)
            view.release()

    def _check_goals(self) -> None:
        goals = ("bits_per_weight", "target_ratio", "lam", "min_fidelity")
        given = [name for name in goals if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{self.name}: give one of {' and '.join(given)}, not both")


def _check_inputs(ctx: Context) -> None:
    if not ctx.feeds or ctx.generated:
        raise DataError("quantize-rd needs real inputs to measure with: give --calibration DATA")


@dataclass
class _Search:
    """One model's layers, what is known of them, and the trial that judges roundings."""

    options: QuantizeRd
    model: Model
    views: Sequence[WeightView]
    ctx: Context
    worker: Worker
    layers: list[Layer] = field(default_factory=list)
    plain: dict[str, Quantized] = field(default_factory=dict)

    def __post_init__(self) -> None:
        feeds = list(self.ctx.feeds)
        self._fit, self._judge = feeds[::2], feeds[1::2] or feeds
        self._by_name = {view.name: view for view in self.views}
        self._dampings: dict[str, float] = {}
        for view in self.views:
            if _is_plain(view):
                self.plain[view.name] = _eight_bits(view)

    def spend(self, before: int, saved: int) -> float:
        """The squared output error to spend for the goal."""
        from onnxshrink.kernels import rate
        from onnxshrink.kernels.fidelity import Fidelity
        from onnxshrink.runtime.trial import Trial

        names = [view.name for view in self.views if view.name not in self.plain]
        with closing(Trial(self.model, [*names, *self.plain], self.worker)) as trial:
            for name in trial.refused:
                self.plain.setdefault(name, _eight_bits(self._by_name[name]))
            names = [name for name in names if name not in trial.refused]
            self.layers = self._measured(names, trial)
            options = self.options
            if options.lam is not None:
                return options.lam
            if options.bits_per_weight is not None or options.target_ratio is not None:
                budget = self._budget(before, saved)
                return self._least(lambda spend: self._bits(self._codes(spend)) <= budget)
            least = _FIDELITY if options.min_fidelity is None else options.min_fidelity
            reference = Fidelity(trial.run(self._judge), options.measure)
            return rate.largest(
                lambda spend: self._score(self._codes(spend), trial, reference) >= least, _SPEND
            )

    def _measured(self, names: Sequence[str], trial: Trial) -> list[Layer]:
        """Layers fitted to the first half of the inputs, with what their noise does to outputs.

        Each is rounded alone, first at a middling step, then at the one that this suggests; its
        effect is measured on inputs of the other half, so that a fit to too few inputs is not
        mistaken for a good one.
        """
        import numpy as np

        from onnxshrink.kernels import rate
        from onnxshrink.kernels.fidelity import Fidelity

        found = [self._fitted(self._by_name[name], half=0) for name in names]
        steps = {
            layer.name: _MIDDLING * float(np.sqrt(np.square(layer.weights).mean())) or 1.0
            for layer in found
        }
        for turn, count in enumerate(_PROBES):
            probes = self._judge[:count]
            reference = Fidelity(trial.run(probes), self.options.measure)
            for number, layer in enumerate(found):
                done, total = turn * len(found) + number, len(_PROBES) * len(found)
                self.ctx.progress("measuring sensitivities", done, total)
                view, step = self._by_name[layer.name], steps[layer.name]
                noisy = _unfold(view, layer.codes(step) * np.float32(step))
                effect = reference.distortion(trial.run(probes, {layer.name: noisy}))
                sensitivity = max(effect, _LEAST) / step**2
                found[number] = replace(layer, sensitivity=sensitivity)
            steps = rate.steps(found, self.options.lam or _SPEND)
        return found

    def _fitted(self, view: WeightView, half: int | None) -> Layer:
        """A layer whose roundings are fitted to one half of the inputs, or to all."""
        import numpy as np

        from onnxshrink.graph import moments
        from onnxshrink.kernels import obs
        from onnxshrink.kernels.rate import Layer

        matrix = np.array(view.matrix, np.float32)  # a copy: the file behind it is let go
        view.release()
        moment = moments.moment(self.ctx.statistics, view, half)
        if moment is None:
            return Layer(view.name, matrix[None], None, 0.0)
        folded = matrix.reshape(len(moment), -1, matrix.shape[1])
        if view.name not in self._dampings:
            other = moments.moment(self.ctx.statistics, view, 1)
            assert other is not None
            step = _MIDDLING * float(np.sqrt(np.square(matrix).mean())) or 1.0
            self._dampings[view.name] = obs.choose_damping(
                folded[0], moment[0], other[0], lambda rows: obs.uniform(step)
            )
        damping = self._dampings[view.name]
        return Layer(view.name, folded, tuple(obs.factor(h, damping) for h in moment), 0.0)

    def _codes(self, spend: float) -> dict[str, tuple[Codes, float]]:
        from onnxshrink.kernels import rate

        steps = rate.steps(self.layers, spend)
        return {layer.name: (layer.codes(steps[layer.name]), steps[layer.name]) for layer in self.layers}

    def _bits(self, codes: Mapping[str, tuple[Codes, float]]) -> float:
        from onnxshrink.kernels import rate

        return sum(rate.entropy_bits(values) for values, _ in codes.values())

    def _score(
        self, codes: Mapping[str, tuple[Codes, float]], trial: Trial, reference: Fidelity
    ) -> float:
        import numpy as np

        from onnxshrink.kernels import affine

        weights = {
            name: _unfold(self._by_name[name], values * np.float32(step))
            for name, (values, step) in codes.items()
        }
        for name, stored in self.plain.items():
            if name not in trial.refused:
                weights[name] = affine.dequantize(stored)
        score = reference.score(trial.run(self._judge, weights))
        count = sum(layer.size for layer in self.layers)
        _log.info("%.3f bits a weight: fidelity %.5f", self._bits(codes) / count, score)
        return score

    def _budget(self, before: int, saved: int) -> float:
        """Bits that the searched codes may take."""
        from onnxshrink.kernels import rate

        plain = sum(8 * rate.packed_bytes(stored.codes) for stored in self.plain.values())
        options = self.options
        if options.bits_per_weight is not None:
            count = sum(view.size for view in self.views)
            return options.bits_per_weight * count - plain
        assert options.target_ratio is not None
        rest = self.model.nbytes() - sum(view.nbytes for view in self.views) - saved
        return 8 * (before / options.target_ratio - rest) - plain

    def _least(self, meets: Any) -> float:
        """The least to spend such that codes meet a budget."""
        from onnxshrink.kernels import rate

        over = rate.largest(lambda inverse: meets(1 / inverse), 1 / _SPEND, within=1.01)
        if over == 0:
            raise DataError(
                f"{self.options.name}: no grid meets the budget; the rest of the model is too "
                "large, or too many weights are kept at 8 bits"
            )
        return 1 / over

    def stored(self, spend: float) -> Iterator[tuple[WeightView, Quantized, str]]:
        """Every weight as it will be stored, its rounding fitted to all inputs."""
        import numpy as np

        from onnxshrink.kernels import rate
        from onnxshrink.kernels.affine import Quantized

        steps = rate.steps(self.layers, spend)
        for name, quantized in self.plain.items():
            yield self._by_name[name], quantized, "int8"
        for layer in self.layers:
            view, step = self._by_name[layer.name], steps[layer.name]
            fitted = self._fitted(view, half=None)
            codes = rate.stored(_unfold(view, fitted.codes(step)))
            bits = 8 * rate.packed_bytes(codes) / codes.size
            scale = np.full((1,) * codes.ndim, step, np.float32)
            dtype: Literal["int8", "int16"] = "int8" if codes.itemsize == 1 else "int16"
            yield view, Quantized(codes, scale, None, dtype), f"{dtype}, {bits:.2f} bits packed"


def _is_plain(view: WeightView) -> bool:
    """Whether a weight keeps 8 bits: small, depthwise, or behind a one-hot encoding."""
    if view.size < _PLAIN:
        return True
    if view.op_type == "Conv" and view.size // view.shape[view.axes.out[0]] < 32:
        groups = view.main.node.attributes.get("group")
        return groups is not None and groups.as_int() > 1
    source = view.activation.producer() if view.activation is not None else None
    return source is not None and source.op_type == "OneHot"


def _fits(view: WeightView, ctx: Context) -> bool:
    import numpy as np

    finite = bool(np.isfinite(view.array().astype(np.float32)).all())
    view.release()
    if not finite:
        ctx.skip(view, "holds NaN or infinity")
    return finite


def _eight_bits(view: WeightView) -> Quantized:
    from onnxshrink.kernels import affine

    axes = view.axes.contract or tuple(range(len(view.shape)))
    quantized = affine.quantize(view.array(), "int8", axes, rounding="balanced", short_scale=True)
    view.release()
    return quantized


def _unfold(view: WeightView, values: np.ndarray) -> np.ndarray:
    """[groups, rows, width] as the weight is stored, of the weight's type if they are floats."""
    stored = view.from_matrix(values.reshape(-1, values.shape[-1]))
    return stored.astype(view.dtype.numpy()) if stored.dtype.kind == "f" else stored


def _store(model: Model, view: WeightView, stored: Quantized, note: str, ctx: Context) -> None:
    from onnxshrink.graph import edit
    from onnxshrink.kernels import affine

    if stored.nbytes + edit.REBUILD_OVERHEAD >= view.nbytes:
        ctx.skip(view, "would not be smaller as integer codes")
        return
    sqnr = affine.sqnr_db(view.array(), stored)
    looked_up = view.size >= _LOOKED_UP and edit.can_gather(model, view)
    after = edit.dequantized(model, view, stored, "gather" if looked_up else "cast-mul")
    ctx.changed(view, after, note=note, sqnr_db=sqnr)
    view.release()
