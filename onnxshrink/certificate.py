"""What a result was made from and how it was measured, in a file beside it that can be checked.

A certificate is JSON in one canonical form (sorted keys, one space of indentation), so that every
changed byte of it is found; it names its model's files by SHA-256, so that every changed byte of
these is found, too. It says who made it only if it is signed (Ed25519, RFC 8032).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import BudgetMissed, DataError, ModelError, RecipeError
from onnxshrink.files import output

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from onnxshrink.contract import Settings
    from onnxshrink.recipe import Recipe
    from onnxshrink.report import Report
    from onnxshrink.runtime.bench import Ratio
    from onnxshrink.runtime.compare import Comparison
    from onnxshrink.runtime.places import Finding

FORMAT = "onnxshrink certificate 1"
SUFFIX = ".certificate.json"
#: The metadata of a certified model: the recipe that made it, and what it was made from.
KEY = "onnxshrink.origin"
#: Options of a run that decide about the bytes, beside its recipe and inputs.
OPTIONS = ("seed", "check", "keep_names", "max_opset")
#: Figures are the same when they are measured again on the same CPU, and nearly so on another:
#: which are held again, and what each may be off by whatever it is.
_SAME_FIGURE = 0.05
_ERRORS = {"relative_error": 1e-3, "worst": 1e-3, "kl": 1e-3}
_SHARES = {"top1": 0.02, "likeness": 1e-3}
_DECIDE = ("onnxruntime", "cpu", "vnni")  # of a session: what figures depend on
#: What decides about a result and its figures.
PACKAGES = ("onnxshrink", "onnx", "onnx_ir", "onnxruntime", "numpy", "scipy")

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Certificate:
    """A certificate that is intact.

    Attributes:
        path: Where it was read.
        content: Its entries; ``docs/guide.md`` shows them.
    """

    path: str
    content: Mapping[str, Any]

    @property
    def figures(self) -> Mapping[str, Any]:
        """The measured outputs: name -> figures; empty where nothing was compared."""
        found: Mapping[str, Any] = self.content["figures"]["outputs"]
        return found

    @property
    def places(self) -> Mapping[str, Any]:
        """The same in other places: label -> figures."""
        found: Mapping[str, Any] = self.content["figures"].get("places", {})
        return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A result, held against its original on some inputs.

    Attributes:
        comparison: Their outputs.
        latency: The time of the result over that of the original, in turns.
        data: The digest of the inputs.
    """

    comparison: Comparison
    latency: Ratio
    data: str


def path_of(model: StrPath) -> Path:
    """Where the certificate of a model stands."""
    return Path(f"{os.fspath(model)}{SUFFIX}")


