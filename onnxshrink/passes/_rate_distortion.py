"""The search behind quantize-rd: what noise in each weight does, and how much of it to allow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import DataError
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.model import Model
    from onnxshrink.graph.weights import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.fidelity import Fidelity
    from onnxshrink.kernels.rate import Codes, Layer
    from onnxshrink.passes.quantize_rd import QuantizeRd
    from onnxshrink.runtime.trial import Trial
    from onnxshrink.runtime.worker import Worker

_log = logging.getLogger(__name__)
_PLAIN = 2048  # weights of fewer elements are not worth a search of their own
_MIDDLING = 0.5  # standard deviations: the step at which a layer's effect is first measured
_LEAST = 1e-9  # squared output error below which nothing was measured but rounding
_SPEND = 0.02  # squared output error that the search begins with
_FIDELITY = 0.99
_OVERHEAD = 400  # bytes of nodes and headers that a packed weight costs, about
_PROBES = 2, 4  # feeds on which the effect of each layer is measured, first and second time


@dataclass
class Search:
    """The weights of one model: what is known of them, and where their grids should be.

    Attributes:
        options: The goal, and the measure of it.
        model: The model, its norms folded.
        views: The weights.
        ctx: Inputs and statistics.
        worker: Where to run trials.
        layers: Weights that get a grid of their own.
        plain: Those that are stored with 8 bits.
    """

    options: QuantizeRd
    model: Model
    views: Sequence[WeightView]
    ctx: Context
    worker: Worker
    layers: list[Layer] = field(default_factory=list)
    plain: list[tuple[WeightView, Quantized]] = field(default_factory=list)

    def __post_init__(self) -> None:
        feeds = list(self.ctx.feeds)
        self._fit, self._judge = feeds[::2], feeds[1::2] or feeds
        self._dampings: dict[str, float] = {}
        self._by_name: dict[str, WeightView] = {}  # those of the search
        names = Counter(view.name for view in self.views)
        for view in self.views:
            if is_plain(view) or names[view.name] > 1:  # branches may use one name for two weights
                self.plain.append((view, _eight_bits(view)))
            else:
                self._by_name[view.name] = view

    def spend(self, before: int, saved: int) -> float:
        """The squared output error to spend for the goal."""
        from onnxshrink.kernels import rate
        from onnxshrink.kernels.fidelity import Fidelity
        from onnxshrink.runtime.trial import Trial

        names = [*self._by_name, *(view.name for view, _ in self.plain)]
        with closing(Trial(self.model, names, self.worker)) as trial:
            for name in [name for name in self._by_name if name in trial.refused]:
                view = self._by_name.pop(name)
                self.plain.append((view, _eight_bits(view)))
            if not self._by_name:
                return 0.0
            self.layers = self._measured(trial)
            options = self.options
            if options.lam is not None:
                return options.lam
            if options.bits_per_weight is not None or options.target_ratio is not None:
                budget = self._budget(before, saved)
                return self._least(lambda spend: self._packed(self._codes(spend)) <= budget)
            least = _FIDELITY if options.min_fidelity is None else options.min_fidelity
            reference = Fidelity(trial.run(self._judge), options.measure)
            return rate.largest(
                lambda spend: self._score(self._codes(spend), trial, reference) >= least, _SPEND
            )

    def _measured(self, trial: Trial) -> list[Layer]:
        """Layers fitted to the first half of the inputs, with what their noise does to outputs.

        Each is rounded alone, first at a middling step, then at the one that this suggests; its
        effect is measured on inputs of the other half, so that a fit to too few inputs is not
        mistaken for a good one.
        """
        import numpy as np

        from onnxshrink.kernels import rate
        from onnxshrink.kernels.fidelity import Fidelity

        found = [self._fitted(view, half=0) for view in self._by_name.values()]
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
        """Codes and step of every layer, fitted to the first half of the inputs."""
        from onnxshrink.kernels import rate

        steps = rate.steps(self.layers, spend)
        return {
            layer.name: (layer.codes(steps[layer.name]), steps[layer.name]) for layer in self.layers
        }

    def _packed(self, codes: Mapping[str, tuple[Codes, float]]) -> int:
        """Exact bytes that codes take in a packed sidecar."""
        from onnxshrink.kernels import rate

        return sum(rate.packed_bytes(rate.stored(values)) for values, _ in codes.values())

    def _score(
        self, codes: Mapping[str, tuple[Codes, float]], trial: Trial, reference: Fidelity
    ) -> float:
        """How close the answers stay on the half of the inputs that judges."""
        import numpy as np

        from onnxshrink.kernels import affine, rate

        weights = {
            name: _unfold(self._by_name[name], values * np.float32(step))
            for name, (values, step) in codes.items()
        }
        for view, stored in self.plain:
            if view.name not in trial.refused:
                weights[view.name] = affine.dequantize(stored).astype(view.dtype.numpy())
        score = reference.score(trial.run(self._judge, weights))
        bits = sum(rate.entropy_bits(values) for values, _ in codes.values())
        count = sum(layer.size for layer in self.layers)
        _log.info("%.3f bits a weight: fidelity %.5f", bits / count, score)
        return score

    def _budget(self, before: int, saved: int) -> float:
        """Packed bytes that the searched codes may take."""
        from onnxshrink.kernels import rate

        plain = sum(rate.packed_bytes(stored.codes) for _, stored in self.plain)
        options = self.options
        if options.bits_per_weight is not None:
            return options.bits_per_weight * sum(view.size for view in self.views) / 8 - plain
        assert options.target_ratio is not None
        rest = self.model.nbytes() - sum(view.nbytes for view in self.views) - saved
        return before / options.target_ratio - rest - plain - _OVERHEAD * len(self.views)

    def _least(self, meets: Callable[[float], bool]) -> float:
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
        for view, quantized in self.plain:
            yield view, quantized, "int8"
        for layer in self.layers:
            view, step = self._by_name[layer.name], steps[layer.name]
            fitted = self._fitted(view, half=None)
            codes = rate.stored(_unfold(view, fitted.codes(step)))
            bits = 8 * rate.packed_bytes(codes) / codes.size
            scale = np.full((1,) * codes.ndim, step, np.float32)
            dtype: Literal["int8", "int16"] = "int8" if codes.itemsize == 1 else "int16"
            yield view, Quantized(codes, scale, None, dtype), f"{dtype}, {bits:.2f} bits packed"


def is_plain(view: WeightView) -> bool:
    """Whether a weight keeps 8 bits: small, depthwise, or behind a one-hot encoding."""
    if view.size < _PLAIN:
        return True
    if view.op_type == "Conv" and view.size // view.shape[view.axes.out[0]] < 32:
        groups = view.main.node.attributes.get("group")
        return groups is not None and groups.as_int() > 1
    source = view.activation.producer() if view.activation is not None else None
    return source is not None and source.op_type == "OneHot"


def _eight_bits(view: WeightView) -> Quantized:
    """A weight in int8, each output with a scale of its own."""
    from onnxshrink.kernels import affine

    axes = view.axes.contract or tuple(range(len(view.shape)))
    quantized = affine.quantize(view.array(), "int8", axes, rounding="balanced", short_scale=True)
    view.release()
    return quantized


def _unfold(view: WeightView, values: np.ndarray) -> np.ndarray:
    """[groups, rows, width] as the weight is stored, of the weight's type if they are floats."""
    stored = view.from_matrix(values.reshape(-1, values.shape[-1]))
    return stored.astype(view.dtype.numpy()) if stored.dtype.kind == "f" else stored
