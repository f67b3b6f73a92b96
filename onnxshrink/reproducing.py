"""A certified model once more: measured again, or made again."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import certificate
from onnxshrink.api import Options, apply_recipe, prepare
from onnxshrink.certificate import Certificate
from onnxshrink.errors import BudgetMissed, DataError, ModelError
from onnxshrink.recipe import Recipe

if TYPE_CHECKING:
    from onnxshrink.report import Report
    from onnxshrink.runtime.compare import Comparison

StrPath = str | os.PathLike[str]


def recheck(found: Certificate, source: StrPath, result: StrPath, options: Options) -> Comparison:
    """Measure a certified model again, on the inputs that its certificate was made with.

    Args:
        found: The certificate.
        source: The original.
        result: The certified model.
        options: The inputs, and how to run.

    Raises:
        DataError: Nothing was measured, or these are other inputs.
        ModelError: ``source`` is not the original.
        BudgetMissed: A figure is worse than certified.
    """
    from onnxshrink.runtime.worker import Worker

    origin, recipe = _origin(found, source)
    options = replace(options, seed=origin["seed"])
    with Worker(**options.worker) as worker, tempfile.TemporaryDirectory() as folder:
        unused = Path(folder) / "unused"
        _, settings = prepare(source, unused, options, worker, held_back=recipe.held_back)
    feeds = settings.unseen or settings.feeds
    comparison, digest = certificate.measure(source, result, feeds, options.worker)
    if comparison is None or not found.figures:
        raise DataError(f"{found.path}: certifies no figures: there were no inputs")
    certificate.check_figures(found, comparison, digest)
    return comparison


def reproduce(found: Certificate, source: StrPath, out: StrPath, options: Options) -> Report:
    """Make a certified model again from the original.

    Args:
        found: The certificate.
        source: The original.
        out: Where the result goes, under any name.
        options: The inputs, and how to run.

    Raises:
        BudgetMissed: It was written, and its bytes are not those that are certified.
        ModelError: ``source`` is not the original.
    """
    origin, recipe = _origin(found, source)
    asked = {name: origin[name] for name in certificate.OPTIONS}
    report = apply_recipe(recipe, source, out, replace(options, **asked, certificate=True))
    # Names of data files follow from the model's; what counts is what is in them.
    made, known = certificate.stored(out), found.content["files"]
    if sorted(made.values()) != sorted(known.values()):
        ours = certificate.read(certificate.path_of(out)).content["versions"]
        theirs = found.content["versions"]
        other = [f"{name} {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
        why = f"; it was made with {', '.join(other)}" if other else ""
        raise BudgetMissed(f"{out}: written, but these are not the certified bytes{why}", report)
    return report


def _origin(found: Certificate, source: StrPath) -> tuple[dict[str, Any], Recipe]:
    """What a certified model was made from and by, if that is this model."""
    origin: dict[str, Any] = found.content["origin"]
    if sorted(certificate.stored(source).values()) != sorted(origin["original"].values()):
        raise ModelError(f"{source}: is not the original of {found.path}")
    return origin, Recipe.parse(origin["recipe"], f"{found.path}: recipe")