def origin(recipe: Recipe, source: StrPath, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a certified model is made from.

    Args:
        recipe: The recipe, with the storage that was asked for.
        source: The original.
        options: The values of :data:`OPTIONS`.
    """
    return {
        "onnxshrink": version("onnxshrink"), "recipe": recipe.to_yaml(),
        "original": stored(source), **options,
    }  # fmt: skip


def issue(
    report: Report, settings: Settings, worker: Mapping[str, Any], key: StrPath | None = None
) -> Path:
    """Write the certificate of a model that has just been written.

    Its figures are measured on the inputs that no step has seen, where there are some.

    Args:
        report: What was done.
        settings: The inputs.
        worker: What the :class:`~onnxshrink.runtime.worker.Worker` is made with.
        key: A file with an Ed25519 private key in PEM, to sign with.

    Returns:
        Where it was written.

    Raises:
        RecipeError: The key is none, or the package for it is missing.
        OutputError: It cannot be written.
    """
    feeds = settings.unseen or settings.feeds
    found = measure(report.source, report.result, feeds, worker)
    outputs = found.comparison.outputs if found else ()
    content = {
        "format": FORMAT,
        "model": os.path.basename(report.result),
        "files": stored(report.result),
        "origin": report.origin,
        "versions": {name: version(name) for name in PACKAGES},
        "data": {
            "inputs": len(feeds), "sha256": found.data if found else "",
            "generated": settings.generated, "seen_by_steps": not settings.unseen,
        },
        "session": {
            "python": platform.python_version(), **(found.comparison.options_b if found else {}),
        },
        "figures": {
            "bytes_before": report.bytes_before, "bytes_after": report.bytes_after,
            "bytes_gzip": report.bytes_gzip, "promises": report.promises,
            "latency": found.latency._asdict() if found else None,
            "outputs": {output.name: output.to_dict() for output in outputs}, "places": {},
        },
    }  # fmt: skip
    path = path_of(report.result)
    with output(path) as file:
        file.write(seal(content, key))
    return path


def measure(
    source: StrPath, result: StrPath, feeds: Sequence[Mapping[str, Any]], worker: Mapping[str, Any]
) -> Measured | None:
    """A result against its original, on the CPU provider; None without any inputs."""
    from onnxshrink.runtime.bench import ratio
    from onnxshrink.runtime.calibration_cache import data_digest
    from onnxshrink.runtime.compare import compare
    from onnxshrink.runtime.worker import Worker

    if not feeds:
        return None
    with Worker(**worker) as child, plain(source) as a, plain(result) as b:
        comparison = compare(a, b, feeds, worker=child)
        latency = ratio(a, b, feeds[0], child)
    return Measured(comparison=comparison, latency=latency, data=data_digest(feeds))


def with_places(
    found: Certificate, originals: Sequence[Finding], results: Sequence[Finding],
    key: StrPath | None = None,
) -> bytes:  # fmt: skip
    """A certificate that also says what the model does in other places.

    Args:
        found: The certificate.
        originals: What the original does there.
        results: What the model does.
        key: What to sign it with; needed where it was signed.

    Raises:
        RecipeError: The key is none, or there must be one.
    """
    if key is None and "signature" in found.content:
        raise RecipeError(f"{found.path}: is signed, so what is added takes a key, too: --sign KEY")
    content = {
        name: value for name, value in found.content.items() if name not in ("digest", "signature")
    }
    places = {
        result.label: _in_place(before, result)
        for before, result in zip(originals, results, strict=True)
    }
    content["figures"] = {**content["figures"], "places": {**found.places, **places}}
    return seal(content, key)


def _in_place(original: Finding, result: Finding) -> dict[str, Any]:
    about = {} if result.comparison is None else dict(result.comparison.options_b)
    outputs = () if result.comparison is None else result.comparison.outputs
    return {
        **{name: about.get(name, "") for name in ("engine", "version", "provider")},
        "refusal": result.refusal, "elsewhere": result.elsewhere,
        "latency": result.seconds / original.seconds if original.seconds else None,
        "outputs": {output.name: output.to_dict() for output in outputs},
    }  # fmt: skip


@contextlib.contextmanager
def plain(path: StrPath) -> Iterator[StrPath]:
    """A model that runtimes open: a packed one is unpacked for this block."""
    from onnxshrink.graph.forms import packed

    if not packed.is_packed(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="onnxshrink-") as folder:
        plain = Path(folder) / "plain.onnx"
        packed.unpack(path, plain)
        yield plain


def read(path: StrPath, key: StrPath | None = None) -> Certificate:
    """Read a certificate, if it is intact.

    Args:
        path: Its file.
        key: A file with the Ed25519 public key in PEM of the one who must have signed it.

    Raises:
        ModelError: It was changed, is none, or is not signed with this key.
        RecipeError: The key is none, or the package for it is missing.
    """
    return Certificate(os.fspath(path), unseal(path, FORMAT, key))


def seal(content: Mapping[str, Any], key: StrPath | None = None) -> bytes:
    """A document in its one form, with its digest, and signed if there is a key.

    Args:
        content: What it says; ``format`` says what it is.
        key: A file with an Ed25519 private key in PEM.

    Raises:
        RecipeError: The key is none, or the package for it is missing.
    """
    sealed = {**content, "digest": _digest(content)}
    if key is not None:
        sealed["signature"] = _sign(sealed["digest"], key)
    return _canonical(sealed)


def unseal(path: StrPath, format: str, key: StrPath | None = None) -> dict[str, Any]:
    """Read what :func:`seal` made, if nothing of it was changed.

    Args:
        path: The file.
        format: What it must be.
        key: A file with the public key that must have signed it.

    Raises:
        ModelError: It was changed, is something else, or is not signed with this key.
        RecipeError: The key is none, or the package for it is missing.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        content: dict[str, Any] = json.loads(data)
        known = content["format"] == format and isinstance(content["digest"], str)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: not an {format.rpartition(' ')[0]}") from error
    if not known:
        raise ModelError(f"{path}: is no {format!r}, but {str(content['format'])[:60]!r}")
    rest = {name: value for name, value in content.items() if name not in ("digest", "signature")}
    if _canonical(content) != data or _digest(rest) != content["digest"]:
        raise ModelError(f"{path}: was changed after it was written")
    signature = content.get("signature")
    if signature is not None:
        _check_signature(str(path), content["digest"], signature, key)
    elif key is not None:
        raise ModelError(f"{path}: is not signed")
    return content


def check_files(certificate: Certificate, files: Mapping[str, str]) -> None:
    """Hold the files of a model against its certificate.

    Args:
        certificate: The certificate.
        files: SHA-256 of the model's files by name.

    Raises:
        ModelError: One is missing, new or changed.
    """
    known = certificate.content["files"]
    for name in sorted({*known, *files}):
        if name not in files:
            raise ModelError(f"{certificate.path}: certifies {name}, which is not there")
        if name not in known:
            raise ModelError(f"{certificate.path}: does not certify {name}")
        if known[name] != files[name]:
            raise ModelError(f"{name}: was changed: its SHA-256 is not that of {certificate.path}")


def check_figures(certificate: Certificate, measured: Measured) -> None:
    """Hold figures that were measured again against the certificate's.

    Raises:
        DataError: They were measured on other inputs.
        BudgetMissed: A figure is clearly worse than certified.
    """
    if certificate.content["data"]["sha256"] != measured.data:
        raise DataError(f"{certificate.path}: its figures are of other inputs than these")
    worse = list(_worse(certificate.figures, measured.comparison))
    if worse:
        then, now = certificate.content["session"], measured.comparison.options_b
        other = [f"{name} {then.get(name)}" for name in _DECIDE if then.get(name) != now.get(name)]
        worse += [f"certified with {', '.join(other)}"] * bool(other)
        raise BudgetMissed(f"{certificate.path}: worse than certified: {'; '.join(worse)}")


def check_places(certificate: Certificate, findings: Sequence[Finding]) -> None:
    """The same for other places.

    Raises:
        DataError: Nothing is certified of one.
        BudgetMissed: A figure is clearly worse than certified, or the model does not run there now.
    """
    worse = []
    for found in findings:
        known = certificate.places.get(found.label)
        if known is None:
            raise DataError(
                f"{certificate.path}: certifies nothing of {found.label}: 'onnxshrink certify' does"
            )
        if found.comparison is not None:
            lines = _worse(known["outputs"], found.comparison) if known["outputs"] else ()
            worse += [f"{found.label}: {line}" for line in lines]
        elif known["outputs"]:
            worse.append(f"{found.label}: {found.refusal}")
    if worse:
        raise BudgetMissed(f"{certificate.path}: worse than certified: {'; '.join(worse)}")


def _worse(certified: Mapping[str, Any], comparison: Comparison) -> Iterator[str]:
    """The figures that are clearly worse than certified, the first of each output."""
    for output_ in comparison.outputs:
        before: Mapping[str, Any] = certified.get(output_.name, {})
        now: Mapping[str, Any] = output_.to_dict()
        for name in (*_ERRORS, *_SHARES):
            if not _as_good(name, before.get(name), now[name]):
                yield f"{output_.name}: {name} {_told(now[name])}, certified {_told(before[name])}"
                break


def _as_good(name: str, before: float | None, now: float | None) -> bool:
    if before is None:
        return True
    if now is None:
        return False
    if name in _ERRORS:
        return now <= before * (1 + _SAME_FIGURE) + _ERRORS[name]
    return 1 - now <= (1 - before) * (1 + _SAME_FIGURE) + _SHARES[name]


def _told(figure: float | None) -> str:
    return "nothing" if figure is None else f"{figure:.3g}"


def stored(path: StrPath) -> dict[str, str]:
    """SHA-256 of all files of a model, by name.

    Raises:
        ModelError: One cannot be read.
    """
    from onnxshrink.graph.file.data_files import data_files
    from onnxshrink.runtime.run_inputs import digest

    try:
        files = [Path(path), *sorted(data_files(Path(path)))]
        return {file.name: digest(str(file)) for file in files}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def version(name: str) -> str:
    """The version of an installed package; a question mark where it is not known."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # ONNX Runtime has several distributions
        return "?"


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, default=str) + "\n").encode("ascii")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _keys() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise RecipeError("signatures need a package: pip install 'onnxshrink[sign]'") from error
    return serialization


def _sign(digest: str, path: StrPath) -> dict[str, str]:
    from_pem = _keys()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _load(path, lambda pem: from_pem.load_pem_private_key(pem, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError(f"--sign {path}: not an Ed25519 private key")
    return {
        "algorithm": "Ed25519",
        "public_key": _text(key.public_key().public_bytes_raw()),
        "value": _text(key.sign(digest.encode("ascii"))),
    }


def _check_signature(path: str, digest: str, signature: Any, wanted: StrPath | None) -> None:
    from_pem = _keys()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        if set(signature) != {"algorithm", "public_key", "value"}:
            raise ValueError
        if signature["algorithm"] != "Ed25519":
            raise ValueError
        raw = base64.b64decode(signature["public_key"], validate=True)
        key: Ed25519PublicKey = Ed25519PublicKey.from_public_bytes(raw)
        value = base64.b64decode(signature["value"], validate=True)
        if [_text(raw), _text(value)] != [signature["public_key"], signature["value"]]:
            raise ValueError  # other text for the same bytes
        key.verify(value, digest.encode("ascii"))
    except (InvalidSignature, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: its signature is not valid") from error
    if wanted is None:
        return
    known = _load(wanted, from_pem.load_pem_public_key)
    if not isinstance(known, Ed25519PublicKey):
        raise RecipeError(f"--key {wanted}: not an Ed25519 public key")
    if known.public_bytes_raw() != raw:
        raise ModelError(f"{path}: was signed with another key than {wanted}")


def _load(path: StrPath, parse: Any) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:  # no PEM, or one with a password
        raise RecipeError(f"{path}: not a key in PEM without a password") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
