"""Train a smaller model to give the answers of the original, soft where they are classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.options import option
from onnxshrink.passes._training import Objective
from onnxshrink.passes._tuning import Tuning, squares, wanted
from onnxshrink.pipeline import Context
from onnxshrink.select import check_patterns

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.gradients import Aim
    from onnxshrink.graph.layers.parameters import Kind
    from onnxshrink.kernels.kinds import Known
    from onnxshrink.kernels.split import Split

_JUDGES = 64  # inputs are enough to judge; a look at them takes as long as steps do


@dataclass(frozen=True, kw_only=True)
class Distill(Tuning):
    """Train a smaller model to give the answers of the original, soft where they are classes.

    All that is floating-point moves, weights too (codes and zeros stay), against the gradients of
    a loss that needs no labels (Hinton et al. 2015, 1503.02531): scores of classes are softened by
    a temperature and compared as shares, so that the original tells what it takes for similar; all
    other outputs are compared by their relative error. With labels their cross-entropy joins in
    with weight ``alpha``, and with ``layers`` the values inside, as far as both models have them.

    It recovers what removes much: channels, most of the bits, most of the weights. It needs many
    inputs, hundreds of them; nobody has to label them. A run takes 64 for all of its steps:
    ``train_on`` names more for this one, which are read one after the other and lie in a file while
    they are used, so that there may be more than memory holds. Every fourth of these
    judges, 64 at most; of others one half, as with tune, which is the one for few inputs.
    """

    steps: int = option(400, help="steps at most", ge=1)
    batch: int = option(32, help="inputs of a step; of a stack of inputs every one counts", ge=1)
    free: tuple[Literal["scales", "tables", "gains", "biases", "weights"], ...] = option(
        ("scales", "tables", "gains", "biases", "weights"), help="what may change"
    )
    train_on: str = option(
        "", help="more inputs to train on, in any form that --calibration takes; in place of those"
    )
    most_inputs: int = option(10_000, help="of these at most: the first ones", ge=2)
    temperature: float = option(2.0, help="what scores of classes are divided by", ge=0.1, le=100)
    labels: str = option(
        "", help=".npy file of the right classes, one for each row of the output, in order"
    )
    alpha: float = option(0.5, help="weight of the labels, where there are any", ge=0, le=1)
    layers: float = option(0.0, help="weight of the values inside, of all layers together", ge=0)
    layer_weights: Mapping[str, float] = option(
        {}, help="shares of layers in that, by name of the value or pattern; 1 where nothing says"
    )

    def kinds(self) -> Sequence[Kind]:
        """As asked."""
        return self.free

    def examples(self, model: Model, ctx: Context) -> Context:
        """Those of ``train_on``, where it names any."""
        from dataclasses import replace

        from onnxshrink.runtime.inputs import stored_inputs

        if not self.train_on:
            return ctx
        feeds = stored_inputs(self.train_on, model, self.most_inputs, ctx.reading)
        return replace(ctx, feeds=feeds, generated=False)

    def parts(self, split: Split) -> tuple[Sequence[int], Sequence[int]]:
        """A half judges; of more inputs a quarter, or as many as are enough."""
        if not self.train_on:
            return split.fit, split.judge
        judge = split.held[:: -(-len(split.held) // _JUDGES)]
        return [number for number in range(split.count) if number not in judge], judge

    def goal(self, model: Model, original: Model, ctx: Context) -> Objective:
        """The outputs of the original, and what is asked for beside them."""
        from onnxshrink.graph.gradients import Aim, Soft
        from onnxshrink.kernels import kinds
        from onnxshrink.kernels.probabilities import are_probabilities

        found, values = wanted(model, original, ctx)
        judge, names = ctx.split.judge, list(values)
        inside = _inside(model, original, ctx) if self.layers else {}
        parts = self._shares(inside)
        aims, weights = squares(values | inside, judge)
        for name in inside.keys() & weights.keys():
            weights[name] *= self.layers * parts[name] / (sum(parts.values()) or 1)
        values |= inside
        targets = {name: values[name] for name in aims}
        scores: dict[str, Known] = {}
        for name in names:
            known = kinds.decide(name, values[name], found.tails.get(name))
            if known.kind in ("classes", "tokens") and name in aims:
                shares = all(are_probabilities(known.rows(each)) for each in values[name])
                aims[name] = Aim(name, Soft(self.temperature, shares, known.axis))
                weights[name] = 1 / max(known.rows(values[name][0])[..., 0].size, 1)
                scores[name] = known
        if self.labels:
            self._add_labels(aims, weights, targets, scores, len(ctx.feeds))
        rows = [{name: column[at] for name, column in targets.items()}
                for at in range(len(ctx.feeds))]  # fmt: skip
        return Objective(aims, weights, rows)

    def _shares(self, names: Collection[str]) -> dict[str, float]:
        """The share of each layer in the weight of all.

        Raises:
            RecipeError: A pattern names no layer, or a share is no number from 0 on.
        """
        every = [(name,) for name in names]
        check_patterns(self.layer_weights, every, self.name, "value that both models have")
        found = dict.fromkeys(names, 1.0)
        for pattern, share in self.layer_weights.items():
            if not isinstance(share, int | float) or not 0 <= share < math.inf:
                raise RecipeError(
                    f"{self.name}: layer-weights of {pattern!r} is {share!r}, no weight"
                )
            for name in names:
                if name == pattern or fnmatchcase(name, pattern):
                    found[name] = float(share)
        return found

    def _add_labels(
        self, aims: dict[str, Aim], weights: dict[str, float],
        targets: dict[str, Sequence[np.ndarray]], scores: Mapping[str, Known], count: int,
    ) -> None:  # fmt: skip
        """Let the right classes join in, as shares of 1."""
        from dataclasses import replace

        from onnxshrink.graph.gradients import Aim

        if len(scores) != 1:
            raise DataError(
                f"labels: the model has {len(scores)} outputs of classes, and they are for one"
            )
        ((name, known),) = scores.items()
        loss, label = aims[name].loss, f"{name}.labels"
        aims[label] = Aim(name, replace(loss, temperature=1.0, shares=True))  # type: ignore[arg-type]
        targets[label] = _one_hot(self.labels, [known.rows(each) for each in targets[name]], known)
        weights[label] = weights[name] * self.alpha
        weights[name] *= 1 - self.alpha


def _one_hot(path: str, outputs: Sequence[np.ndarray], known: Known) -> list[np.ndarray]:
    """Labels as shares, for every input in the shape of the output.

    Raises:
        DataError: They cannot be read, or do not fit the outputs.
    """
    import numpy as np

    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: labels are an .npy file of integers: {error}") from error
    rows, classes = sum(each[..., 0].size for each in outputs), outputs[0].shape[-1]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are an .npy file of integers, one for each row")
    if labels.size != rows:
        raise DataError(f"{path}: {labels.size} labels for {rows} rows of the output")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{path}: labels from {labels.min()} to {labels.max()} for {classes} classes"
        )
    made, left = [], labels.ravel()
    for output in outputs:
        count = output[..., 0].size
        hot = np.eye(classes, dtype=output.dtype)[left[:count]].reshape(output.shape)
        made.append(hot if known.axis == -1 else np.moveaxis(hot, -1, known.axis))
        left = left[count:]
    return made


def _inside(model: Model, original: Model, ctx: Context) -> dict[str, Sequence[np.ndarray]]:
    """What the original's layers make, where the model has a value of the same name and shape."""
    import tempfile
    from pathlib import Path

    from onnxshrink.graph.analysis import shapes
    from onnxshrink.graph.analysis.instrument import instrument
    from onnxshrink.graph.layers import fitting

    ours, theirs = (
        {value.name: shape for value, shape in shapes.walk(each).shapes.items()}
        for each in (model, original)
    )
    names = [
        outline.output
        for outline in fitting.outlines(model, original)
        if outline.known and not outline.hidden and ours.get(outline.output) is not None
        and ours.get(outline.output) == theirs.get(outline.output)
    ]  # fmt: skip
    inside = {value.name for node in model.ir.graph for value in node.outputs}
    ends = {value.name for value in model.ir.graph.outputs}
    names = [name for name in dict.fromkeys(names) if name in inside - ends]
    with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
        path = Path(folder, "original.onnx")
        outputs = instrument(original, path, watch=names).outputs
        run = ctx.worker.run(path, ctx.feeds)
    places = {name: run.output_names.index(outputs[name]) for name in names if name in outputs}
    return {name: [each[place] for each in run.outputs] for name, place in places.items()}
