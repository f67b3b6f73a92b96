"""A certified model once more: measured again, or made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import certificate
from onnxshrink.api import Options, apply_recipe, prepare
from onnxshrink.certificate import Certificate, Measured
from onnxshrink.errors import BudgetMissed, DataError, ModelError
from onnxshrink.files import output
from onnxshrink.recipe import Recipe

if TYPE_CHECKING:
    from onnxshrink.report import Report
    from onnxshrink.runtime.places import Finding, Place

StrPath = str | os.PathLike[str]
Feeds = Sequence[Mapping[str, Any]]


def recheck(
    found: Certificate, source: StrPath, result: StrPath, options: Options,
    places: Sequence[Place] = (),
) -> Measured:  # fmt: skip
    """Measure a certified model again, on the inputs that its certificate was made with.

    Args:
        found: The certificate.
        source: The original.
        result: The certified model.
        options: The inputs, and how to run.
        places: Other places that it says something of.

    Raises:
        DataError: Nothing was measured, or not there, or these are other inputs.
        ModelError: ``source`` is not the original.
        BudgetMissed: A figure is worse than certified.
    """
    feeds = _certified_inputs(found, source, options)
    measured = _measured_again(found, source, result, feeds, options)
    if places:
        certificate.check_places(found, _in_places(source, result, feeds, places, options))
    return measured


def certify(
    found: Certificate, source: StrPath, result: StrPath, options: Options,
    places: Sequence[Place], key: StrPath | None = None,
) -> list[Finding]:  # fmt: skip
    """See :func:`onnxshrink.delivery.certify`; ``found`` is the certificate, read."""
    certificate.with_places(found, (), (), key)  # before the work: is there a key where one is due?
    feeds = _certified_inputs(found, source, options)
    _measured_again(found, source, result, feeds, options)
    before = _in_places(source, source, feeds, places, options)
    after = _in_places(source, result, feeds, places, options)
    sealed = certificate.with_places(found, before, after, key)
    with output(Path(found.path)) as file:
        file.write(sealed)
    return after


def _certified_inputs(found: Certificate, source: StrPath, options: Options) -> Feeds:
    """The inputs that no step had seen, where there were some."""
    from onnxshrink.runtime.worker import Worker

    origin, recipe = _origin(found, source)
    options = replace(options, seed=origin["seed"])
    with Worker(**options.worker) as worker, tempfile.TemporaryDirectory() as folder:
        unused = Path(folder) / "unused"
        _, settings = prepare(source, unused, options, worker, held_back=recipe.held_back)
    return settings.unseen or settings.feeds


def _measured_again(
    found: Certificate, source: StrPath, result: StrPath, feeds: Feeds, options: Options
) -> Measured:
    measured = certificate.measure(source, result, feeds, options.worker)
    if measured is None or not found.figures:
        raise DataError(f"{found.path}: certifies no figures: there were no inputs")
    certificate.check_figures(found, measured)
    return measured


def _in_places(
    source: StrPath, result: StrPath, feeds: Feeds, places: Sequence[Place], options: Options
) -> list[Finding]:
    from onnxshrink.runtime.places import compare_places
    from onnxshrink.runtime.session import SessionOptions
    from onnxshrink.runtime.worker import DEFAULT_TIMEOUT, Worker

    timeout = options.worker.get("timeout", DEFAULT_TIMEOUT)
    exact = SessionOptions(accuracy_level=0)
    with (
        Worker(**options.worker) as worker, certificate.plain(source) as a,
        certificate.plain(result) as b,
    ):  # fmt: skip
        return compare_places(a, b, feeds, places, options_a=exact, worker=worker, timeout=timeout)


def reproduce(found: Certificate, source: StrPath, out: StrPath, options: Options) -> Report:
    """See :func:`onnxshrink.delivery.reproduce`; ``found`` is the certificate, read."""
    origin, recipe = _origin(found, source)
    asked = {name: origin[name] for name in certificate.OPTIONS}
    report = apply_recipe(recipe, source, out, replace(options, **asked, certificate=True))
    # Names of data files follow from the model's; what counts is what is in them.
    made, known = certificate.stored(out), found.content["files"]
    if sorted(made.values()) != sorted(known.values()):
        again = certificate.read(certificate.path_of(out)).content
        ours, theirs = again["versions"], found.content["versions"]
        other = [f"{name} {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
        if again["data"]["sha256"] != found.content["data"]["sha256"]:
            other.append("other inputs")
        why = f"; it was made with {', '.join(other)}" if other else ""
        raise BudgetMissed(f"{out}: written, but these are not the certified bytes{why}", report)
    return report


def _origin(found: Certificate, source: StrPath) -> tuple[dict[str, Any], Recipe]:
    """What a certified model was made from and by, if that is this model."""
    origin: dict[str, Any] = found.content["origin"]
    if sorted(certificate.stored(source).values()) != sorted(origin["original"].values()):
        raise ModelError(f"{source}: is not the original of {found.path}")
    return origin, Recipe.parse(origin["recipe"], f"{found.path}: recipe")
