"""Feeds of decoders: one system, made of tokens alone, and the same as made by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import decoders
import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import Run

from onnxshrink.errors import RecipeError
from onnxshrink.goal import Goal
from onnxshrink.graph.analysis.states import State, states
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.decoding.lengths import value_of
from onnxshrink.runtime.decoding.system import find
from onnxshrink.runtime.generate import generated_inputs
from onnxshrink.runtime.inputs import Feed, load_inputs
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import Answers, answers

DECODERS = [decoders.genai, decoders.packed, decoders.dynamo, decoders.merged]
Build = Callable[[], onnx.ModelProto]


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("term", "length"),
    [("a", 2), ("a + b", 5), ("2*a - 1", 3), ("b//2", 1), (7, 7), ("c", None), ("a.b", None),
     ("a + ", None), ("a**b", None), ("f(a)", None)],
)  # fmt: skip
def test_terms_of_lengths(term: int | str, length: int | None) -> None:
    assert value_of(term, {"a": 2, "b": 3}) == length


def test_states_are_found_by_what_the_graph_does() -> None:
    caches = [(f"kv_{i}_{kind}", f"cat_{2 * i + place}", 2)
              for i in range(2) for place, kind in enumerate("kv")]  # fmt: skip
    assert states(Model.from_proto(decoders.dynamo())) == tuple(State(*each) for each in caches)
    assert states(Model.from_proto(decoders.recurrent())) == (
        State("h0", "hn"), State("c0", "cn"),
    )  # fmt: skip
    grown = {state.input: state.grows for state in states(Model.from_proto(decoders.merged()))}
    assert grown == {
        f"past_key_values.0.{side}.{kind}": axis
        for side, axis in (("decoder", 2), ("encoder", None)) for kind in ("key", "value")
    }  # fmt: skip


def test_roles_do_not_depend_on_names() -> None:
    decoder = find(Model.from_proto(decoders.dynamo()))
    assert decoder is not None
    assert (decoder.tokens, decoder.words) == ("tokens", decoders.WORDS)
    assert (decoder.masks, decoder.places) == ({"seen"}, {"index"})
    merged = find(Model.from_proto(decoders.merged()))
    assert merged is not None
    assert merged.branch == ("use_cache_branch", True)


@pytest.mark.parametrize("build", DECODERS)
def test_tokens_alone_are_rolled_out(build: Build) -> None:
    """Runs one after the other answer what one run over all tokens does."""
    proto, length = build(), 7
    ids = decoders.tokens(8, length)
    given: Feed = {("tokens" if build is decoders.dynamo else "input_ids"): ids}
    if build is decoders.merged:
        given["encoder_hidden_states"] = np.random.default_rng(1).standard_normal(
            (8, 5, decoders.WIDTH), np.float32
        )
    feeds = load_inputs(given, Model.from_proto(proto))
    assert len(feeds) == 8 * 4
    session = _session(proto)
    names = [output.name for output in session.get_outputs()]
    (last,) = (f for f in feeds[-8:] if np.array_equal(f[next(iter(given))][0], ids[2, -1:]))
    runs, feed, step = [], last, last
    while step is not None:
        runs.append(dict(zip(names, session.run(None, step), strict=True))[names[0]])
        feed, step = step, step.before
    assert [run.shape[1] for run in runs] == [1, 1, 1, length - 3]
    whole = dict(feed)  # the first run, over all of the text
    for name in whole:
        if name in given:
            whole[name] = given[name][2:3]
        elif whole[name].ndim == 2:
            ahead = np.ones if name in ("attention_mask", "seen") else None
            whole[name] = ahead((1, length), np.int64) if ahead else np.arange(length)[None]
    expected = session.run([names[0]], whole)[0]
    np.testing.assert_allclose(np.concatenate(runs[::-1], 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", DECODERS)
def test_generated_feeds_hang_together(build: Build, worker: Worker) -> None:
    proto = build()
    feeds = generated_inputs(Model.from_proto(proto), 4, 0, worker=worker)
    session, decoder = _session(proto), find(Model.from_proto(proto))
    assert decoder is not None
    past = next(state for state in decoder.states if state.grows is not None)
    assert [feed[past.input].shape[past.grows or 0] for feed in feeds] == [0, 0, 5, 5]
    for feed in feeds:
        assert all(np.isfinite(output).all() for output in session.run(None, feed))
        assert sum(array.nbytes for array in feed.values()) < 1e5
    again = generated_inputs(Model.from_proto(proto), 4, 0, worker=worker)
    for feed, other in zip(feeds, again, strict=True):
        assert all(np.array_equal(feed[name], other[name]) for name in feed)


def test_the_state_of_a_recurrent_net_goes_from_feed_to_feed() -> None:
    proto = decoders.recurrent()
    frames = np.random.default_rng(3).standard_normal((6, 4, 1, 8)).astype(np.float32)
    feeds = load_inputs([{"frames": part} for part in frames], Model.from_proto(proto))
    whole = load_inputs({"frames": frames.reshape(1, -1, 1, 8)}, Model.from_proto(proto))
    session = _session(proto)
    parts = np.concatenate([session.run(["scores"], feed)[0] for feed in feeds])
    np.testing.assert_allclose(parts, session.run(["scores"], whole[0])[0], atol=1e-5)


def test_steps_go_on_from_the_state_of_the_model_at_hand(worker: Worker, tmp_path: Path) -> None:
    """A model with a broken cache is found out by the step behind, and only there."""
    proto = decoders.dynamo()
    feeds = load_inputs({"tokens": decoders.tokens(8, 6)}, Model.from_proto(proto))
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    for node in broken.graph.node:  # what the next run gets is not what this one has read
        if node.output[0] == "cat_1":
            node.output[0] = "whole"
        node.input[:] = ["whole" if name == "cat_1" else name for name in node.input]
    broken.graph.node.append(onnx.helper.make_node("Neg", ["whole"], ["cat_1"]))
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path, each in zip(paths, (proto, broken), strict=True):
        path.write_bytes(each.SerializeToString())
    first, second = (worker.run(path, feeds).outputs for path in paths)
    errors = [float(np.abs(a[0] - b[0]).max()) for a, b in zip(first, second, strict=True)]
    assert max(errors[:8]) == 0
    assert min(errors[8:]) > 1e-2


def test_tokens_are_held_to_their_distribution_and_caches_to_nothing(
    cli: Run, tmp_path: Path
) -> None:
    """The figures of ``compare`` are those of runs that a user would make."""
    proto = decoders.genai()
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for stored in other.graph.initializer:
        if stored.name.startswith(("q.", "v.")):
            array = onnx.numpy_helper.to_array(stored)
            stored.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.02), stored.name))
    for name, each in (("a.onnx", proto), ("b.onnx", other)):
        (tmp_path / name).write_bytes(each.SerializeToString())
    np.savez("ids.npz", input_ids=decoders.tokens(8, 6))
    words = ["compare", "a.onnx", "b.onnx", "--calibration", "ids.npz", "--json"]
    found = {row["name"]: row for row in json.loads(cli(*words).out)["outputs"]}
    kl = found["logits"]["kl"]
    assert 0 < kl < 1
    assert found["present.0.value"]["relative_error"] > 0.015
    assert cli(*words, "--max-kl", kl * 1.01).code == 0
    assert "divergence" in cli(*words, "--max-kl", kl * 0.99).err
    assert cli(*words, "--max-error", found["logits"]["worst"] * 1.01).code == 0
    goal = Goal(max_kl=0.02)
    reference = _answers(proto, tmp_path)
    asked = goal.asked(reference)
    assert asked.pop("logits") == {"divergence": 0.02}
    assert not any(asked.values())
    assert reference.judged == ("logits",)


def test_perplexity_is_that_of_one_run_over_all_tokens(cli: Run, tmp_path: Path) -> None:
    """Whoever gives tokens alone is told how well the next ones are foretold, in both models."""
    proto, ids = decoders.genai(), decoders.tokens(8, 9)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    (head,) = (stored for stored in other.graph.initializer if stored.name == "head")
    array = onnx.numpy_helper.to_array(head)
    head.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.1), "head"))
    for name, each in (("a.onnx", proto), ("b.onnx", other)):
        (tmp_path / name).write_bytes(each.SerializeToString())
    np.savez("ids.npz", input_ids=ids)
    words = ["compare", "a.onnx", "b.onnx", "--calibration", "ids.npz"]
    found = json.loads(cli(*words, "--json").out)["perplexity"]
    expected = [_perplexity(each, ids) for each in (proto, other)]
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4)
    rise = found["logits"][1] / found["logits"][0] - 1
    assert cli(*words, "--max-perplexity-rise", rise + 1e-3).code == 0
    assert "perplexity rises from" in cli(*words, "--max-perplexity-rise", rise - 1e-3).err
    reference, after = _answers(proto, tmp_path), _answers(other, tmp_path)
    goal = Goal(max_perplexity_rise=0.01)
    (promise,) = goal.promises(reference, after)
    known = decoders.tokens(8, 6)
    told = _perplexity(other, known) / _perplexity(proto, known) - 1
    assert promise.estimate.figure == pytest.approx(told, rel=1e-3)
    assert promise.refuses == (promise.estimate.careful > 0.01)
    with pytest.raises(RecipeError, match="token ids, or text"):
        goal.asked(replace(reference, following=()))


def _perplexity(proto: onnx.ModelProto, ids: np.ndarray) -> float:
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for name in (f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")):
        feed[name] = np.zeros((len(ids), decoders.SHARED, 0, decoders.SIZE), np.float32)
    logits = _session(proto).run(["logits"], feed)[0].astype(np.float64)[:, :-1]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return float(np.exp(-np.log(np.take_along_axis(shares, ids[:, 1:, None], -1)).mean()))


def _answers(proto: onnx.ModelProto, folder: Path) -> Answers:
    model = Model.from_proto(proto)
    feeds = load_inputs({"input_ids": decoders.tokens(8, 6)}, model)
    with Worker() as worker:
        return answers(model, feeds, worker, folder=folder)
