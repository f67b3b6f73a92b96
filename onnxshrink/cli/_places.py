"""Comparing a model in other places than ONNX Runtime's CPU provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._terminal import say, show
from onnxshrink.cli._values import decorated

if TYPE_CHECKING:
    from onnxshrink.runtime.places import Finding, Place

F = TypeVar("F", bound=Callable[..., Any])


_WHERE = (
    click.option(
        "--providers", metavar="LIST",
        help="Execution providers, as in CPU,OpenVINO,XNNPACK; 'reference' is onnx's own "
        "evaluator, 'openvino-native' OpenVINO without ONNX Runtime.",
    ),
    click.option(
        "--python", metavar="PROGRAM",
        help="The Python that has the providers; it needs numpy and the runtime only.",
    ),
    click.option(
        "--node", metavar="FOLDER", help="Also onnxruntime-node, installed in this folder.",
    ),
    click.option(
        "--web", metavar="FOLDER",
        help="Also onnxruntime-web (WebAssembly) in Node, installed in this folder.",
    ),
)  # fmt: skip
_WHAT = (
    click.option(
        "--results", metavar="FILE", multiple=True,
        help="Also answers that run_inputs.py brought from elsewhere; see 'run-inputs'.",
    ),
    click.option(
        "--no-fallback", is_flag=True,
        help="Do not let the CPU run the nodes that a provider does not take.",
    ),
)  # fmt: skip


def where_options(command: F) -> F:
    """Options that name places."""
    return decorated(command, _WHERE)


def place_options(command: F) -> F:
    """These, and what to make of them."""
    return decorated(command, (*_WHERE, *_WHAT))


def places(
    providers: str | None, python: str | None, node: str | None, web: str | None,
    accuracy_level: int | None = 0,
) -> list[Place]:  # fmt: skip
    """The places that options name, at one accuracy level.

    Raises:
        RecipeError: One is not there.
    """
    from onnxshrink.errors import RecipeError
    from onnxshrink.runtime import places as known

    if python is not None and providers is None:
        raise RecipeError("--python says where --providers are: name these, too")
    names = providers.split(",") if providers is not None else []
    found = known.providers(names, python, accuracy_level)
    for runtime, folder in (("onnxruntime-node", node), ("onnxruntime-web", web)):
        if folder is not None:
            found.append(known.javascript(runtime, folder, accuracy_level))
    return found


def show_findings(title: str, findings: Sequence[Finding], as_json: bool) -> None:
    """Print a table of places, or JSON."""
    from onnxshrink.report import Table

    if as_json:
        click.echo(json.dumps([found.to_dict() for found in findings], indent=1, default=str))
        return
    columns = (
        "place", "version", "relative error", "max abs", "top-1", "KL", "a run", "not run there",
    )  # fmt: skip
    table = Table(title, columns)
    for found in findings:
        if found.comparison is None:
            table.add(found.label, "", "", "", "", "", "", f"all: {found.refusal}")
            continue
        outputs = found.comparison.outputs
        top1, kl = found.comparison.top1, [o.kl for o in outputs if o.kl is not None]
        table.add(
            found.label, str(found.comparison.options_b.get("version", "")),
            f"{found.comparison.relative_error:.3g}", f"{max(o.max_abs for o in outputs):.3g}",
            "-" if top1 is None else f"{top1:.4f}", f"{max(kl):.3g}" if kl else "-",
            f"{found.seconds * 1e3:.3g} ms", found.elsewhere or "-",
        )  # fmt: skip
    show(table)
    compared = next((f.comparison for f in findings if f.comparison is not None), None)
    if compared is not None:
        version = compared.options_a.get("onnxruntime")
        say(
            f"{compared.feeds} inputs; the largest of any output, against the CPU here in ONNX "
            f"Runtime {version}"
        )
