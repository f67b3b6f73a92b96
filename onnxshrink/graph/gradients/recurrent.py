"""Recurrent layers written out step by step, where their number is known and small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnxshrink.graph.analysis.shape_rules import static
from onnxshrink.graph.gradients.application import Application
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.read import Unknown

_MOST_STEPS = 64
#: What changes what a step computes.
_OTHER = ("activations", "activation_alpha", "activation_beta", "clip", "input_forget", "layout")

#: Of the input's part of a step, the recurrent weights and biases, and the states: the new states.
Step = Callable[[Term, Term, Term | None, Sequence[Term]], Sequence[Term]]


def _part(term: Term, axis: int, start: int, stop: int) -> Term:
    """Some places of an axis."""
    ends = ([start], [stop], [axis])
    shape = (
        None if term.shape is None else (*term.shape[:axis], stop - start, *term.shape[axis + 1 :])
    )
    return term.tape.node("Slice", term, *map(term.tape.integers, ends)).shaped(shape)


def _one(term: Term, place: int) -> Term:
    """One place of the first axis, which goes."""
    part = _part(term, 0, place, place + 1)
    shape = None if part.shape is None else part.shape[1:]
    return term.tape.node("Squeeze", part, term.tape.integers([0])).shaped(shape)


def _gates(term: Term, count: int) -> Iterator[Term]:
    """The parts of the last axis that belong to each gate."""
    width = static(term.shape[-1:] if term.shape is not None else None)
    if width is None:
        raise Unknown("its width is not known")
    size, axis = width[0] // count, term.rank - 1
    for gate in range(count):
        yield _part(term, axis, gate * size, (gate + 1) * size)


def _sigmoid(term: Term) -> Term:
    return term.apply("Sigmoid")


def _lstm(x: Term, r: Term, bias: Term | None, states: Sequence[Term]) -> Sequence[Term]:
    hidden, cell = states
    total = x + hidden @ r.T
    i, o, f, c = _gates(total if bias is None else total + bias, 4)
    cell = _sigmoid(f) * cell + _sigmoid(i) * c.apply("Tanh")
    return _sigmoid(o) * cell.apply("Tanh"), cell


def _gru(before: bool) -> Step:
    """With the reset gate in front of the product with the states, or behind it (``before``)."""

    def step(x: Term, r: Term, bias: Term | None, states: Sequence[Term]) -> Sequence[Term]:
        (hidden,) = states
        xz, xr, xh = _gates(x, 3)
        rz, rr, rh = (each.T for each in _gates(r.T, 3))
        bz, br, bh = [None] * 3 if bias is None else _gates(bias, 3)

        def product(value: Term, weight: Term, shift: Term | None) -> Term:
            made = value @ weight.T
            return made if shift is None else made + shift

        update, reset = (
            _sigmoid(xz + product(hidden, rz, bz)), _sigmoid(xr + product(hidden, rr, br))
        )  # fmt: skip
        inner = reset * product(hidden, rh, bh) if before else product(reset * hidden, rh, bh)
        new = (xh + inner).apply("Tanh")
        return [new + update * (hidden - new)]

    return step


def _rnn(x: Term, r: Term, bias: Term | None, states: Sequence[Term]) -> Sequence[Term]:
    (hidden,) = states
    total = x + hidden @ r.T
    return [(total if bias is None else total + bias).apply("Tanh")]


def unrolled(op: Application) -> list[Term]:
    """The results of a recurrent layer, of plain operators.

    Raises:
        Unknown: Why it cannot be written out.
    """
    x, w, r, b = op[0], op[1], op[2], op.operand(3)
    kind, tape = op.node.op_type, op.tape
    kernel, steps = static(r.shape), None if x.shape is None else x.shape[0]
    if x.shape is None or steps is None or kernel is None or w.shape is None:
        raise Unknown("takes a number of steps that is not known")
    if steps > _MOST_STEPS:
        raise Unknown(f"takes {steps} steps, more than {_MOST_STEPS} that are written out")
    if {*_OTHER} & {*op.node.attributes} or op.operand(4) is not None or op.operand(7) is not None:
        raise Unknown("computes its steps in a way that is not written out")
    width, gates = kernel[2], kernel[1]
    count = 2 if kind == "LSTM" else 1
    step: Step = (
        _lstm if kind == "LSTM"
        else _gru(bool(op.integer("linear_before_reset", 0))) if kind == "GRU" else _rnn
    )  # fmt: skip
    shape = tape.joined([x.size(1), tape.integers([width])])
    none = tape.node("Expand", x.number(0), shape).shaped((x.shape[1], width))
    made: list[list[Term]] = []
    for direction in range(kernel[0]):
        states = [
            none if (first := op.operand(5 + place)) is None else _one(first, direction)
            for place in range(count)
        ]
        inputs = x @ _one(w, direction).T
        shift = None
        if b is not None:
            both = _one(b, direction)
            inputs = inputs + _part(both, 0, 0, gates)
            shift = _part(both, 0, gates, 2 * gates)
        order = list(range(steps))
        if op.text("direction", "forward") == "reverse" or direction:
            order.reverse()
        hidden = {}
        for at in order:
            states = list(step(_one(inputs, at), _one(r, direction), shift, states))
            hidden[at] = states[0].unsqueeze([0])
        made.append([tape.joined([hidden[at] for at in range(steps)]).unsqueeze([1]),
                     *(state.unsqueeze([0]) for state in states)])  # fmt: skip
    sequences, *last = zip(*made, strict=True)
    return [tape.joined(sequences, 1), *(tape.joined(states) for states in last)]
