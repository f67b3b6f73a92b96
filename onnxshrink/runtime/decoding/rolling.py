"""Feeds of tokens alone: the state is what the model itself answers.

First to most of the tokens, without any past, then to one token after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxshrink.errors import DataError, ModelError
from onnxshrink.runtime.decoding.lengths import evaluated, solved
from onnxshrink.runtime.decoding.steps import DecodingStep, handed_on
from onnxshrink.runtime.decoding.system import Decoder, find
from onnxshrink.runtime.inputs import Feed, ports

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker

_STEPS = 3  # single tokens behind the first run over a text
_ROWS = 8  # texts, or a multiple of it: the runs of one are then on one side of every split
_LENGTH = 8
_ELSE = 6  # of what else has a length: what an encoder has read


def rolled_out(
    model: Model, texts: Sequence[tuple[str, Mapping[str, Any]]], limit: int | None
) -> list[tuple[str, Mapping[str, Any]]]:
    """Feeds from texts that lack the state: the model itself is run for it.

    All first runs come first, then all second ones: what splits feeds by their numbers has every
    text on one side, and long pasts on either.

    Args:
        model: The model.
        texts: Where each was found, and what it holds.
        limit: Most feeds that are wanted.

    Returns:
        The texts as they are where nothing is missing that could be derived.
    """
    from onnxshrink.runtime.worker import Worker

    wanted = ports(model)
    missing = {name for name in wanted for _, text in texts if name not in text}
    decoder = find(model) if missing else None
    if decoder is None or not missing <= decoder.derived:
        return list(texts)
    fits = [
        (where, {n: np.asarray(a) for n, a in text.items() if n in wanted}) for where, text in texts
    ]
    with Worker() as worker:
        if not decoder.tokens:
            return _in_a_row(model, decoder, fits, worker)
        most = len(fits) if limit is None else max(1, limit // (1 + _STEPS))
        count = min(len(fits), most)
        count -= count % _ROWS if count > _ROWS else 0
        chosen = [fits[place * len(fits) // count] for place in range(count)]
        return [*roll_out(model, decoder, chosen, worker)]


def roll_out(
    model: Model, decoder: Decoder, texts: Sequence[tuple[str, Feed]], worker: Worker
) -> Iterator[tuple[str, DecodingStep]]:
    """First runs without a past, then steps of one token; see :func:`rolled_out`.

    Raises:
        DataError: The model refuses what was derived.
    """
    ends: list[list[int]] = []
    last: list[DecodingStep] = []
    for _, text in texts:
        whole = text[decoder.tokens].shape[min(1, text[decoder.tokens].ndim - 1)]
        ends.append([*range(max(whole - _STEPS, 1), whole + 1)])
        labels = decoder.following(text, 0, ends[-1][0])
        first = decoder.feed(text, {}, 0, ends[-1][0])
        last.append(DecodingStep(first, None, decoder.carried(), labels))
    with _opened(model, worker) as names:
        for turn in range(1 + _STEPS):
            for number, (where, text) in enumerate(texts):
                if turn >= len(ends[number]):
                    continue
                feed = last[number]
                yield f"{where}, run {turn}", feed
                if turn + 1 == len(ends[number]):
                    continue
                state = _state(decoder, feed, worker, names, where)
                past, end = ends[number][turn : turn + 2]
                labels = decoder.following(text, past, end)
                step = decoder.feed(text, state, past, end)
                last[number] = DecodingStep(step, feed, decoder.carried(), labels)


def _in_a_row(
    model: Model, decoder: Decoder, parts: Sequence[tuple[str, Feed]], worker: Worker
) -> list[tuple[str, Mapping[str, Any]]]:
    """Feeds of a net with a replaced state: each goes on from the one before."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    before: DecodingStep | None = None
    with _opened(model, worker) as names:
        for where, part in parts:
            lengths = {name: port.dims or () for name, port in decoder.ports.items()}
            known = solved(
                {n: tuple(f"{n}.{i}" if d is None else d for i, d in enumerate(lengths[n]))
                 for n in part}, {n: a.shape for n, a in part.items()},
            )  # fmt: skip
            likely = next((len(array) for array in part.values() if array.ndim), 1)
            start = {
                state.input: np.zeros(
                    tuple(known.get(d, likely) if isinstance(d, str) else d or likely
                          for d in lengths[state.input]), decoder.ports[state.input].dtype)
                for state in decoder.states
            }  # fmt: skip
            feed = DecodingStep({**start, **part}, None, decoder.carried())
            if before is not None:
                state = _state(decoder, before, worker, names, where)
                if all(state[name].shape == array.shape for name, array in start.items()):
                    feed = DecodingStep({**state, **part}, before, decoder.carried())
            found.append((where, feed))
            before = feed
    return found


def _state(
    decoder: Decoder, feed: Feed, worker: Worker, names: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    try:
        outputs = dict(zip(names, worker.step(feed)[0], strict=True))
    except (DataError, ModelError) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise DataError(
            f"{where}: the inputs lack {', '.join(sorted(decoder.derived))}, and the model refuses "
            f"what was made up of the others ({shapes}): {error}"
        ) from error
    return handed_on(feed, {name: outputs[output] for name, output in decoder.carried().items()})


@contextlib.contextmanager
def _opened(model: Model, worker: Worker) -> Iterator[list[str]]:
    """The model, ready for steps; the names of its outputs."""
    from onnxshrink.runtime.generate import on_disk

    with on_disk(model) as path:
        names = list(worker.open(path).outputs)
        try:
            yield names
        finally:
            worker.release()


def made_up(
    model: Model, count: int, seed: int, shapes: Mapping[str, tuple[int, ...]], worker: Worker
) -> list[Feed] | None:
    """Generated feeds of a decoder: random tokens, rolled out; None where that is not known."""
    decoder = find(model)
    if decoder is None or not decoder.tokens or not decoder.words:
        return None
    from onnxshrink.runtime.generate import made_of

    known: dict[str, int] = {"batch": 1, "new": _LENGTH, "past": 0, "whole": _LENGTH}
    known.update(solved(decoder.lengths, shapes))
    texts = []
    for number in range(-(-count // 2)):
        rng = np.random.default_rng([seed, number])
        given: Feed = {}
        for name, port in decoder.ports.items():
            if name in decoder.derived:
                continue
            shape = shapes.get(name) or tuple(
                evaluated((term,), {**known, str(term): known.get(str(term), _ELSE)})[0]
                for term in decoder.lengths[name]
            )
            given[name] = made_of(model, port, shape, rng)
        texts.append((f"text {number}", given))
    try:
        found = [feed for _, feed in roll_out(model, decoder, texts, worker)][:count]
        with _opened(model, worker):
            worker.step(found[-1])
    except (DataError, ModelError):
        return None
    return [*found]
