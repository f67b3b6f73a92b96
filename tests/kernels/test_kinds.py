"""What an output is taken for, from its name, its values, and the graph around it."""

import numpy as np
import pytest
from hard_models import text

from onnxshrink.graph.analysis.tails import tails
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.kinds import Kind, Tail, decide

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((20, 10)) * 4
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
UNIT = SCORES / np.linalg.norm(SCORES, axis=1, keepdims=True)
BOXES = np.concatenate([np.abs(SCORES[:, :4]) * 300, SHARES[:, :6]], axis=1)

CASES: dict[str, tuple[str, np.ndarray, Kind]] = {
    "integers": ("y", np.arange(9), "labels"),
    "probabilities": ("y", SHARES, "classes"),
    "probabilities of every step": ("y", SHARES[None], "classes"),
    "logarithms of probabilities": ("y", np.log(SHARES), "classes"),
    "logits by name": ("my_logits", SCORES, "classes"),
    "scores of two classes by name": ("clsLogits", SCORES[:, :2], "classes"),
    "a row of scores": ("scores", SCORES, "vectors"),
    "scores of boxes": ("scores", SCORES[None], "vectors"),
    "shares that do not add up": ("class_scores", 1 / (1 + np.exp(-SCORES)), "vectors"),
    "logits of a vocabulary": ("logits", RNG.standard_normal((1, 4, 2000)), "tokens"),
    "rows of length 1": ("y", UNIT, "embeddings"),
    "embeddings by name": ("sentence_embedding", SCORES, "embeddings"),
    "long rows of one kind": ("y", SCORES, "vectors"),
    "boxes beside scores": ("y", BOXES, "values"),
    "one number": ("y", SCORES[:, :1], "values"),
    "a few numbers": ("y", SCORES[:, :3], "values"),
    "a state by name": ("hidden_2", SCORES, "values"),
    "a waveform by name": ("audio", np.sin(np.arange(3000) / 9)[None, None], "audio"),
    "nothing": ("y", np.zeros((0, 4)), "values"),
}


@pytest.mark.parametrize(("name", "array", "kind"), CASES.values(), ids=CASES)
def test_names_and_values_tell(name: str, array: np.ndarray, kind: Kind) -> None:
    known = decide(name, [array.astype(array.dtype if array.dtype.kind == "i" else np.float32)])
    assert known.kind == kind, known.why


def test_probabilities_of_every_place_are_along_axis_1() -> None:
    maps = np.moveaxis(SHARES.reshape(1, 4, 5, 10), -1, 1)
    known = decide("y", [maps])
    assert (known.kind, known.axis) == ("classes", 1)
    assert (known.rows(maps) == SHARES.reshape(1, 4, 5, 10)).all()


def symbols(blank: int, rows: int = 200, classes: int = 40) -> np.ndarray:
    """Scores of a sequence of symbols with three rows of nothing to each of them."""
    rng = np.random.default_rng(blank)
    scores = rng.standard_normal((1, rows, classes))
    scores[..., blank] += 8
    scores[:, ::4, blank] -= 16
    return scores


@pytest.mark.parametrize("blank", [0, 39])
def test_what_stands_between_symbols_says_nothing(blank: int) -> None:
    known = decide("y", [symbols(blank)])
    assert (known.kind, known.blank) == ("classes", blank)
    assert known.dilution([symbols(blank)]) == 4
    assert decide("y", [symbols(blank)], Tail(fed_back="h")).blank is None
    assert decide("y", [symbols(7)]).blank is None
    assert decide("y", [symbols(blank)[..., :20]]).blank is None  # tags
    still = symbols(blank)
    still[..., 3] += 100
    assert decide("y", [still]).blank is None


def test_rows_as_long_as_the_inputs_have_a_number_a_place() -> None:
    rows = [SCORES[:1, :length] for length in (9, 12, 10)]
    assert decide("y", rows).kind == "values"
    assert decide("start_logits", rows).kind == "classes"  # one of the places is the answer
    assert decide("y", rows[:1]).kind == "vectors"


def test_the_graph_tells() -> None:
    assert decide("y", [SCORES], Tail(read_by=frozenset({"ArgMax"}))).kind == "classes"
    state = decide("logits", [SCORES], Tail(fed_back="h"))
    assert (state.kind, state.state) == ("values", True)
    assert decide("y", [1 / (1 + np.exp(-SCORES))], Tail("Sigmoid")).kind == "values"
    normed = Tail(normed=SCORES.shape[1])
    assert decide("last_hidden_state", [SCORES], normed).kind == "embeddings"
    assert decide("y", [SCORES[:, 1:]], normed).kind == "vectors"  # other rows than the norm's


def test_tails_of_a_model() -> None:
    model = Model.from_proto(
        text(
            "g (float[n, 4] x, float[1, n, 4] h, float[1, n, 4] state) => (int64[n] label, "
            "float[n, 4] y, float[1, n, 4] h_out, float[1, n, 4] stateN) {"
            "z = Relu(x) y = Identity(z) label = ArgMax<axis = 1, keepdims = 0>(z) "
            "h_out = Tanh(h) stateN = Neg(state) }"
        )
    )
    found = tails(model)
    assert found["y"] == Tail("Relu", frozenset({"ArgMax"}), "")
    assert found["h_out"].fed_back == "h"
    assert found["stateN"].fed_back == "state"
    assert found["label"].last == "ArgMax"
