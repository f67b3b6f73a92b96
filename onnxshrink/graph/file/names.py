"""Short names for what is internal to a model: of small files, long ones are most of the bytes."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx

from onnxshrink.graph.file import round_trip

_WORTH = 0.02  # of the file
_FEWEST_BYTES = 1024  # that nobody would give names for
_WEIGHT = 256  # elements from which a constant is a weight, which people and tools select by name


@dataclass
class ShortNames:
    """Names to be shortened where a model is written, if that pays.

    One name becomes the same short one everywhere, in bodies and functions too, and no two become
    the same: what refers to what, and what hides what, stays as it was.

    Attributes:
        patterns: Names that stay, besides those of inputs, outputs and weights.
        keep: More of them, to the letter.
        given: The short names by the old ones, of the file that was written last.
    """

    patterns: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()
    given: dict[str, str] = field(default_factory=dict)

    def apply(self, proto: onnx.ModelProto, payload: int) -> None:
        """Shorten the names of a message, in place, where it makes the file clearly smaller.

        Args:
            proto: The model as it will be written.
            payload: Bytes of weights that the file will have besides the message.
        """
        self.given = {}
        if proto.training_info:  # whose bindings and algorithms name values, too
            return
        before = proto.ByteSize()
        every = dict.fromkeys(name for name in _names(proto) if name)
        kept = self.keep | _public(proto)
        kept = kept.union(*([n for n in every if _fits(n, p)] for p in self.patterns))
        short = (name for name in _shortest() if name not in kept)
        found = {old: next(short) for old in every if old not in kept}
        trial = onnx.ModelProto()
        trial.CopyFrom(proto)
        _rename(trial, found)
        saved = before - trial.ByteSize()
        if saved >= max(_FEWEST_BYTES, _WORTH * (before + payload)):
            self.given = found
            _rename(proto, found)


def _shortest() -> Iterator[str]:
    """All names of one letter, then a letter and another character, and so on."""
    more = string.ascii_letters + string.digits
    for length in itertools.count():
        for letters in itertools.product(string.ascii_letters, *[more] * length):
            yield "".join(letters)


def _public(proto: onnx.ModelProto) -> set[str]:
    """Names that somebody outside may know: of inputs, outputs and weights."""
    graph = proto.graph
    found = {value.name for value in (*graph.input, *graph.output)}
    for each in round_trip.graphs(proto):
        found.update(t.name for t in each.initializer if _is_weight(t))
        for sparse in each.sparse_initializer:
            found.update((sparse.values.name, sparse.indices.name))
    for node in itertools.chain.from_iterable(round_trip.node_lists(proto)):
        if node.op_type == "EPContext":  # a compiled part that knows its values by their names
            found.update((*node.input, *node.output))
        if any(_is_weight(a.t) for a in node.attribute if a.type == onnx.AttributeProto.TENSOR):
            found.update(node.output)
    return found


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) >= _WEIGHT


def _names(proto: onnx.ModelProto) -> Iterator[str]:
    """Every name of a node or value, in the order of the file."""
    for graph in round_trip.graphs(proto):
        yield from (value.name for value in graph.input)
        yield from (tensor.name for tensor in graph.initializer)
    for function in proto.functions:
        yield from function.input
    for node in itertools.chain.from_iterable(round_trip.node_lists(proto)):
        yield from (node.name, *node.input, *node.output)


def _rename(proto: onnx.ModelProto, given: dict[str, str]) -> None:
    def renamed(names: Iterable[str]) -> list[str]:
        return [given.get(name, name) for name in names]

    def rename(parts: Iterable[onnx.ValueInfoProto | onnx.TensorProto | onnx.NodeProto]) -> None:
        for part in parts:
            if part.name in given:
                part.name = given[part.name]

    for graph in round_trip.graphs(proto):
        rename([*graph.input, *graph.output, *graph.value_info, *graph.initializer])
        for note in graph.quantization_annotation:
            note.tensor_name = given.get(note.tensor_name, note.tensor_name)
            for entry in note.quant_parameter_tensor_names:
                entry.value = given.get(entry.value, entry.value)
    for function in proto.functions:
        rename(function.value_info)
        function.input[:] = renamed(function.input)
        function.output[:] = renamed(function.output)
    for nodes in round_trip.node_lists(proto):
        rename(nodes)
        for node in nodes:
            node.input[:] = renamed(node.input)
            node.output[:] = renamed(node.output)
            for device in getattr(node, "device_configurations", ()):
                for spec in device.sharding_spec:
                    spec.tensor_name = given.get(spec.tensor_name, spec.tensor_name)
