"""Where a result came from: what it takes to make it, or to measure it, once more."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink import certificate
from onnxshrink.errors import ModelError

if TYPE_CHECKING:
    from onnxshrink.contract import Settings
    from onnxshrink.report import Report


def trace(report: Report, settings: Settings, command: str = "") -> None:
    """Put into a report what its result was made from, by what and on which machine.

    Args:
        report: Of a run whose result is written.
        settings: The inputs and the seed.
        command: What was typed for it, if anything was.
    """
    from onnxshrink.runtime.calibration_cache import data_digest

    feeds = [*settings.feeds, *settings.unseen]
    kind = "generated" if settings.generated else "given"
    counts = f"{len(settings.feeds)} seen by steps, {len(settings.unseen)} by none ({kind})"
    report.provenance = {
        **({"command": command} if command else {}),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "original": report.source,
        "result": report.result,
        "sha256 of": {**_files(report.source), **_files(report.result)},
        "inputs": counts,
        "sha256 of the inputs": data_digest(feeds) if feeds else "",
        "seed": settings.seed,
        "cpu": report.checks.get("cpu", platform.processor() or platform.machine()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "version of": {name: certificate.version(name) for name in certificate.PACKAGES},
    }


def _files(path: str) -> dict[str, str]:
    """SHA-256 of the files of a model; nothing of what is no file, such as a pipe."""
    if not Path(path).is_file():
        return {}
    try:
        return certificate.stored(path)
    except ModelError:  # somebody took it away
        return {}
