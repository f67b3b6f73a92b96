"""Recipes as genes: which numbers and choices make a recipe, and which recipe they make.

Every recipe has all genes, also those that do nothing in it, so that two can always be crossed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxshrink.options import build, dump
from onnxshrink.pipeline import Pass
from onnxshrink.recipe import find_pass

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Genes = Mapping[str, Any]

_WHERE = "the search"
_LEAST_CHANNELS, _MOST_CHANNELS = 0.05, 0.6  # shares; less is none
_LEAST_ZEROS, _MOST_ZEROS = 0.1, 0.8
_SPEND = (1e-6, 1.0)
_BITS = (2, 6)
_DIGITS = 3
_STORES = ("quantize-rd", "share-codebook", "int8", "int4", "to-float16")
_PRUNERS = ("prune-sparsegpt", "prune-wanda", "prune-magnitude")
_KERNELS = ("none", "quantize-dynamic", "quantize-static")
_NONE: dict[str, Any] = {
    "channels": 0.0, "zeros": 0.0, "pruner": "prune-sparsegpt", "first": "channels",
    "store": "quantize-rd", "spend": 0.01, "bits": 4, "kernels": "none", "repair": "none",
}  # fmt: skip


def space() -> dict[str, BaseDistribution]:
    """What each gene may be."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    return {
        "channels": FloatDistribution(0.0, _MOST_CHANNELS),
        "zeros": FloatDistribution(0.0, _MOST_ZEROS),
        "pruner": CategoricalDistribution(_PRUNERS),
        "first": CategoricalDistribution(("channels", "zeros")),
        "store": CategoricalDistribution(_STORES),
        "spend": FloatDistribution(*_SPEND, log=True),
        "bits": IntDistribution(*_BITS),
        "kernels": CategoricalDistribution(_KERNELS),
        "repair": CategoricalDistribution(("none", "correct-bias")),
    }


def steps_of(genes: Genes) -> tuple[Pass, ...]:
    """The recipe that genes make, the cleaning aside."""
    found = []
    for part in sorted(("channels", "zeros"), key=lambda part: part != genes["first"]):
        share = round(genes[part], _DIGITS)
        if part == "channels" and share >= _LEAST_CHANNELS:
            found.append(_step("prune-channels", ratio=share))
        elif part == "zeros" and share >= _LEAST_ZEROS:
            found.append(_step(genes["pruner"], ratio=share, max_error=1.0))
    found.append(_stored(genes))
    if genes["kernels"] == "quantize-static":
        found.append(_step("quantize-static", others="keep"))
    elif genes["kernels"] != "none":
        found.append(_step(genes["kernels"]))
    if genes["repair"] != "none":
        found.append(_step(genes["repair"], add=True))
    return tuple(found)


def genes_of(steps: Sequence[Pass]) -> dict[str, Any] | None:
    """The genes of a recipe, the cleaning aside; None where they cannot make it."""
    genes = dict(_NONE)
    for step in steps:
        options = dump(step)
        if step.name == "quantize-rd":
            genes["spend"] = options.get("lam", 0.0)
        elif step.name in _PRUNERS:
            genes |= {"pruner": step.name, "zeros": options.get("ratio", 0.0)}
        elif step.name == "prune-channels":
            genes["channels"] = options.get("ratio", 0.0)
        elif step.name in _KERNELS:
            genes["kernels"] = step.name
    if not _SPEND[0] <= genes["spend"] <= _SPEND[1]:
        return None
    return genes if steps_of(genes) == tuple(steps) else None


def neighbours(genes: Genes, *, timed: bool) -> list[dict[str, Any]]:
    """Recipes that differ from a good one in one or two genes, to begin with.

    Args:
        genes: Of the good one.
        timed: Whether it shall run fast, too.
    """
    changes: list[dict[str, Any]] = [
        {"zeros": 0.2}, {"zeros": 0.4}, {"channels": 0.1}, {"repair": "correct-bias"},
        {"store": "share-codebook"}, {"store": "share-codebook", "bits": 5},
        {"channels": 0.1, "repair": "correct-bias"},
    ]  # fmt: skip
    if timed:
        changes += [{"kernels": name} for name in _KERNELS[1:]]
        changes += [{"kernels": name, "store": "int8"} for name in _KERNELS[1:]]
    return [{**genes, **change} for change in changes]


def _stored(genes: Genes) -> Pass:
    store = genes["store"]
    if store == "quantize-rd":
        return _step(store, lam=float(f"{genes['spend']:.17g}"))
    if store == "share-codebook":
        return _step(store, bits=genes["bits"], rounding="gptq")
    if store == "int4":
        return _step("quantize-weights", dtype="int4", block_size=32, rounding="gptq")
    return _step("quantize-weights", dtype="int8") if store == "int8" else _step(store)


def _step(name: str, **options: Any) -> Pass:
    return build(find_pass(name), options, _WHERE)
