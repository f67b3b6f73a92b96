"""What onnx_ir would lose on a round trip, kept; what nobody meant to change, guarded.

``readable`` hides from onnx_ir what it cannot read. ``merge`` takes what onnx_ir wrote and puts
the original text of everything outside the journal of touched names back, after checking that it
still says the same: an unjournaled difference is an error, never a silent loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import onnx

from onnxshrink.errors import ModelError

_ABOUT_MODEL = ("producer_name", "producer_version", "domain", "doc_string", "model_version")
OUR_KEYS = "onnxshrink."
_UNTYPED = onnx.TensorProto.UNDEFINED
_SPARSE = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, each with a key that is unique in the node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for index, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}[{index}]", graph


def node_lists(model: onnx.ModelProto) -> Iterator[Collection[onnx.NodeProto]]:
    """The nodes of the main graph, of every subgraph at any depth, and of every function."""
    pending: list[Collection[onnx.NodeProto]] = [model.graph.node]
    pending += [function.node for function in model.functions]
    while pending:
        nodes = pending.pop()
        yield nodes
        pending += [graph.node for node in nodes for _, graph in subgraphs(node)]


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph at any depth, also in functions."""
    yield model.graph
    for nodes in node_lists(model):
        for node in nodes:
            for _, graph in subgraphs(node):
                yield graph


def tensors(
    model: onnx.ModelProto, *, main_initializers: bool = True
) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model: initializers, sparse ones, and attributes."""
    for depth, graph in enumerate(graphs(model)):
        if depth or main_initializers:
            yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for nodes in node_lists(model):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in attribute.sparse_tensors:
                    yield from (sparse.values, sparse.indices)
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _has_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        return _has_map(kind.sequence_type.elem_type)
    if which == "optional_type":
        return _has_map(kind.optional_type.elem_type)
    return bool(which == "map_type")


def readable(original: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without what onnx_ir raises at or misreads.

    That is map types, sparse attributes, and negative dimensions.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    for graph in graphs(proto):
        for values in (graph.input, graph.output, graph.value_info):
            for value in values:
                if _has_map(value.type):
                    value.ClearField("type")
                # Some exporters write -1 for a dimension that is free.
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_value < 0:
                        dim.ClearField("dim_value")
    for nodes in node_lists(proto):
        for node in nodes:
            kept = [a for a in node.attribute if a.type not in _SPARSE]
            if len(kept) < len(node.attribute):
                kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
                del node.attribute[:]
                node.attribute.extend(kept)
    return proto


def key(node: onnx.NodeProto) -> str:
    """What names a node in the journal: its first output that has a name (names are SSA)."""
    return next(filter(None, node.output), node.name)


def merge(
    new: onnx.ModelProto, original: onnx.ModelProto, touched: Collection[str], *, rewritten: bool
) -> None:
    """Put back into ``new`` the original text of everything that was not touched.

    Args:
        new: What onnx_ir serialised; changed in place.
        original: The model as it was read.
        touched: Names of values that passes changed; a node goes by its first output.
        rewritten: A whole-graph rewriter ran: a node or initializer that differs is taken as
            touched. Inputs, outputs and metadata stay guarded.

    Raises:
        ModelError: Something outside the journal differs; this is a bug in a pass.
    """
    new.training_info.extend(original.training_info)
    _keep_opsets(new, original)
    _keep_texts(new, original, _ABOUT_MODEL, "the model")
    before = {(f.domain, f.name, f.overload): f for f in original.functions}
    for function in new.functions:
        old = before.pop((function.domain, function.name, function.overload), None)
        if old is not None:
            _merge_function(function, old, touched, rewritten)
        elif not rewritten:
            raise _unjournaled(f"a new function {function.name!r}")
    if before and not rewritten:
        raise _unjournaled(f"function {next(iter(before))[1]!r}")
    _merge_graph(new.graph, original.graph, touched, rewritten)
    if rewritten:
        _forget_inferred(new, original)


def _forget_inferred(new: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """In bodies that a rewriter moved: types and shapes that the original did without."""
    said = {value.name for graph in graphs(original) for value in graph.value_info}
    for body in islice(graphs(new), 1, None):
        kept = [value for value in body.value_info if value.name in said]
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del body.value_info[:]
        body.value_info.extend(kept)


def _keep_opsets(
    new: onnx.ModelProto | onnx.FunctionProto, original: onnx.ModelProto | onnx.FunctionProto
) -> None:
    """The order and spelling of the operator sets, unless a pass changed them."""
    now, before = ({o.domain: o.version for o in side.opset_import} for side in (new, original))
    if now == before:
        del new.opset_import[:]
        new.opset_import.extend(original.opset_import)


def _keep_texts(
    new: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto,
    original: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto,
    names: Iterable[str],
    what: str,
) -> None:
    """Guard texts, numbers and metadata; what is written although it is empty stays written."""
    for name in names:
        if getattr(new, name) != getattr(original, name):
            raise _unjournaled(f"{what}'s {name}")
        if original.HasField(name):
            setattr(new, name, getattr(original, name))
    now, before = ({e.key: e.value for e in side.metadata_props} for side in (new, original))
    if lost := [key for key, value in before.items() if now.get(key) != value]:
        raise _unjournaled(f"{what}'s metadata {lost[0]!r}")
    added = [entry for entry in new.metadata_props if entry.key not in before]
    added = [onnx.StringStringEntryProto(key=e.key, value=e.value) for e in added]
    del new.metadata_props[:]
    new.metadata_props.extend([*original.metadata_props, *added])


def _merge_function(
    new: onnx.FunctionProto, original: onnx.FunctionProto, touched: Collection[str], rewritten: bool
) -> None:
    what = f"function {original.name!r}"
    kept, more = new.input[: len(original.input)], new.input[len(original.input) :]
    if list(kept) != list(original.input) or list(new.output) != list(original.output):
        raise _unjournaled(f"the inputs or outputs of {what}")
    if not rewritten and not set(more) <= set(touched):
        raise _unjournaled(f"the inputs of {what}")
    _keep_opsets(new, original)
    _keep_texts(new, original, ("doc_string",), what)
    for name in ("attribute", "attribute_proto"):
        new.ClearField(name)
        getattr(new, name).extend(getattr(original, name))
    _merge_value_info(new, original, touched, _gone(new.node, original.node))
    _merge_nodes(new.node, original.node, touched, rewritten)


def _gone(new: Iterable[onnx.NodeProto], original: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that the original nodes made and the new ones do not."""
    now, before = ({name for node in nodes for name in node.output} for nodes in (new, original))
    return before - now


