"""What an output is, so that it is held to what its readers read of it.

A relative error of .05 breaks one answer and is nothing to another: of classes the largest counts,
of an embedding the direction, of a measured number the number. The kind follows from the name, the
values, and what makes and reads the output in the graph. Where that leaves a doubt, the output is
held to more rather than to less.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from onnxshrink.kernels.hearing import is_sound
from onnxshrink.kernels.probabilities import are_logarithms, are_probabilities, is_discrete

#: ``labels``: integers and texts, which must be equal. ``classes``: rows of scores, whose largest
#: counts. ``tokens``: the same over a vocabulary, where the other scores count, too.
#: ``embeddings``: rows that are compared by direction. ``vectors``: rows of scores or embeddings,
#: one cannot tell: held to both. ``values``: numbers that mean something one by one. ``states``:
#: what the next run goes on from: other outputs tell of it, so that it is not judged by itself.
#: ``detections``: boxes with scores and classes, which are found again or not. ``audio``: samples
#: of a sound, of which the magnitudes of the spectrum over time count, and the length.
Kind = Literal[
    "labels", "classes", "tokens", "embeddings", "vectors", "values", "states", "detections",
    "audio",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)

_SCORES = {
    "logit", "logits", "logprob", "logprobs", "class", "classes", "classification", "classifier",
    "prob", "probs", "probability", "probabilities", "softmax", "cls",
}  # fmt: skip
_EMBEDDINGS = {
    "embed", "embeds", "embedding", "embeddings", "emb", "feature", "features", "descriptor",
    "descriptors", "pooled", "pooler", "representation",
}  # fmt: skip
_STATES = {"state", "states", "hidden", "cell", "cache", "present", "memory"}
_YES_OR_NO = {"Sigmoid", "HardSigmoid"}
_SOUNDS = {"audio", "sound", "speech", "wav", "wave", "waveform"}
_CHOICES = {"ArgMax", "Softmax", "LogSoftmax", "Hardmax", "TopK"}
_LONG_ROW = 8
_VOCABULARY = 1000
_SYMBOLS = 32  # classes: with fewer it may be tags, of which one says "no tag"
_FEWEST_SYMBOLS = 3  # that occur, or it may be a row of numbers of which one is large
_BETWEEN = (0.3, 0.97)  # of the steps
_UNIT = 1e-2  # slack of lengths that are 1
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Tail:
    """What the graph says of an output.

    Attributes:
        last: The operator that makes it, behind all that only moves values.
        read_by: Operators that read its values inside the model.
        fed_back: The input that it becomes in the next run; empty for none.
        followed: Whether other outputs tell of it: at once, or in the next run, which goes on
            from it.
        decodes: Whether the model appends to a cache: its scores are those of a vocabulary.
        normed: The length of rows that came out of a norm, and are perhaps averaged; 0: none did.
    """

    last: str = ""
    read_by: frozenset[str] = frozenset()
    fed_back: str = ""
    followed: bool = False
    decodes: bool = False
    normed: int = 0


@dataclass(frozen=True)
class Known:
    """What an output is taken for.

    Attributes:
        kind: See :data:`Kind`.
        why: For the report.
        axis: The axis of classes.
        state: Whether the values are a state: its units, along the last axis, are one thing.
        blank: The class that says nothing, in sequences of symbols with nothing between them.
    """

    kind: Kind
    why: str = field(compare=False)
    axis: int = -1
    state: bool = False
    blank: int | None = None

    @property
    def chooses(self) -> bool:
        """Whether the place of the largest value is an answer."""
        return self.kind in ("classes", "tokens", "vectors")

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The values with classes along the last axis."""
        return array if self.axis == -1 else np.moveaxis(array, self.axis, -1)

    def dilution(self, arrays: Sequence[np.ndarray]) -> float:
        """How many rows there are for each that says something, 1 or more.

        A row that is turned is one symbol wrong, missing, or too much: what counts is their share
        of the symbols, not of all rows, most of which may say nothing.
        """
        if self.blank is None:
            return 1.0
        chosen = np.concatenate([self.rows(array).argmax(axis=-1).ravel() for array in arrays])
        return chosen.size / max(int(np.count_nonzero(chosen != self.blank)), 1)


