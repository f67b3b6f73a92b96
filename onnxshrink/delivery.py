"""The commands that take a model elsewhere and make it once more, for Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink import files
from onnxshrink.api import Options
from onnxshrink.commands import StrPath, inputs_for

if TYPE_CHECKING:
    from onnxshrink.report import Report
    from onnxshrink.runtime.places import Finding, Place

_log = logging.getLogger(__name__)


def bundle(
    source: StrPath, out: StrPath, target: str, options: Options | None = None, *,
    web_runtime: StrPath | None = None, licences: Sequence[StrPath] = (),
    sign: StrPath | None = None, say: Callable[[str], None] = _log.warning,
) -> list[str]:  # fmt: skip
    """Put a model into a folder or .zip with what an application needs: an example that runs.

    Args:
        source: The model; plain, coded or packed.
        out: A folder that is new or empty, or a ``.zip``.
        target: ``web``, ``mobile``, ``android``, ``ios``, ``linux-c`` or ``python``.
        options: Where inputs are, of which the first is the example's; without any, it is made up.
        web_runtime: A folder where npm has installed onnxruntime-web, which goes along.
        licences: Further files that say how the model may be used.
        sign: A file with an Ed25519 private key in PEM, to sign the manifest with.
        say: Told what the user must know of the inputs.

    Returns:
        The names of its files.

    Raises:
        ShrinkError: There is no such target, the model does not run, or there is something there.
    """
    from onnxshrink.bundling import Bundle
    from onnxshrink.runtime.worker import Worker

    options = Options.of(options)
    with Worker(**options.worker) as worker:
        sample = inputs_for(source, options, 1, worker, say)[0]
        wanted = Bundle(
            source=source, target=target, sample=sample, web_runtime=web_runtime,
            licences=tuple(licences), key=sign,
        )  # fmt: skip
        return wanted.write(out, worker)


def run_inputs(
    model: StrPath, folder: StrPath, options: Options | None = None, *, count: int = 64,
    say: Callable[[str], None] = _log.warning,
) -> int:  # fmt: skip
    """Write what another machine needs to run a model on the same inputs, and how many these are.

    Args:
        model: The model.
        folder: Gets ``inputs.json``, and ``run_inputs.py`` to run there.
        options: Where inputs are; without any, some are generated.
        count: Use at most this many inputs.
        say: Told what the user must know of the inputs.

    Raises:
        ShrinkError: The model or the inputs cannot be read, or the folder not be written.
    """
    from onnxshrink.runtime.places import SCRIPT, save_inputs
    from onnxshrink.runtime.worker import Worker

    options, place = Options.of(options), Path(folder)
    with Worker(**options.worker) as worker:
        feeds = inputs_for(model, options, count, worker, say)
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
        save_inputs(place / "inputs.json", feeds)
    with files.output(place / SCRIPT.name) as file:
        file.write(SCRIPT.read_bytes())
    return len(feeds)


def certify(
    source: StrPath, original: StrPath, places: Sequence[Place], options: Options, *,
    certificate: StrPath | None = None, key: StrPath | None = None,
) -> list[Finding]:  # fmt: skip
    """Put what a certified model does in other places into its certificate.

    Args:
        source: The model.
        original: The model that it was made from.
        places: Where it runs; see ``onnxshrink.runtime.places``.
        options: The inputs that its certificate was made with.
        certificate: By default the file beside the model.
        key: A file with an Ed25519 private key in PEM; needed where the certificate is signed.

    Returns:
        What was found in each place.

    Raises:
        BudgetMissed: A figure is worse than certified already.
        DataError: These are other inputs.
        ModelError: A file is not the certified one, or not the original.
        RecipeError: The key is none, or there must be one.
    """
    from onnxshrink.certificate import check_files, path_of, read, stored
    from onnxshrink.reproducing import certify as again

    found = read(certificate or path_of(source))
    check_files(found, stored(source))
    return again(found, original, source, options, places, key)


def reproduce(
    certificate: StrPath, source: StrPath, out: StrPath, options: Options | None = None
) -> Report:
    """Make a certified model again from the original, and hold it against the certificate.

    Args:
        certificate: The file of the certificate.
        source: The original.
        out: Where the result goes, under any name.
        options: The inputs, and how to run.

    Raises:
        BudgetMissed: It was written, and its bytes are not those that are certified.
        ModelError: ``source`` is not the original.
    """
    from onnxshrink.certificate import read
    from onnxshrink.reproducing import reproduce as again

    options = Options.of(options)
    options = replace(options, reads=(*options.reads, certificate))
    return again(read(certificate), source, out, options)