def _unjournaled(what: str) -> ModelError:
    return ModelError(f"internal guard: {what} changed although no pass reported it; not saved")


def _same_type(new: onnx.ValueInfoProto, original: onnx.ValueInfoProto) -> bool:
    """Whether the element types agree; one that the original left open may have been inferred."""
    known = original.type.tensor_type.elem_type
    return known in (onnx.TensorProto.UNDEFINED, new.type.tensor_type.elem_type)


def _merge_graph(
    new: onnx.GraphProto, original: onnx.GraphProto, touched: Collection[str], rewritten: bool,
    *, inner: bool = False,
) -> None:  # fmt: skip
    _keep_texts(new, original, ("name", "doc_string"), f"graph {original.name!r}")
    for side in ("input", "output"):
        now, before = getattr(new, side), getattr(original, side)
        known = {value.name: value for value in before}
        expected = [value.name for value in before if value.name not in touched]
        if [value.name for value in now if value.name not in touched] != expected:
            raise _unjournaled(f"the {side}s of graph {original.name!r}")
        for value in now:
            if value.name in known and value.name not in touched:
                if not _has_map(known[value.name].type) and not _same_type(
                    value, known[value.name]
                ):
                    if rewritten and inner:
                        continue
                    raise _unjournaled(f"the type of {side} {value.name!r}")
                value.CopyFrom(known[value.name])
    present = _merge_initializers(new, original, touched, rewritten)
    new.sparse_initializer.extend(
        sparse
        for sparse in original.sparse_initializer
        if sparse.values.name not in touched and sparse.values.name not in present
    )
    if not rewritten:
        present |= {sparse.values.name for sparse in new.sparse_initializer}
        stored = [t.name for t in original.initializer]
        stored += [sparse.values.name for sparse in original.sparse_initializer]
        if lost := [name for name in stored if name not in present and name not in touched]:
            raise _unjournaled(f"initializer {lost[0]!r}")
    gone = _gone(new.node, original.node)
    gone |= {tensor.name for tensor in original.initializer} - present
    _merge_value_info(new, original, touched, gone - present)
    _merge_nodes(new.node, original.node, touched, rewritten)


def _merge_initializers(
    new: onnx.GraphProto, original: onnx.GraphProto, touched: Collection[str], rewritten: bool
) -> set[str]:
    """Guard the initializers; return the names of those that are there now."""
    before = {tensor.name: tensor for tensor in original.initializer}
    for tensor in new.initializer:
        old = before.get(tensor.name)
        if tensor.name in touched or (rewritten and old is None):
            continue
        if tensor == old:
            continue
        if old is not None and _content(tensor) == _content(old):
            tensor.CopyFrom(old)
        elif not rewritten:
            raise _unjournaled(f"initializer {tensor.name!r}")
    return {tensor.name for tensor in new.initializer}


