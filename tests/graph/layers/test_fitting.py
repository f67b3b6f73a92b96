"""Layers are found in every spelling, and their matrices and biases are those of the plain one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hard_models import HARD
from spellings import NETS

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers import bias, fitting
from onnxshrink.graph.layers.fitting import Layer
from onnxshrink.graph.rewrite import plain
from onnxshrink.runtime.compare_values import compute
from onnxshrink.runtime.worker import Worker


def layers(proto: onnx.ModelProto, worker: Worker) -> dict[str, Layer]:
    model = plain.seen_through(Model.from_proto(proto))
    reader = fitting.LayerReader(model, lambda part, feeds: compute(part, feeds, worker))
    return {outline.name: reader.layer(outline) for outline in fitting.outlines(model, model)}


@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_products_in_every_spelling(name: str, worker: Worker) -> None:
    net = NETS[name]()
    wanted = layers(net.spellings[net.plain], worker)
    assert set(wanted) == {"w1", "w2"}
    for spelling, proto in net.spellings.items():
        found = layers(proto, worker)
        assert set(found) == set(wanted), spelling
        for weight, layer in wanted.items():
            other = found[weight]
            matrix = layer.held.matrix
            if spelling == "ConvTranspose":  # the taps of its kernel are read from the end
                np.testing.assert_allclose(np.sort(other.held.matrix), np.sort(matrix), rtol=1e-5)
            else:
                np.testing.assert_allclose(other.held.matrix, matrix, rtol=1e-5, err_msg=spelling)
            np.testing.assert_allclose(other.held.shift, layer.held.shift, rtol=1e-6)
            assert [part.role for part in other.parts] == ["weights"]
            assert other.bias is not None
            assert other.bias.value.name == weight.replace("w", "b")
            np.testing.assert_allclose(other.shifts(other.held), layer.shifts(layer.held))


@pytest.mark.parametrize("name", ["layer-norms", "rms-norms", "image-norms"])
def test_norms_in_every_spelling(name: str, worker: Worker) -> None:
    for spelling, proto in NETS[name]().spellings.items():
        (gains,) = [layer for layer in layers(proto, worker).values() if layer.gain]
        assert gains.name == "gain", spelling
        assert [part.role for part in gains.parts] == ["gains"]
        shifted = any(tensor.name == "shift" for tensor in proto.graph.initializer)
        assert (gains.bias is not None) == shifted


def test_what_stays_inside_of_an_operator_says_so(worker: Worker) -> None:
    model = Model.from_proto(HARD["untaken"]().proto)
    hidden = [each for each in fitting.outlines(model, model) if each.hidden]
    assert len(hidden) >= 2
    reader = fitting.LayerReader(model, lambda part, feeds: compute(part, feeds, worker))
    for outline in hidden:
        assert "stays inside of LSTM" in bias.why_not(outline)
        with pytest.raises(ValueError, match="stays inside of LSTM"):
            reader.layer(outline)