def decide(name: str, arrays: Sequence[np.ndarray], tail: Tail | None = None) -> Known:
    """What an output is.

    Args:
        name: Of the output.
        arrays: Its values for some inputs.
        tail: What the graph says.
    """
    tail = tail or Tail()
    if tail.followed:
        next_run = f"the next run goes on from it, as input {tail.fed_back!r}"
        return Known("states", next_run if tail.fed_back else "what enters the tail tells of it")
    if any(map(is_discrete, arrays)):
        return Known("labels", "integers, booleans or texts")
    filled = [array for array in arrays if array.size]
    if not filled:
        return Known("values", "no values to tell by")
    if not tail.fed_back and (blank := _blank(filled)) is not None:
        return Known("classes", f"a sequence of symbols, class {blank} between them", blank=blank)
    if tail.fed_back:
        return Known("values", f"a state: it goes on as input {tail.fed_back!r}", state=True)
    if all(map(are_probabilities, filled)):
        return Known("classes", "its rows are probabilities")
    if all(map(_are_maps, filled)):
        return Known("classes", "probabilities along axis 1, for every place", 1)
    if all(map(are_logarithms, filled)):
        return Known("classes", "its rows are logarithms of probabilities")
    words = {word.lower() for word in _WORDS.findall(name)}
    if (words & _SOUNDS or tail.last == "Tanh") and is_sound(filled):
        return Known("audio", "one long row around zero: a waveform")
    wide = all(array.ndim > 1 and array.shape[-1] > 1 for array in filled)
    if wide and tail.decodes and all(array.shape[-1] >= _LONG_ROW for array in filled):
        return Known("tokens", "scores of a vocabulary: the model appends to a cache")
    if not wide:
        return Known("values", "one number a row")
    if choice := sorted(tail.read_by & _CHOICES):
        return Known("classes", f"the model itself takes {choice[0]} of it")
    if all(array.shape[-1] == tail.normed >= _LONG_ROW for array in filled):
        return Known("embeddings", "its rows come out of a norm, as no scores do")
    if words & _STATES:
        return Known("values", "its name says a state")
    if all(map(_are_unit, filled)):
        return Known("embeddings", "its rows have length 1")
    flat = all(array.ndim in (2, 3) for array in filled)
    if flat and words & _SCORES and not _are_shares(filled):
        if filled[0].ndim == 3 and filled[0].shape[-1] >= _VOCABULARY:
            return Known("tokens", "by its name, scores of a vocabulary")
        return Known("classes", "its name says scores of classes")
    if tail.last in _YES_OR_NO:
        return Known("values", "of a sigmoid: each value answers by itself")
    if len({array.shape[-1] for array in filled}) > 1:
        return Known("values", "its rows are as long as the inputs: one number a place")
    alike = flat and all(array.shape[-1] >= _LONG_ROW for array in filled) and _one_kind(filled)
    if alike and words & _EMBEDDINGS:
        return Known("embeddings", "its name says embeddings")
    if alike:
        return Known("vectors", "long rows of one kind: scores or embeddings, held to both")
    return Known("values", "numbers that mean something one by one")


def _blank(arrays: Sequence[np.ndarray]) -> int | None:
    """The class between symbols (Graves et al. 2006), where rows look like that.

    It is the first or the last of many, and many steps choose it; the others differ.
    """
    if not all(array.ndim == 3 and array.shape[-1] >= _SYMBOLS for array in arrays):
        return None
    count = arrays[0].shape[-1]
    if any(array.shape[-1] != count or array.size <= count for array in arrays):
        return None
    steps = np.zeros(count, np.int64)
    for array in arrays:
        steps += np.bincount(array.argmax(axis=-1).ravel(), minlength=count)
    most = int(steps.argmax())
    symbols = np.count_nonzero(steps) - 1
    share = steps[most] / steps.sum()
    found = most in (0, count - 1) and _BETWEEN[0] <= share <= _BETWEEN[1]
    return most if found and symbols >= _FEWEST_SYMBOLS else None


def sounds(
    names: Sequence[str], runs: Sequence[Sequence[np.ndarray]], tails: Mapping[str, Tail]
) -> frozenset[str]:
    """Which outputs are waveforms.

    Args:
        names: Of the outputs.
        runs: For each feed, the outputs.
        tails: What the graph says of outputs, by name.
    """
    each = {name: [run[place] for run in runs] for place, name in enumerate(names)}
    return frozenset(
        name for name, arrays in each.items()
        if any(a.dtype.kind == "f" and a.ndim and a.size == a.shape[-1] for a in arrays[:1])
        and decide(name, arrays, tails.get(name)).kind == "audio"
    )  # fmt: skip


def _are_maps(array: np.ndarray) -> bool:
    return array.ndim == 4 and are_probabilities(array, 1)


def _are_unit(array: np.ndarray) -> bool:
    if array.ndim < 2 or array.shape[-1] < _LONG_ROW:
        return False
    lengths = np.linalg.norm(array.astype(np.float64), axis=-1)
    return bool((np.abs(lengths - 1) <= _UNIT).all())


def _are_shares(arrays: Sequence[np.ndarray]) -> bool:
    """Whether all is between 0 and 1: of each class by itself, several or none may be there."""
    return all(array.min() >= 0 and array.max() <= 1 for array in arrays)


def _one_kind(arrays: Sequence[np.ndarray]) -> bool:
    from onnxshrink.kernels.slices import Slices

    slices = Slices()
    for array in arrays:
        values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
        slices.add(values, np.zeros_like(values))
    return slices.alike