def _content(tensor: onnx.TensorProto) -> bytes:
    """A tensor's type, shape and values, or where they lie; without what is only about it."""
    text = onnx.TensorProto()
    text.CopyFrom(tensor)
    for name in ("doc_string", "metadata_props", "external_data"):
        text.ClearField(name)
    text.name = tensor.name  # absent and empty are the same
    place = {entry.key: entry.value for entry in tensor.external_data}
    for name in ("location", "offset", "length"):
        if name in place:
            text.external_data.add(key=name, value=place[name])
    content: bytes = text.SerializeToString()
    return content


def _merge_value_info(
    new: onnx.GraphProto | onnx.FunctionProto,
    original: onnx.GraphProto | onnx.FunctionProto,
    touched: Collection[str],
    gone: Collection[str],
) -> None:
    """Keep what is said about values that are still there, and about touched ones what is new.

    A value whose type differs now (a rewriter may compute in float16) counts as touched.
    """
    before = {value.name for value in original.value_info}
    types = {tensor.name: tensor.data_type for tensor in getattr(new, "initializer", ())}
    types.update((value.name, value.type.tensor_type.elem_type) for value in new.value_info)
    retyped = {
        value.name
        for value in original.value_info
        if value.type.tensor_type.elem_type != types.get(value.name, _UNTYPED) != _UNTYPED
    }
    touched = retyped.union(touched)
    infos = [v for v in original.value_info if v.name not in gone and v.name not in touched]
    # onnx_ir also writes one for every constant, which only repeats its tensor's header.
    made = {name for node in new.node if node.op_type != "Constant" for name in node.output}
    infos += [
        value
        for value in new.value_info
        if value.name in touched and (value.name in made or value.name in before)
    ]
    infos = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in infos]
    del new.value_info[:]
    new.value_info.extend(infos)


def _stripped(outputs: Iterable[str]) -> list[str]:
    names = list(outputs)
    while names and not names[-1]:
        names.pop()
    return names


def _attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    return {
        a.name: onnx.AttributeProto(
            name=a.name, type=a.type, f=a.f, i=a.i, s=a.s, floats=a.floats, ints=a.ints,
            strings=a.strings, ref_attr_name=a.ref_attr_name,
        ).SerializeToString()
        for a in node.attribute
        if a.type not in _SPARSE
    }  # fmt: skip


def _tensors_of(node: onnx.NodeProto) -> list[bytes]:
    return [_content(t) for a in node.attribute for t in ((a.t,) if a.HasField("t") else a.tensors)]


def _says_the_same(a: onnx.NodeProto, b: onnx.NodeProto) -> bool:
    return (
        (a.op_type, a.domain, a.overload) == (b.op_type, b.domain, b.overload)
        and _stripped(a.input) == _stripped(b.input)
        and _stripped(a.output) == _stripped(b.output)
        and _attributes(a) == _attributes(b)
        and _tensors_of(a) == _tensors_of(b)
    )


def _merge_nodes(
    new: Collection[onnx.NodeProto],
    original: Collection[onnx.NodeProto],
    touched: Collection[str],
    rewritten: bool,
) -> None:
    before = {key(node): node for node in original}
    for node in new:
        name = key(node)
        old = before.pop(name, None)
        if name in touched or (old is None and rewritten):
            if old is not None and old.op_type == node.op_type:
                _merge_subgraphs(node, old, touched, rewritten)
                if not old.name:  # passes of onnx_ir number the nodes that have no name
                    node.ClearField("name")
            continue
        if node == old:
            continue
        if old is None:
            raise _unjournaled(f"a new node that makes {name!r}")
        _merge_subgraphs(node, old, touched, rewritten)
        if _says_the_same(node, old):
            now = dict(subgraphs(node))
            if not now:
                node.CopyFrom(old)
                continue
            keep = {
                a.name: a.SerializeToString() for a in node.attribute if a.HasField("g") or a.graphs
            }
            node.CopyFrom(old)
            for attribute in node.attribute:
                if attribute.name in keep:
                    attribute.ParseFromString(keep[attribute.name])
        elif not rewritten:
            raise _unjournaled(f"node {node.op_type} {old.name!r} that makes {name!r}")
    if not rewritten and (lost := [name for name in before if name not in touched]):
        raise _unjournaled(f"the node that makes {lost[0]!r}")


def _merge_subgraphs(
    node: onnx.NodeProto, old: onnx.NodeProto, touched: Collection[str], rewritten: bool
) -> None:
    before = dict(subgraphs(old))
    for name, graph in subgraphs(node):
        # Where a branch was inlined, the If in it took the place and the name of the outer one.
        if name in before and not (rewritten and _outline(graph) != _outline(before[name])):
            _merge_graph(graph, before[name], touched, rewritten, inner=True)


def _outline(graph: onnx.GraphProto) -> tuple[object, ...]:
    """What tells bodies apart: their names, and those of what goes in and out."""
    return graph.name, [v.name for v in graph.input], [v.name for v in graph.output]
