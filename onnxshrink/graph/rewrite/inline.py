"""Bodies of functions in place of their calls."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.clean import share_duplicates
from onnxshrink.graph.rewrite.hoist import hoist_constants

_SHARED_BYTES = 1024  # constants of a function that is called twice are stored once from here on


def inline_functions(model: Model) -> int:
    """Put the bodies of a model's functions where they are called.

    Args:
        model: Changed in place; without functions it stays as it is.

    Returns:
        How many calls there were.

    Raises:
        UnsupportedModel: A function calls itself, takes a graph as an attribute, or is written in
            operators of another version than the model's.
    """
    functions = model.ir.functions
    if not functions:
        return 0
    calls = sum(node.op_identifier() in functions for node in model.nodes)
    domains = {function.domain for function in functions.values()}
    for function in functions.values():
        _agree(function, model.ir.opset_imports)
    try:
        model.rewrite(_inlined)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        raise UnsupportedModel(
            f"{model.label}: its functions cannot be inlined: {error.__cause__ or error}"
        ) from error
    tell_apart(model)
    for domain in domains - {node.domain for node in model.nodes}:
        model.ir.opset_imports.pop(domain, None)
    if hoist_constants(model, _SHARED_BYTES):
        share_duplicates(model)
    return calls


def _agree(function: ir.Function, versions: Mapping[str, int]) -> None:
    """Let a function import the model's versions, where its operators are the same in both."""
    for domain, version in function.opset_imports.items():
        wanted = versions.get(domain, version)
        kinds = {node.op_type for node in function.all_nodes() if node.domain == domain}
        if all(_since(kind, domain, version) == _since(kind, domain, wanted) for kind in kinds):
            function.opset_imports[domain] = wanted


def _since(op_type: str, domain: str, version: int) -> int:
    """The version that made an operator what it is in another; 0 where it is not known."""
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _inlined(graph: ir.Model) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    return InlinePass()(graph).model


def tell_apart(model: Model) -> None:
    """Give values of bodies names of their own, where others have theirs."""
    seen: set[str] = set()
    for scope in model.scopes:
        stored = list(scope.initializers.values()) if isinstance(scope, ir.Graph) else []
        made = [value for node in scope for value in node.outputs]
        for value in dict.fromkeys([*scope.inputs, *stored, *made]):
            if value.name and value.name in seen:
                model.touch(value.name)
                value.name = model.unused_name(value.name)
                model.touch(value.name)
                for user, _ in value.uses():
                    model.touch_node(user)
            seen.add(value.name or "")
