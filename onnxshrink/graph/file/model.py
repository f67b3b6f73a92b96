"""A model in memory: load, save, clone, digest.

The graph is an ``onnx_ir`` model. Weights stay on disk until someone asks for one, so a model of
several gigabytes is edited tensor by tensor. What onnx_ir would lose is put back by ``round_trip``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxshrink import files
from onnxshrink.errors import ModelError, OutputError
from onnxshrink.graph.file import notes, reading, round_trip, tensors, wire
from onnxshrink.graph.file.data_files import superseding
from onnxshrink.graph.file.names import ShortNames

#: protobuf cannot hold more than this in one file.
SINGLE_FILE_LIMIT = 2**31 - 1

#: New tensors of a model above this size go to a temporary file instead of memory.
_SPILL_ABOVE = 512 * 2**20
_ALIGNED = 64  # bytes that tensors in a data file begin at a multiple of

Storage = Literal["auto", "single", "external"]
Parts = tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]


class Model:
    """An ONNX model, its weights wherever they lie, and the journal of what was touched.

    Attributes:
        ir: The graph, free to edit; tell :meth:`touch` what was edited.
        path: The file that it came from, if any; absolute, whatever becomes of the directory.
        label: What to call the model in messages: the path as it was given.
        repairs: What was put right when it was read, for people.
        max_opset: The operator set up to which passes may raise it; None: as they need.
        short_names: Which names are shortened where it is written; None: all stay.
        kept: By name of values that lost channels: what is left of each axis; None: all of it.
        edits: How many entries the journal has: a clone with as many is as this model is.
    """

    def __init__(
        self, proto: onnx.ModelProto, path: Path | None = None, repairs: Sequence[str] = ()
    ):
        self.path = None if path is None else path.absolute()
        self.label = "the model" if path is None else str(path)
        self.repairs = tuple(repairs)
        self.max_opset: int | None = None
        self.short_names: ShortNames | None = None
        self.kept: dict[str, list[np.ndarray | None]] = {}
        self._original = proto
        self._touched: set[str] = set()
        self._rewritten = False
        self.edits = 0
        self._names: set[str] | None = None
        self._numbers: dict[str, int] = {}
        self._spill: tensors.Spill | None = None
        try:
            self.ir = ir.from_proto(round_trip.readable(proto))
        except Exception as error:  # onnx_ir wraps every failure in its own kinds
            reason = f"not a graph that can be read: {_root(error)}"
            raise ModelError(f"{self.label}: {reason}") from error
        self._resolve()

    @classmethod
    def load(cls, path: files.StrPath) -> Model:
        """Open a model file; its weights are read when they are needed.

        Raises:
            ModelError: No such file, not an ONNX model, truncated, or its external data are
                missing, too short, or outside the model's folder.
        """
        path = Path(path)
        proto, repairs = reading.read(path)
        tensors.check_all(proto, path)
        return cls(proto, path, repairs)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Model:
        """Take over a model that is already in memory; external data must have been loaded."""
        repairs = reading.checked(proto, "the model")
        for tensor in round_trip.tensors(proto):
            tensors.check_inline(tensor, "the model")
        return cls(proto, repairs=repairs)

    def clone(self) -> Model:
        """A copy whose graph can be edited apart; both share the tensors."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._touched = set(self._touched)
        other._names, other._numbers = None, {}
        ours = self.ir
        # Values that no node makes belong to sparse initializers, which onnx_ir does not know: the
        # copies share them. (Model.clone() would raise.)
        other.ir = ir.Model(
            ours.graph.clone(allow_outer_scope_values=True),
            ir_version=ours.ir_version, producer_name=ours.producer_name,
            producer_version=ours.producer_version, domain=ours.domain,
            model_version=ours.model_version, doc_string=ours.doc_string,
            functions=[function.clone() for function in ours.functions.values()],
            metadata_props=dict(ours.metadata_props),
            device_configurations=ours.device_configurations,
        )  # fmt: skip
        return other

    # ---------------------------------------------------------------- views

    @property
    def untouched(self) -> bool:
        """Whether nothing was edited since it was read, nor put right."""
        return not (self._touched or self._rewritten or self.repairs)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.ir.opset_imports.get("", 1)

    @property
    def scopes(self) -> Iterator[ir.Graph | ir.Function]:
        """The main graph, every subgraph at any depth, and every function with its subgraphs."""
        roots: list[ir.Graph | ir.Function] = [self.ir.graph, *self.ir.functions.values()]
        for root in roots:
            yield root
            yield from root.subgraphs()

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """Every node, wherever it is."""
        for scope in self.scopes:
            yield from scope

    @property
    def inputs(self) -> list[ir.Value]:
        """What the caller must feed: graph inputs without those that have an initializer."""
        stored = self.ir.graph.initializers
        return [value for value in self.ir.graph.inputs if value.name not in stored]

    @property
    def signature(self) -> tuple[tuple[str, ...], ...]:
        """Names of the inputs (without initializers) and outputs, in order."""
        outputs = self.ir.graph.outputs
        return tuple(v.name or "" for v in self.inputs), tuple(v.name or "" for v in outputs)

    def unused_name(self, name: str) -> str:
        """The name itself, or with a number behind it, such that no value has it; now taken."""
        if self._names is None:
            self._names = set()
            for graph in round_trip.graphs(self._original):
                self._names.update(sparse.values.name for sparse in graph.sparse_initializer)
            for scope in self.scopes:
                self._names.update(v.name for v in scope.inputs if v.name)
                if isinstance(scope, ir.Graph):
                    self._names.update(scope.initializers)
                self._names.update(v.name for node in scope for v in node.outputs if v.name)
        candidate = name
        while candidate in self._names:
            self._numbers[name] = self._numbers.get(name, 1) + 1
            candidate = f"{name}{self._numbers[name]}"
        self._names.add(candidate)
        return candidate

    # --------------------------------------------------------------- journal

    def touch(self, *names: str | None) -> None:
        """Record values that were changed, removed or made; a node goes by its first output."""
        self.edits += 1
        self._touched.update(name for name in names if name)

    def touch_node(self, node: ir.Node) -> None:
        """Record a node that was changed, removed or made."""
        self.touch(next((v.name for v in node.outputs if v.name), node.name))

    def rewrite(self, change: Callable[[ir.Model], ir.Model]) -> None:
        """Let a whole-graph rewriter replace the graph.

        Nodes and initializers may then differ; inputs, outputs and metadata stay guarded.
        """
        self._mark_rewritten()
        self.ir = change(self.ir)

    def _mark_rewritten(self) -> None:
        self.edits += 1
        self._rewritten, self._names = True, None

    def rewrite_proto(self, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
        """Like :meth:`rewrite`, for tools that work on protos; large weights are not in it."""
        with self._parts() as (proto, outside):
            changed = ir.from_proto(round_trip.readable(change(proto)))
        for name, value in changed.graph.initializers.items():
            if name in outside:
                value.const_value = outside[name]
        self.rewrite(lambda _: changed)

    def shorten_names(self, patterns: Sequence[str] = ()) -> ShortNames:
        """From now on write it with short names where that pays; these and initializers' stay."""
        came = frozenset(tensor.name for tensor in self._original.graph.initializer)
        self.short_names = ShortNames(tuple(patterns), came)
        return self.short_names

    def strip_notes(self, drops: notes.Drops) -> None:
        """Forget those notes of the graph and its parts that a function picks."""
        self._original = notes.stripped(self._original, drops)
        self._mark_rewritten()
        for scope in self.scopes:
            values = [v for node in scope for v in node.outputs] + list(scope.inputs)
            values += scope.initializers.values() if isinstance(scope, ir.Graph) else []
            for part in (scope, *scope, *values):
                notes.strip_part(part, drops)
        if self.ir.doc_string and drops("", self.ir.doc_string):
            self.ir.doc_string = None

    def note_bytes(self, drops: notes.Drops) -> Counter[str]:
        """Bytes of the notes that a function picks, by key."""
        return notes.counted(self._original, drops)

    def adopt(self, other: Model) -> None:
        """Become what a clone of this model was turned into."""
        self.__dict__.update(other.__dict__)

    # --------------------------------------------------------------- tensors

    def store(self, array: np.ndarray | ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        """A new constant; in a large model it is put into a temporary file at once.

        Args:
            array: The values, or a tensor such as ``ir.PackedTensor`` for types below 8 bits.
            name: The tensor's name.
        """
        tensor = ir.Tensor(array) if isinstance(array, np.ndarray) else array
        tensor.name = name
        if tensor.nbytes < wire.STREAMED_BYTES or self._held_bytes < _SPILL_ABOVE:
            return tensor
        if self._spill is None:
            self._spill = tensors.Spill()
        return self._spill.put(tensor, name)

    @cached_property
    def _held_bytes(self) -> int:
        return sum(
            int(e.value)
            for t in self._original.graph.initializer
            for e in t.external_data
            if e.key == "length"
        )

    def _resolve(self) -> None:
        """Point the tensors that lie in files at those files."""
        if self.path is None:
            return

        def resolved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
            if not isinstance(tensor, ir.ExternalTensor):
                return tensor
            return tensors.FileTensor(tensor, self._file_of(str(tensor.location)))

        for scope in self.scopes:
            if isinstance(scope, ir.Graph):
                for value in scope.initializers.values():
                    if value.const_value is not None:
                        value.const_value = resolved(value.const_value)
        for node in self.nodes:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = resolved(attribute.as_tensor())
                    if tensor is not attribute.as_tensor():
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)

    # ----------------------------------------------------------------- save

    def to_proto(self) -> onnx.ModelProto:
        """The whole model as one message in memory, its weights included."""
        with self._parts() as (proto, outside):
            for header in proto.graph.initializer:
                if header.name in outside:
                    tensor = outside[header.name]
                    tensors.clear_external(header)
                    header.raw_data = tensor.tobytes()
                    tensors.release(tensor)
        return proto

    @contextlib.contextmanager
    def apart(self, *, every: bool = False) -> Iterator[Parts]:
        """Serialise with the main graph's larger initializers left out, as headers to fill in.

        Yields the message, and the tensors by the names of their headers.

        Args:
            every: Take out those too that were read from the typed fields of their message, and
                which otherwise go back as they were (numbers there can take fewer bytes).
        """
        with self._parts(every=every) as (proto, outside):
            if self.short_names is not None:
                self.short_names.apply(proto, sum(t.nbytes for t in outside.values()))
                given = self.short_names.given
                outside = {given.get(name, name): tensor for name, tensor in outside.items()}
            yield proto, outside

    @contextlib.contextmanager
    def _parts(self, *, every: bool = False) -> Iterator[Parts]:
        """As :meth:`apart`, every name as it is in the graph."""
        outside: dict[str, ir.TensorProtocol] = {}
        values = self.ir.graph.initializers
        try:
            for name, value in values.items():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor):
                    outside[name] = tensor
                elif isinstance(tensor, ir.serde.TensorProtoTensor):
                    continue
                elif tensors.is_large(tensor):
                    outside[name] = tensor
                    value.const_value = ir.ExternalTensor(
                        wire.INSIDE, 0, tensor.nbytes, tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()),
                        name=name, doc_string=tensor.doc_string,
                        metadata_props=dict(tensor.metadata_props),
                    )  # fmt: skip
            proto = ir.to_proto(self.ir)
        finally:
            for name, tensor in outside.items():
                values[name].const_value = tensor
        round_trip.merge(proto, self._original, self._touched, rewritten=self._rewritten)
        for header in proto.graph.initializer:
            raw = header.HasField("raw_data")
            if raw and header.ByteSize() < tensors.LARGE_BYTES:
                continue  # the usual case, of which there may be very many
            tensor = values[header.name].const_value
            if not tensors.is_large(tensor):
                if outside.pop(header.name, None) is not None:
                    self._inline(header)
            elif header.name not in outside and (every or raw):
                outside[header.name] = tensor
                tensors.clear_values(header)
                tensors.point_at(header, wire.INSIDE, 0, tensor.nbytes)
        self._inline_the_rest(proto)
        yield proto, outside

    def _inline_the_rest(self, proto: onnx.ModelProto) -> None:
        """Tensors in attributes, subgraphs and functions that still name a file."""
        for tensor in round_trip.tensors(proto, main_initializers=False):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._inline(tensor)

    def _inline(self, tensor: onnx.TensorProto) -> None:
        location = next(e.value for e in tensor.external_data if e.key == "location")
        tensors.inline(tensor, self._file_of(location))

    def _file_of(self, location: str) -> Path:
        """The file that a tensor's location means in this model."""
        if self._spill and location == self._spill.file.name:
            return self._spill.file
        assert self.path is not None  # a model from memory has no other files
        return self.path if location == wire.INSIDE else self.path.parent / location

    def stored_bytes(self) -> int:
        """Bytes of the files that it came from, external data included, or as one new file."""
        if self.path is None:
            return self.nbytes()
        return sum(path.stat().st_size for path in self.own_files)

    def nbytes(self) -> int:
        """Exact size in bytes of this model saved as one file."""
        with self.apart() as (proto, outside):
            return self._layout(proto, outside).nbytes

    @staticmethod
    def _layout(proto: onnx.ModelProto, outside: dict[str, ir.TensorProtocol]) -> wire.FileLayout:
        payloads: list[tuple[int, Callable[[BinaryIO], object]] | None] = []
        for header in proto.graph.initializer:
            tensor = outside.get(header.name)
            if tensor is None:
                payloads.append(None)
                continue
            tensors.clear_external(header)
            payloads.append((tensor.nbytes, partial(tensors.write, tensor)))
        return wire.FileLayout(proto, payloads)

    def save(self, path: files.StrPath, storage: Storage = "auto", *, durable: bool = True) -> int:
        """Write the model in one go: either the whole file appears or none.

        Args:
            path: Where to; must not be the file that the model came from.
            storage: ``single`` file, ``external`` data in ``path + '.data'``, or ``auto``:
                external only where one file could not hold it.
            durable: Wait until it is on the disk; False is for a scratch folder: written in place.

        Returns:
            Bytes written, external data included.

        Raises:
            OutputError: ``path`` is the input, or cannot be written.
            ModelError: Something changed that no pass reported, or ``single`` is impossible.
        """
        path = Path(path)
        self.check_output(path)
        with superseding(path, spare=self.own_files):
            if storage != "external":
                with self.apart() as (proto, outside):
                    size = proto.ByteSize() + sum(t.nbytes + 32 for t in outside.values())
                    if size <= SINGLE_FILE_LIMIT:
                        layout = self._layout(proto, outside)
                        with files.output(path) if durable else files.scratch_file(path) as file:
                            layout.write(file)
                        return layout.nbytes
                if storage == "single":
                    raise ModelError(
                        f"{path}: {size:,} bytes do not fit one file; use external data"
                    )
            with self.apart(every=True) as (proto, outside):
                return self._save_external(path, proto, outside, durable)

    def _save_external(
        self,
        path: Path,
        proto: onnx.ModelProto,
        outside: dict[str, ir.TensorProtocol],
        durable: bool,
    ) -> int:
        made = files.scratch(path.parent) if durable else contextlib.nullcontext(path.parent)
        with files.writing(path), made as folder:
            places: dict[str, int] = {}
            with files.new_file(folder / "data", durable=durable) as file:
                out = files.Digesting(file)
                for header in proto.graph.initializer:
                    if (tensor := outside.get(header.name)) is not None:
                        out.write(b"\0" * (-out.tell() % _ALIGNED))
                        places[header.name] = out.tell()
                        tensors.write(tensor, out)
            data = path.with_name(files.data_name(path.name, out.hexdigest(), "data"))
            for header in proto.graph.initializer:
                if header.name in places:
                    nbytes = outside[header.name].nbytes
                    tensors.point_at(header, data.name, places[header.name], nbytes)
            with files.new_file(folder / "model", durable=durable) as file:
                file.write(proto.SerializeToString(deterministic=True))
                size = file.tell()
            self._refuse_input(data)
            files.place(folder / "data", data, durable=durable)
            files.place(folder / "model", path, durable=durable)
            return size + out.tell()

    def check_output(self, path: Path) -> None:
        """Find out early whether a result could be written to ``path``.

        Raises:
            OutputError: It cannot be written, or is the model's own file.
        """
        files.check_target(path)
        self._refuse_input(path)

    @property
    def own_files(self) -> set[Path]:
        """The file that it came from, and those that hold its external data."""
        if self.path is None:
            return set()
        data = {
            self.path.parent / e.value
            for t in round_trip.tensors(self._original)
            for e in t.external_data
            if e.key == "location" and e.value != wire.INSIDE
        }
        return {path for path in (self.path, *data) if path.exists()}

    def _refuse_input(self, path: Path) -> None:
        """Refuse to write over the model's own file or its data."""
        if os.path.exists(path) and any(path.samefile(own) for own in self.own_files):
            raise OutputError(f"{path}: is the input, which is never modified; name another output")

    def digest(self) -> str:
        """SHA-256 of the model: its graph and its weights, wherever they are stored."""
        hasher = hashlib.sha256()

        with self.apart(every=True) as (proto, outside):
            names = sorted(outside)
            for header in proto.graph.initializer:
                if header.name in outside:
                    tensors.clear_external(header)
            hasher.update(proto.SerializeToString(deterministic=True))
            for name in names:
                hasher.update(outside[name].tobytes())
                tensors.release(outside[name])
        return hasher.hexdigest()


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{error}".split()) or type(error).__name__  # protobuf writes in lines
