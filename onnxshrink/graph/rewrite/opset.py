"""Raising a model's operator set where a pass needs newer operators or types, or lowering it."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxshrink.errors import RecipeError, UnsupportedModel
from onnxshrink.graph.file import contrib, round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.hoist import separate_inputs
from onnxshrink.graph.rewrite.inline import inline_functions
from onnxshrink.graph.rewrite.ml import DOMAIN
from onnxshrink.graph.rewrite.trees import VERSION

#: The last operator set whose QuantizeLinear and DequantizeLinear ONNX Runtime 1.32 computes.
_NEWEST = 27
#: The first ONNX Runtime that loads an operator set, by its table of compatibility.
_SINCE = {
    13: "1.6", 14: "1.8", 15: "1.9", 16: "1.11", 17: "1.12", 18: "1.14",
    19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23",
}  # fmt: skip
#: The first that has ``TreeEnsemble``.
TREES_SINCE = "1.20"


def first_runtime(model: Model) -> str:
    """The first ONNX Runtime that loads a model's operator sets; empty where that is not known."""
    known = _SINCE.get(model.opset, "1.6" if model.opset < min(_SINCE) else "")
    newer = model.ir.opset_imports.get(DOMAIN, 0) >= VERSION
    return max(known, TREES_SINCE, key=_version) if known and newer else known


def newest_for(runtime: str) -> int:
    """The newest operator set that an ONNX Runtime loads.

    Args:
        runtime: Its version, as in ``1.16`` or ``1.16.3``.

    Raises:
        RecipeError: It is no version, or one that is older than all that are known.
    """
    if re.fullmatch(r"\d+\.\d+(\.\d+)?", runtime) is None:
        raise RecipeError(f"--runtime takes a version such as 1.16, not {runtime!r}")
    asked = _version(runtime)
    known = [opset for opset, since in _SINCE.items() if _version(since) <= asked]
    if not known:
        raise RecipeError(f"--runtime {runtime}: {min(_SINCE.values(), key=_version)} or newer")
    return max(known)


def has_trees(model: Model) -> bool:
    """Whether every ONNX Runtime that a model is made for has ``TreeEnsemble``."""
    since = _SINCE.get(model.max_opset or max(_SINCE), "")
    return not since or _version(since) >= _version(TREES_SINCE)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def needs(before: int, model: Model) -> str:
    """What it takes to load a model whose operator set was raised, for the report.

    Args:
        before: The operator set that it had.
        model: The model now.
    """
    if model.opset < before:
        return (
            f"lowered from {before} to {model.opset}, which says the same of these operators: "
            f"ONNX Runtime has no DequantizeLinear of {before}"
        )
    note = f"raised from {before} to {model.opset}"
    since = _SINCE.get(model.opset, "newer than 1.23" if model.opset > max(_SINCE) else "")
    if not since or since == _SINCE.get(before):
        return note
    asks = since if since.startswith("newer") else f"{since} or newer"
    return f"{note}: needs ONNX Runtime {asks}"


def raise_opset(model: Model, version: int) -> bool:
    """Convert a model to at least an operator set version, with ONNX's version converter.

    One that is newer than what ONNX Runtime can quantize is lowered, where that changes nothing.

    Args:
        model: Changed in place.
        version: The version needed.

    Returns:
        Whether anything was done.

    Raises:
        UnsupportedModel: The converter refuses the model, or it must not be raised so far.
    """
    if model.opset >= version:
        return _lower(model, max(version, _NEWEST))
    if model.max_opset is not None and version > model.max_opset:
        raise UnsupportedModel(
            f"this needs operator set {version}, and --max-opset or --runtime allows "
            f"{model.max_opset}"
        )
    before = model.opset
    inline_functions(model)  # ONNX's converter would lose them
    least: int = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    if "" not in model.ir.opset_imports:  # as in a model of ai.onnx.ml alone: nothing to convert
        model.ir.opset_imports[""] = version
        model.ir.ir_version = max(model.ir.ir_version, least)
        return True

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        contrib.declare()
        try:
            converted = version_converter.convert_version(proto, version)
        except (RuntimeError, ValueError, version_converter.ConvertError) as error:
            raise UnsupportedModel(
                f"{model.label}: opset {before} cannot be raised to {version}, which this needs: "
                f"{str(error).splitlines()[0] if str(error) else 'the converter gives no reason'}"
            ) from error
        _annotate(converted, proto)
        return converted

    model.rewrite_proto(convert)
    if model.ir.ir_version < 4:
        separate_inputs(model)
    model.ir.ir_version = max(model.ir.ir_version, least)
    return True


def _lower(model: Model, version: int) -> bool:
    """Declare an older operator set, where it says the same of every node; whether it did."""
    before = model.opset
    if before <= version or not all(_is_as_old(node, before, version) for node in model.nodes):
        return False
    functions = model.ir.functions.values()
    for imports in (model.ir.opset_imports, *(function.opset_imports for function in functions)):
        if imports.get("", 0) > version:
            imports[""] = version
    return True


def _is_as_old(node: ir.Node, newer: int, older: int) -> bool:
    """Whether a node means the same in both sets: new ones add types, inputs and attributes."""
    if node.domain:
        return True
    try:
        new, old = (onnx.defs.get_schema(node.op_type, v, "") for v in (newer, older))
    except onnx.defs.SchemaError:
        return False
    if new.since_version == old.since_version:
        return True
    defaults = [{n: a.default_value for n, a in s.attributes.items()} for s in (new, old)]
    return (
        all(defaults[0].get(name) == default for name, default in defaults[1].items())
        and all(name in defaults[1] for name in node.attributes)
        and len(node.inputs) <= old.max_input
    )


def _annotate(converted: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Put back what people wrote about graphs, nodes and tensors, which the converter loses."""
    for new, old in zip(round_trip.graphs(converted), round_trip.graphs(before), strict=False):
        for now, was in ((new.input, old.input), (new.output, old.output)):
            declared = {value.name: value for value in was}
            for value in now:  # it names the dimensions that had no name
                if value.name in declared:
                    value.CopyFrom(declared[value.name])
        if new.name == old.name and not new.metadata_props:
            new.metadata_props.extend(old.metadata_props)
        written = {tensor.name: tensor for tensor in old.initializer}
        for tensor in new.initializer:
            same = written.get(tensor.name)
            if same is not None and same.HasField("doc_string"):
                tensor.doc_string = same.doc_string
            if same is not None and not tensor.metadata_props:
                tensor.metadata_props.extend(same.metadata_props)
        nodes = {node.output[0]: node for node in old.node if node.output}
        for node in new.node:
            origin = nodes.get(node.output[0]) if node.output else None
            if origin is not None and not node.metadata_props:
                node.metadata_props.extend(origin.metadata_props)


def import_domain(model: Model, node: ir.Node, domain: str, version: int = 1) -> None:
    """Allow operators of another domain in the model, and in the function around a node."""
    model.ir.opset_imports.setdefault(domain, version)
    for function in model.ir.functions.values():
        if any(node is other for other in function.all_nodes()):
            function.opset_imports.setdefault(domain, version)
