"""How far values are from what is wanted of them, as outputs of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients.definitions import spelled_out
from onnxshrink.graph.gradients.terms import Tape, Term

_LEAST = 1e-12  # probability


@dataclass(frozen=True)
class Squares:
    """The sum of squared differences from what is wanted."""

    def term(self, value: Term, target: Term) -> Term:
        """The loss."""
        off = value - target
        return _total(off * off)


@dataclass(frozen=True)
class Soft:
    """Cross-entropy with the classes' shares that are wanted, both softened (Hinton et al. 2015).

    It is multiplied with the temperature's square, so that its gradients keep their size, and is
    summed over rows. What can be gained is its difference to the entropy of what is wanted, which
    is taken away.

    Attributes:
        temperature: What scores are divided by.
        probabilities: Whether they are probabilities, whose logarithms are scores.
        axis: Of the classes.
        shares: Whether what is wanted is shares themselves, 1 for a label, rather than scores.
    """

    temperature: float = 1.0
    probabilities: bool = False
    axis: int = -1
    shares: bool = False

    def term(self, value: Term, target: Term) -> Term:
        """The loss."""
        ours = self._logarithms(value)
        if self.shares:
            share, wanted = target, target.apply("Max", target.number(_LEAST)).apply("Log")
        else:
            wanted = self._logarithms(target)
            share = wanted.apply("Exp")
        return _total(share * (wanted - ours)) * self.temperature**2

    def _logarithms(self, scores: Term) -> Term:
        if self.probabilities:
            scores = scores.apply("Max", scores.number(_LEAST)).apply("Log")
        return (scores / self.temperature).apply("LogSoftmax", axis=self.axis)


class Aim(NamedTuple):
    """A value, and how it is held against what is wanted of it."""

    value: str
    loss: Squares | Soft


@dataclass(frozen=True)
class ModelWithLosses:
    """A model that also says how far it is off.

    Attributes:
        model: It takes targets beside its inputs, and gives the losses.
        targets: By loss the input for what is wanted.
        losses: By loss the output that it is, one number.
    """

    model: Model
    targets: Mapping[str, str]
    losses: Mapping[str, str]


def with_losses(model: Model, aims: Mapping[str, Aim]) -> ModelWithLosses:
    """Let a model compute losses of values of its main graph.

    Args:
        model: The model; it is left as it is.
        aims: The losses by name.
    """
    tape = Tape.over(spelled_out(model))
    known = tape.values
    targets = {name: tape.input(f"{name}.target", known[aim.value]) for name, aim in aims.items()}
    made = {
        name: tape.named(aim.loss.term(tape.of(known[aim.value]), targets[name]), f"{name}.loss")
        for name, aim in aims.items()
    }
    return ModelWithLosses(
        tape.model([*targets.values()], [*made.values()]),
        {name: target.name for name, target in targets.items()},
        {name: loss.name for name, loss in made.items()},
    )


def _total(term: Term) -> Term:
    """The sum of all elements, as a number without axes."""
    return term.tape.node("ReduceSum", term, keepdims=0).shaped(())
