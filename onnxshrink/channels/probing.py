"""Runs of a model with its intermediate values watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxshrink import files
from onnxshrink.errors import DataError
from onnxshrink.kernels.split import Split
from onnxshrink.runtime.generate import generated_inputs
from onnxshrink.runtime.inputs import Feed, ports
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.channels.facts import Runs
    from onnxshrink.channels.labels import Walk
    from onnxshrink.channels.readers import Consumer
    from onnxshrink.graph.file.model import Model
    from onnxshrink.kernels.refit import FeatureSums

#: Optimization may put other operators in place of watched ones, but not change their values.
_PLAIN = SessionOptions(optimization="basic", accuracy_level=0)

Sizes = Callable[[int, int], int]
#: How the second run changes free axes: (position of the axis, its length) -> another length.
#: Image sides are often bound to multiples of 32, and recurrent models to one batch.
_OTHERS: tuple[Sizes, ...] = (
    lambda axis, n: n + 1 if axis == 0 else 2 * n,
    lambda axis, n: n + 1 if axis == 0 else n + 32,
    lambda axis, n: n + 1,
    lambda axis, n: n if axis == 0 else 2 * n,
    lambda axis, n: n if axis == 0 else n + 32,
)


def probe(model: Model, feed: Mapping[str, np.ndarray], worker: Worker) -> Runs:
    """Run a model twice, with different lengths of its free axes, and note every value's shape.

    Args:
        model: The model.
        feed: Inputs of the first run.
        worker: Where to run it.

    Raises:
        DataError: The feed does not fit the model.
        ModelError: It does not run.
    """
    from onnxshrink.channels.facts import Runs, measured, watched

    first = dict(feed)
    second, varied = _other_feed(model, first, worker)
    copy, shapes = measured(model, watched(model))
    runs = []
    for arrays in _answers(copy, [first, second], worker):
        told = {shapes[n].name: shapes[n].stand_in(a) for n, a in arrays.items() if n in shapes}
        runs.append({n: a for n, a in arrays.items() if n not in shapes} | told)
    return Runs.of(model, {**first, **runs[0]}, {**second, **runs[1]}, varied)


def probe_any(
    model: Model, feeds: Sequence[Mapping[str, np.ndarray]], seed: int, worker: Worker
) -> Runs:
    """The same with the first of some feeds, or with a generated one."""
    return probe(
        model, feeds[0] if feeds else generated_inputs(model, 1, seed, worker=worker)[0], worker
    )


def moments(
    walk: Walk, feeds: Sequence[Mapping[str, np.ndarray]], worker: Worker
) -> dict[Consumer, FeatureSums]:
    """Second moments of what every weight reads that can make up for removed channels.

    What some feeds show is held out; where there is only one, a quarter of what it shows.

    Args:
        walk: A labelled model.
        feeds: Inputs to run it on.
        worker: Where to run it.
    """
    from onnxshrink.channels import readers
    from onnxshrink.kernels.refit import FeatureSums

    found = [each for each in readers.find(walk) if not walk.atoms.is_frozen(each.labels).all()]
    if not found:
        return {}
    seen = {consumer: FeatureSums(consumer.features) for consumer in found}
    values = list({value.name: value for each in found for value in each.values}.values())
    runs = zip(feeds, observe(walk.model, values, feeds, worker), strict=True)
    apart = Split(len(feeds)).held
    for number, (feed, arrays) in enumerate(runs):
        known = {**feed, **arrays}
        for consumer in found:
            read = [known[value.name or ""] for value in consumer.values]
            rows = consumer.reads(read, number)
            if apart:
                seen[consumer].add(rows, held=number in apart)
            else:
                quarter = np.arange(len(rows)) % 4 == 3
                seen[consumer].add(rows[~quarter])
                seen[consumer].add(rows[quarter], held=True)
    return seen


def observe(
    model: Model, values: Sequence[ir.Value], feeds: Sequence[Mapping[str, np.ndarray]],
    worker: Worker,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """For each feed, what some intermediate values of a model are.

    Args:
        model: The model.
        values: Values of its main graph.
        feeds: Inputs, one at a time.
        worker: Where to run it.

    Raises:
        DataError: A feed does not fit the model.
        ModelError: It does not run.
    """
    from onnxshrink.graph.analysis.ranked import exposed

    yield from _answers(exposed(model, [value.name or "" for value in values]), feeds, worker)


def _answers(
    model: Model, feeds: Sequence[Mapping[str, np.ndarray]], worker: Worker
) -> Iterator[dict[str, np.ndarray]]:
    """For each feed, the outputs of a model without a file, by name."""
    with files.scratch() as folder:
        path = folder / "model.onnx"
        model.save(path, durable=False)
        names = list(worker.open(path, _PLAIN).outputs)
        try:
            for feed in feeds:
                yield dict(zip(names, worker.step(feed)[0], strict=True))
        finally:
            worker.release()


def _other_feed(model: Model, feed: Feed, worker: Worker) -> tuple[Feed, bool]:
    """Inputs with other lengths of all free axes, if the model takes any; and whether it did."""
    wanted = ports(model)
    if not any(_free(port.dims) for port in wanted.values()):
        return feed, True
    tried = []
    for change in _OTHERS:
        other = _resized(model, feed, change)
        if all(other[name].shape != feed[name].shape or not _free(wanted[name].dims)
               for name in feed):  # fmt: skip
            tried.append(other)
    with files.scratch() as folder:
        path = folder / "model.onnx"
        model.save(path, durable=False)
        answers = worker.refusals(path, tried)
    if answers and answers[-1] is None:
        other = tried[len(answers) - 1]
        every = all(
            other[name].shape[axis] != feed[name].shape[axis]
            for name, port in wanted.items()
            for axis in _free(port.dims)
        )
        return other, every
    return feed, False


def _free(dims: Sequence[int | str | None] | None) -> list[int]:
    """Axes of an input that may have any length."""
    return [axis for axis, dim in enumerate(dims or ()) if not isinstance(dim, int)]


def _resized(model: Model, feed: Feed, change: Sizes) -> Feed:
    """The same inputs, repeated or cut to other lengths; the same symbol keeps to one length."""
    lengths: dict[object, int] = {}
    other: Feed = {}
    for name, port in ports(model).items():
        if name not in feed:
            raise DataError(f"the inputs lack {name!r}")
        array = feed[name]
        for axis in _free(port.dims):
            size = array.shape[axis]
            assert port.dims is not None
            symbol = port.dims[axis] or (axis, size)
            length = lengths.setdefault(symbol, change(axis, size))
            if size:
                array = np.take(array, np.arange(length) % size, axis)
            else:  # a cache at its start has nothing to repeat
                shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
                array = np.zeros(shape, array.dtype)
        other[name] = array
    return other
