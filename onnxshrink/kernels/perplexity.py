"""How well scores of a vocabulary foretell the tokens that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.probabilities import are_logarithms, are_probabilities

#: Stands where nobody knows what follows.
UNKNOWN = -1
NO_TOKENS = (
    "no perplexity: it takes a decoder that was given token ids, or text and a tokenizer, alone"
)
_ROWS = 2**19  # numbers that are looked at together


def foretells(scores: np.ndarray, labels: np.ndarray) -> bool:
    """Whether an output could be the scores of what follows: a row for each label."""
    rows = scores.ndim > 1 and scores.shape[:-1] == labels.shape
    return rows and scores.dtype.kind in "fV"


def surprise(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """The cross-entropy of labels, in nats, summed up, and how many of them are known.

    Args:
        scores: [..., words]: logits, probabilities or their logarithms.
        labels: [...]: which word follows, or :data:`UNKNOWN`.
    """
    known = labels.reshape(-1) != UNKNOWN
    rows, wanted = scores.reshape(-1, scores.shape[-1]), labels.reshape(-1)
    total, numbers = 0.0, np.flatnonzero(known)
    given = are_probabilities(rows[:1]) and not are_logarithms(rows[:1])
    for start in range(0, len(numbers), step := max(1, _ROWS // rows.shape[-1])):
        part = numbers[start : start + step]
        values: npt.NDArray[np.float64] = rows[part].astype(np.float64)
        chosen = values[np.arange(len(part)), wanted[part]]
        if given:
            total -= float(np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).sum())
            continue
        top = values.max(axis=1)
        total += float((top + np.log(np.exp(values - top[:, None]).sum(axis=1)) - chosen).sum())
    return total, len(numbers)


class Perplexity:
    """Adds up what scores say of the tokens that follow, feed after feed."""

    def __init__(self) -> None:
        self._nats = 0.0
        self.tokens = 0

    def add(self, scores: np.ndarray, labels: np.ndarray | None) -> None:
        """Take in the scores of one feed; nothing where no labels belong to them."""
        if labels is not None and foretells(scores, labels):
            nats, tokens = surprise(scores, labels)
            self._nats += nats
            self.tokens += tokens

    @property
    def figure(self) -> float | None:
        """The perplexity; None without a token that is known."""
        return math.exp(self._nats / self.tokens) if self.tokens else None


def counted(
    answers: Iterable[Sequence[np.ndarray]], found: Mapping[str, Perplexity],
    labels: Iterable[np.ndarray | None],
) -> Iterator[Sequence[np.ndarray]]:  # fmt: skip
    """The same answers, each added up on its way.

    Args:
        answers: For each feed, the outputs.
        found: What adds up, in the order of the outputs.
        labels: For each feed.
    """
    for outputs, wanted in zip(answers, labels, strict=True):
        for one, scores in zip(found.values(), outputs, strict=True):
            one.add(scores, wanted)
        yield outputs


def perplexity(answers: Iterable[np.ndarray], labels: Sequence[np.ndarray | None]) -> float | None:
    """That of one output over some feeds; None where no labels belong to it."""
    found = Perplexity()
    for scores, wanted in zip(answers, labels, strict=True):
        found.add(scores, wanted)
    return found.figure


def pairs_of(
    before: Mapping[str, Perplexity], after: Mapping[str, Perplexity]
) -> dict[str, tuple[float, float]]:
    """Both figures of every output that has them."""
    pairs = {name: (one.figure, after[name].figure) for name, one in before.items()}
    return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
