"""Activations whose channels can be scaled: the same readers and sources in every spelling."""

from __future__ import annotations

import onnx
import pytest
from spellings import NETS
from weight_models import normal, parsed

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers import scalable

Found = list[tuple[tuple[str, ...], str, str]]


def sites(proto: onnx.ModelProto, *, norms: bool) -> Found:
    """For each activation its readers, its source, and why it has none."""
    found, unfit = scalable.find(Model.from_proto(proto), norms=norms)
    assert not unfit
    return [
        (
            tuple(part.view.name for part in site.readers),
            "" if site.source is None else site.source.view.name,
            site.why_not,
        )
        for site in found
    ]


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("name", ["dense", "convolutions", "batch-norms"])
def test_every_spelling_has_the_same(name: str, norms: bool) -> None:
    net = NETS[name]()
    wanted = sites(net.spellings[net.plain], norms=norms)
    assert any(source for _, source, _ in wanted)
    for spelling, proto in net.spellings.items():
        if spelling != "FusedMatMul transA":
            assert sites(proto, norms=norms) == wanted, spelling


@pytest.mark.parametrize("name", ["layer-norms", "rms-norms", "image-norms"])
def test_norms_take_the_factors(name: str) -> None:
    for spelling, proto in NETS[name]().spellings.items():
        found = {readers: source for readers, source, _ in sites(proto, norms=True)}
        squeezed = "Skip" in spelling  # their net has them between two operators that move axes
        assert squeezed or found[("w2",)] == "gain", spelling


def test_what_is_read_across_says_why() -> None:
    proto = NETS["dense"]().spellings["FusedMatMul transA"]
    _, unfit = scalable.find(Model.from_proto(proto), norms=False)
    assert unfit == {name: "its input's channels cannot be told" for name in ("w1", "w2")}


def test_a_function_that_keeps_no_factors_is_the_end() -> None:
    proto = parsed(
        """g (float[n, 8] x) => (float[n, 8] y) {
            h = com.microsoft.FusedGemm<activation = "Tanh">(x, a, b)  y = MatMul(h, c)
        }""",
        a=normal(8, 8), b=normal(8), c=normal(8, 8),
    )  # fmt: skip
    found = {readers: why for readers, _, why in sites(proto, norms=False)}
    assert "its Tanh is part of the operator" in found[("c",)]


def test_gains_of_groups_are_not_those_of_channels() -> None:
    """GroupNormalization had one gain for each group before opset 21."""
    header = '<ir_version: 8, opset_import: ["": 18]>'
    proto = parsed(
        """g (float[1, 8, 4, 4] x) => (float[1, 2] y) {
            h = GroupNormalization<num_groups = 4>(x, gain, shift)
            f = Flatten(h)  y = MatMul(f, w)
        }""",
        header, gain=normal(4), shift=normal(4), w=normal(128, 2),
    )  # fmt: skip
    ((_, source, why),) = sites(proto, norms=True)
    assert source == ""
    assert why == "GroupNormalization has one factor for each of its groups"
