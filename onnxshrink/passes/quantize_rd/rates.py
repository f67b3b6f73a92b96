"""The search behind quantize-rd: what noise in each weight does, and how much of it to allow."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from onnxshrink import heap
from onnxshrink.errors import DataError
from onnxshrink.passes.quantize_rd import effects
from onnxshrink.passes.quantize_rd.bearing import losses
from onnxshrink.passes.quantize_rd.plain_weights import MORE_BITS, eight_bits, finer, kept_at_eight
from onnxshrink.pipeline import Context
from onnxshrink.progress import counted
from onnxshrink.trials import Answers, Exchange, Feeds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.rate import GridTensor
    from onnxshrink.passes.quantize_rd import QuantizeRd

    Count = Callable[[npt.NDArray[np.integer]], float]

_log = logging.getLogger(__name__)
#: Standard deviations: the coarsest step at which it is measured. Beyond, most weights are zero and
#: the effect grows no more, so that the layer would seem to care less than it does.
_COARSEST_PROBE = 3.0
_LEAST = 1e-9  # squared output error below which nothing was measured but rounding
_SPEND = 0.02  # squared output error that the search begins with
FINEST = 9  # mean bits of a weight beyond which codes of 8 bits do as well
_BESIDE_INTEGERS = 2  # times what weights of 8 bits lose that may be lost beside integer kernels
_NEAR = 1.01  # how closely a goal in bytes is met, in what is spent: 0.007 bits a weight
_ABOVE_ENTROPY = 1.05  # what packed codes take, about, before any were packed
_FAR, _NEXT = 4.0, 1.3  # how far apart what to spend is tried: at first, and once it is about right
_CORRECTIONS = 3  # how often packing corrects a count of bytes, which it nearly always does once
_CAUTION = 1.001  # so that the next time it is not too much by next to nothing
_NEAR_BYTES = 0.985  # of a goal in bytes: what is near enough
_PROBES = 2, 8  # feeds that tell the effect of each layer, first and (at least) second time
_MOST_PROBES = 32  # of a small model: what few inputs say of a layer is mostly noise
_WORK = 2**25  # weights times feeds of the second time


class StoredWeight(NamedTuple):
    """A weight as it will be stored.

    Attributes:
        view: The weight.
        quantized: Its codes.
        packed: Bytes that they pack to.
        note: For the report.
        figures: For the report: ``sensitivity``, the squared error of the outputs for each squared
            relative error of the weight, where it was measured.
    """

    view: WeightView
    quantized: Quantized
    packed: int
    note: str
    figures: Mapping[str, float]


@dataclass
class StepSearch:
    """The weights of one model: what is known of them, and where their grids should be.

    Attributes:
        options: The goal, and the measure of it.
        model: The model, its norms folded.
        views: The weights.
        ctx: Inputs, statistics, and where to run trials.
        layers: Weights that get a grid of their own.
        plain: Those without one: too small, or with channels too unlike; codes of 8 bits, and why.
            They get more bits where 8 lose so much that the others would need more; see
            :meth:`_more_bits`.
    """

    options: QuantizeRd
    model: Model
    views: Sequence[WeightView]
    ctx: Context
    layers: list[GridTensor] = field(default_factory=list)
    plain: list[tuple[WeightView, Quantized, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        split = self.ctx.split
        self._fit = split.of(self.ctx.feeds, split.fit)
        self._judge = split.of(self.ctx.feeds, split.judge)
        self._half: int | None = 0  # of the inputs, to which the layers are fitted; None: all
        self._dampings: dict[str, float] = {}
        self._lost_by_plain = 0.0  # squared output error of their 8 bits
        self._excess = _ABOVE_ENTROPY  # of packed codes, as far as it is known
        self._packed: dict[tuple[str, bytes], int] = {}  # see nbytes
        self._finer: dict[int, list[Quantized]] = {}  # by how many bits they have more
        self._finer_bytes: dict[int, int] = {}
        self._by_name: dict[str, WeightView] = {}  # those of the search
        names = Counter(view.name for view in self.views)
        for view in self.views:
            reason = kept_at_eight(view)
            if names[view.name] > 1:  # branches may use one name for two weights
                reason = "its name is not unique"
            if reason:
                self._leave(view, reason)
            else:
                self._by_name[view.name] = view

    def _leave(self, view: WeightView, reason: str) -> None:
        """Give a weight no grid of its own: 8 bits, or the integers that it is."""
        from onnxshrink.graph.forms import integer_codes

        if integer_codes.takes(view):
            self.ctx.skip(view, f"is integers of 8 bits already ({reason})")
        else:
            self.plain.append((view, eight_bits(view), reason))

    def spend(self) -> float:
        """The squared output error to spend for the goal; measures the layers first.

        With a goal in bytes that is only where to begin: :meth:`spend_bytes` knows the rest.

        Raises:
            DataError: Nothing short of 8 bits keeps the answers as they are asked for.
        """
        from onnxshrink.kernels import rate

        key = (type(self).__module__, self.model.digest(), self.options.measure, *self._by_name)
        options = self.options
        in_bytes = options.bits_per_weight is not None or options.target_ratio is not None
        goal = (*key, in_bytes, options.min_fidelity, options.beside_integers, self.ctx.goal.asks)
        spend = self.ctx.findings.get(repr(goal)) if options.lam is None else options.lam
        if spend is not None and key in self.ctx.findings:
            return self._known(spend, *self.ctx.findings[key])
        names = [*self._by_name, *(view.name for view, *_ in self.plain)]
        layers = [self._fitted(view, 0) for view in self._by_name.values()]
        told = self._told(layers)
        with closing(Exchange(self.model, names, self.ctx.worker, whole=True)) as exchange:
            for name in [name for name in self._by_name if name in exchange.refused]:
                self._leave(self._by_name.pop(name), exchange.refused[name])
            if not self._by_name:
                return _SPEND
            layers = [layer for layer in layers if layer.name in self._by_name]
            self.layers = self._measured(exchange, layers, told)
            found = {layer.name: layer.sensitivity for layer in self.layers}
            self.ctx.findings[key] = (
                found, dict(self._dampings), dict(exchange.refused), self._lost_by_plain,
            )  # fmt: skip
            if options.lam is not None:
                return options.lam
            if in_bytes:
                self.layers, self._half = [self._refitted(layer) for layer in self.layers], None
                return _SPEND
            lost = self._losses(exchange)
            most = self._may_lose(exchange, lost)

            def cost(spend: float) -> float:
                loss, bits = self._loss(spend, exchange, lost)
                if loss > most and bits > FINEST:
                    raise DataError(
                        f"{options.name}: {bits:.1f} bits a weight lose {loss:.3g} times what may "
                        "be lost of the answers; lower --min-fidelity, give more inputs, or use "
                        "quantize-weights"
                    )
                return loss / most

            return float(self.ctx.findings.setdefault(repr(goal), rate.largest(cost, _SPEND)))

    def _known(
        self, spend: float, sensitivities: Mapping[str, float], dampings: Mapping[str, float],
        refused: Mapping[str, str], lost_by_plain: float,
    ) -> float:  # fmt: skip
        """What to spend, by what an earlier run on the same model and inputs has measured."""
        self._dampings.update(dampings)
        self._lost_by_plain = lost_by_plain
        for name in [name for name in self._by_name if name not in sensitivities]:
            self._leave(self._by_name.pop(name), refused[name])
        self.layers = [
            replace(self._fitted(view, 0), sensitivity=sensitivities[name])
            for name, view in self._by_name.items()
        ]
        return spend

    def _may_lose(self, exchange: Exchange, lost: Callable[[Answers], float]) -> float:
        """How many times what may be lost of the answers may be: more only beside integers."""
        from onnxshrink.kernels import affine

        if not self.options.beside_integers:
            return 1.0
        weights = {}
        for view in self.views:
            if view.uses and view.name not in exchange.refused:
                weights[view.name] = affine.dequantize(eight_bits(view)).astype(view.dtype.numpy())
        loss = lost(exchange.answers(self._judge, weights))
        _log.info("8 bits lose %.3f of what may be lost", loss)
        return max(1.0, _BESIDE_INTEGERS * loss)

    def _losses(self, exchange: Exchange) -> Callable[[Answers], float]:
        """What tells how much of that which may be lost answers on the judging half lose."""
        before, others = exchange.answers(self._judge), exchange.answers(self._fit).outputs
        return losses(self.options, self.ctx.goal, before, others)

    def nbytes(self, codes: npt.NDArray[np.integer]) -> int:
        """Bytes that codes take in the result, entropy-coded as it will be stored."""
        from onnxshrink.kernels import rate

        if self.ctx.storage == "coded":
            return rate.coded_bytes(codes)
        key = codes.dtype.str, hashlib.sha256(codes.tobytes()).digest()
        if key not in self._packed:  # it takes a second for each megabyte
            self._packed[key] = rate.packed_bytes(codes)
        return self._packed[key]

    def finest(self) -> float:
        """Bytes of all codes when finer ones would gain nothing."""
        plain = sum(self.nbytes(stored.codes) for _, stored, _ in self.plain)
        return plain + FINEST * sum(layer.size for layer in self.layers) / 8

    def spend_bytes(self, budget: float, start: float) -> float:
        """The least to spend such that the codes of all weights pack to a number of bytes.

        Args:
            budget: The bytes.
            start: What may be about right.

        Raises:
            DataError: No grid does.
        """
        from onnxshrink.kernels import rate

        if not self.layers and self._plain_bytes(start) <= budget:
            return start
        # Packing takes far longer than counting, and its result is in proportion: so a grid that
        # is counted to be right is packed, and what that says corrects the count.
        for turn in range(_CORRECTIONS if self.layers else 0):
            spend = self._within(
                budget, start, lambda codes: self._excess * rate.ideal_bytes(codes),
                apart=_FAR if turn == 0 else _NEXT,
            )  # fmt: skip
            if not spend:
                break
            counted = self._layer_bytes(spend, rate.ideal_bytes)
            packed = self._layer_bytes(spend, self.nbytes)
            found = self._plain_bytes(spend) + packed
            _log.info("%d bytes counted, %d packed; the goal is %d", counted, found, budget)
            if _NEAR_BYTES * budget <= found <= budget:
                return spend
            start, self._excess = spend, _CAUTION * packed / counted
        spend = self._within(budget, start, self.nbytes) if self.layers else 0.0
        if not spend:
            raise DataError(
                f"{self.options.name}: no grid meets the budget; the rest of the model is too "
                "large, or too many weights are kept at 8 bits"
            )
        return spend

    def _within(self, budget: float, start: float, count: Count, apart: float = _FAR) -> float:
        """The least to spend for codes of so many bytes, as they are counted; 0 where none is."""
        from onnxshrink.kernels import rate

        def cost(inverse: float) -> float:
            room = budget - self._plain_bytes(1 / inverse)
            return math.inf if room <= 0 else self._layer_bytes(1 / inverse, count) / room

        over = rate.largest(cost, 1 / start, within=_NEAR, apart=apart)
        return 1 / over if over else 0.0

    def _layer_bytes(self, spend: float, count: Count) -> float:
        """Bytes of the codes of all weights with a grid of their own."""
        from onnxshrink.kernels import rate

        steps = rate.steps(self.layers, spend)
        return sum(count(rate.stored(layer.codes(steps[layer.name]))) for layer in self.layers)

    def _more_bits(self, spend: float) -> int:
        """How many bits more than 8 the plain weights get.

        None, unless the error that they then no longer make, spent by the others, saves more than
        the second byte of each takes. Then as many as bring them to the noise of the others.
        """
        if not self._lost_by_plain or self.options.beside_integers:
            return 0
        others = sum(layer.size for layer in self.layers)
        few = sum(view.size for view, *_ in self.plain)
        if others / 2 * math.log2(1 + self._lost_by_plain / spend) <= 8 * few:
            return 0
        apart = self._lost_by_plain / (spend * few / others)
        return max(round(min(math.log2(apart) / 2, MORE_BITS)), 1)

    def _plain_codes(self, spend: float) -> list[Quantized]:
        """The codes of the plain weights, as fine as they should be beside the others."""
        more = self._more_bits(spend)
        if more not in self._finer:
            self._finer[more] = [finer(view, eight, more) for view, eight, _ in self.plain]
        return self._finer[more]

    def _plain_bytes(self, spend: float) -> int:
        """Bytes of these codes, counted once for each number of bits."""
        more = self._more_bits(spend)
        if more not in self._finer_bytes:
            found = sum(self.nbytes(one.codes) for one in self._plain_codes(spend))
            self._finer_bytes[more] = found
        return self._finer_bytes[more]

    def _plain_weights(
        self, exchange: Exchange, codes: Sequence[Quantized]
    ) -> dict[str, npt.NDArray[np.floating]]:
        """What codes of the plain weights stand for, by name."""
        from onnxshrink.kernels import affine

        return {
            view.name: affine.dequantize(stored).astype(view.dtype.numpy())
            for (view, *_), stored in zip(self.plain, codes, strict=True)
            if view.name not in exchange.refused
        }

    def _told(self, layers: Sequence[GridTensor]) -> dict[str, float]:
        """Sensitivities by name, as far as gradients tell them; see :mod:`.effects`."""
        # Integers of a kernel have no gradient.
        layers = [layer for layer in layers if self._by_name[layer.name].uses]
        if len(layers) < effects.FEW:
            return {}
        noise, steps = {}, {layer.name: effects.middling(layer.weights) for layer in layers}
        for layer, step in zip(layers, steps.values(), strict=True):
            off = layer.values(layer.codes(step), step) - layer.weights
            noise[self._by_name[layer.name]] = off.reshape(-1, off.shape[-1])
        found = effects.by_gradients(
            self.model, noise, self._probes(layers), self.ctx.goal, self.options.measure,
            self.ctx.worker, self.ctx.seed, self.ctx.progress,
        )  # fmt: skip
        _log.info("gradients tell %d weights of %d", len(found), len(layers))
        return {name: max(effect, _LEAST) / steps[name] ** 2 for name, effect in found.items()}

    def _probes(self, layers: Sequence[GridTensor]) -> Feeds:
        """The inputs that tell the effects of layers, of the half that no layer is fitted to."""
        weights = sum(layer.size for layer in layers)
        return self._judge[: min(max(_WORK // max(weights, 1), _PROBES[1]), _MOST_PROBES)]

    def _measured(
        self, exchange: Exchange, layers: Sequence[GridTensor], told: Mapping[str, float]
    ) -> list[GridTensor]:
        """Layers with what their noise does to the outputs.

        What gradients do not tell is measured: each layer is rounded alone, first at a middling
        step, then at the one that this suggests; what decides, at finer ones, too. Effects are
        those on inputs that no layer was fitted to, so that a fit to too few is not mistaken for a
        good one.
        """
        from onnxshrink.graph.analysis.ranked import deciding
        from onnxshrink.kernels import rate

        found = [replace(layer, sensitivity=told.get(layer.name, 0.0)) for layer in layers]
        steps = {layer.name: layer.possible(effects.middling(layer.weights)) for layer in found}
        jumps = deciding(self.model)
        left = [number for number, layer in enumerate(found) if layer.name not in told]
        more = self._probes(layers)
        for probes in (self._judge[: _PROBES[0]], more) if left else (more,):
            before = exchange.answers(probes)
            reference = self.ctx.goal.holder(before, measure=self.options.measure)
            for number in counted(self.ctx.progress, "measuring sensitivities", left):
                layer = found[number]
                view, largest = self._by_name[layer.name], 0.0
                for share in effects.FINER if layer.name in jumps else (1,):
                    step = layer.possible(steps[layer.name] / share)
                    noisy = _unfold(view, layer.values(layer.codes(step), step))
                    after = exchange.answers(probes, {layer.name: noisy})
                    effect = reference.distortion(after.outputs)
                    largest = max(largest, max(effect, _LEAST) / step**2)
                found[number] = replace(layer, sensitivity=largest)
            eight = self._plain_weights(exchange, [stored for _, stored, _ in self.plain])
            if eight:
                self._lost_by_plain = reference.distortion(exchange.answers(probes, eight).outputs)
                _log.info("8 bits in small weights: a squared error of %.2g", self._lost_by_plain)
            # Of any goal, so that its outcome can be repeated.
            steps = rate.steps(found, _SPEND, _COARSEST_PROBE)
        return rate.doubted(found, _rows(before))

    def _fitted(self, view: WeightView, half: int | None) -> GridTensor:
        """A layer whose roundings are fitted to one half of the inputs, or to all."""
        import numpy as np

        from onnxshrink.graph.forms import integer_codes
        from onnxshrink.graph.weights import second_moments
        from onnxshrink.kernels import obs, rate
        from onnxshrink.kernels.rate import GridTensor

        if not view.uses:
            whole = integer_codes.Whole.of(view)
            # One row: one step suits all codes, as the kernel's scales suit them to channels.
            low, high = (np.broadcast_to(one, view.shape).reshape(1, 1, -1) for one in whole.limits)
            values = whole.values.reshape(1, 1, -1)
            return GridTensor(view.name, values, None, 0.0, within=(low, high))
        matrix = np.array(view.matrix, np.float32)  # a copy: the file behind it is let go
        view.release()
        known = second_moments.of(self.ctx.statistics, view)
        if known is None:
            lookups = second_moments.looked_up(self.ctx.statistics, view, half)
            relative = None if lookups is None else rate.relative_steps(lookups)
            return GridTensor(view.name, matrix[None], None, 0.0, relative)
        folded, moments = known.fold(matrix), known.narrow(half)
        if view.name not in self._dampings:
            step = effects.middling(matrix)
            self._dampings[view.name] = obs.choose_damping(
                folded[0], moments[0], known.narrow(1)[0], lambda rows: obs.uniform(step)
            )
        damping = self._dampings[view.name]
        found = tuple(obs.factor(h, damping) for h in moments)
        del known, moments
        heap.give_back()
        return GridTensor(view.name, folded, found, 0.0)

    def _refitted(self, layer: GridTensor) -> GridTensor:
        """A layer fitted to all inputs."""
        if self._half is None:
            return layer
        fitted = self._fitted(self._by_name[layer.name], None)
        return replace(fitted, sensitivity=layer.sensitivity)

    def _loss(
        self, spend: float, exchange: Exchange, lost: Callable[[Answers], float]
    ) -> tuple[float, float]:
        """How much of what may be lost the half of the inputs that judges loses; bits a weight."""
        from onnxshrink.kernels import rate

        steps, weights, bits = rate.steps(self.layers, spend), {}, 0.0
        for layer in self.layers:
            step = steps[layer.name]
            codes = layer.codes(step)
            weights[layer.name] = _unfold(self._by_name[layer.name], layer.values(codes, step))
            bits += rate.entropy_bits(codes)
        weights |= self._plain_weights(exchange, self._plain_codes(spend))
        loss = lost(exchange.answers(self._judge, weights))
        bits /= sum(layer.size for layer in self.layers)
        _log.info("%.3f bits a weight: %.3f of what may be lost", bits, loss)
        return loss, bits

    def stored(self, spend: float) -> Iterator[StoredWeight]:
        """Every weight as it will be stored, fitted to all inputs."""
        import numpy as np

        from onnxshrink.graph.weights import second_moments
        from onnxshrink.kernels import rate
        from onnxshrink.kernels.affine import Quantized

        steps = rate.steps(self.layers, spend)
        if self._half is not None:  # each is fitted anew
            self.layers = [replace(layer, factors=None) for layer in self.layers]
        plain = zip(self.plain, self._plain_codes(spend), strict=True)
        for (view, _, reason), quantized in plain:
            note = f"{quantized.dtype} ({reason})"
            yield StoredWeight(view, quantized, self.nbytes(quantized.codes), note, {})
        for layer in self.layers:
            view, step = self._by_name[layer.name], steps[layer.name]
            fitted = self._refitted(layer)
            found = fitted.codes(step)
            codes = rate.stored(_unfold(view, found))
            scale = fitted.scales(fitted.unbiased(found, step)).reshape(-1, *[1] * (codes.ndim - 1))
            dtype: Literal["int8", "int16"] = "int8" if codes.itemsize == 1 else "int16"
            packed = self.nbytes(codes)
            how = "coded" if self.ctx.storage == "coded" else "packed"
            note = f"{dtype}, {8 * packed / codes.size:.2f} bits {how}"
            if fitted.within is not None:
                note += f", steps of {step:g} codes of {view.op_type}"
            elif fitted.factors is None and fitted.relative is None:
                note += f", to nearest (no gptq: {second_moments.unknown(view)})"
            if scale.size > 1:
                note += f", {len(set(scale.flat))} steps by how often rows are looked up"
            size = float(np.square(layer.weights, dtype=np.float64).mean())
            # A step makes noise of a twelfth of its square.
            figures = {"sensitivity": 12 * size * layer.sensitivity}
            yield StoredWeight(view, Quantized(codes, scale, None, dtype), packed, note, figures)


def _rows(answers: Answers) -> int:
    """How many inputs answers are to: rows of the first axis, where all outputs have as many."""
    counts = [{output.shape[0] if output.ndim else 1 for output in row} for row in answers.outputs]
    return sum(count.pop() if len(count) == 1 else 1 for count in counts)


def _unfold(view: WeightView, values: np.ndarray) -> np.ndarray:
    """[groups, rows, width] as the weight is stored, of the weight's type if they are floats."""
    from onnxshrink.graph.forms import integer_codes

    if not view.uses:
        whole = values.dtype.kind != "f"
        return values.reshape(view.shape) if whole else integer_codes.Whole.of(view).codes(values)
    stored = view.from_matrix(values.reshape(-1, values.shape[-1]))
    return stored.astype(view.dtype.numpy()) if stored.dtype.kind == "f" else stored
