"""A folder or .zip with all that an application needs: the model, a sample, an example that runs.

What is written for each target are the files of ``bundles/TARGET``, with the words between ``@@``
filled in. A sealed manifest names every file by SHA-256.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import certificate, files
from onnxshrink.errors import ModelError, OutputError, RecipeError
from onnxshrink.report import size, times

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.runtime.worker import Signature, Worker

StrPath = str | os.PathLike[str]
Row = Mapping[str, "np.ndarray"]
#: Target -> the folders of templates that it takes.
TARGETS = {
    "web": ("web",), "python": ("python",), "linux-c": ("linux-c",), "android": ("android",),
    "ios": ("ios",), "mobile": ("android", "ios"),
}  # fmt: skip
_HOW = "how.md"  # of the templates: a part of the README, and no file of its own
FORMAT = "onnxshrink bundle 1"
MANIFEST = "manifest.json"
_TEMPLATES = Path(__file__).parent / "bundles"
_READER = _TEMPLATES.parent / "readers" / "onnxshrink_pack.mjs"
_WEB_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PACKED = ("web",)  # targets whose example reads packed models
_LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
#: A zip file knows no dates before this; one date makes the same bytes every time.
_DATE = (1980, 1, 1, 0, 0, 0)
# ONNX's number of each type that a sample in raw bytes may have (TensorProto.DataType).
_NUMBERS = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What is to be delivered.

    Attributes:
        source: The model; plain, coded or packed.
        target: One of :data:`TARGETS`.
        sample: An input by name; the example runs on its first row, if the model takes any number.
        web_runtime: A folder where npm has installed onnxruntime-web, to take it from.
        licences: Further files that say how the model may be used; those named ``LICENSE`` and so
            on beside it go along by themselves.
        key: A file with an Ed25519 private key in PEM, to sign the manifest with.
    """

    source: StrPath
    target: str
    sample: Row
    web_runtime: StrPath | None = None
    licences: tuple[StrPath, ...] = ()
    key: StrPath | None = None

    def write(self, out: StrPath, worker: Worker) -> list[str]:
        """Write the bundle.

        Args:
            out: A folder that is new or empty, or a ``.zip``.
            worker: Where the model answers the sample.

        Returns:
            The names of its files.

        Raises:
            RecipeError: There is no such target, or it cannot read packed models.
            OutputError: The folder has something in it, or cannot be written.
            ModelError: The model does not load or run.
        """
        if self.target not in TARGETS:
            raise RecipeError(f"--target {self.target}: there are {', '.join(TARGETS)}")
        path = Path(out)
        zipped = path.suffix == ".zip"
        if not zipped and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path}: has something in it; name a new folder, or a .zip")
        content = self._content(worker)
        with files.writing(path):
            if zipped:
                with files.output(path) as file:
                    _zip(content, file)
            else:
                _place(content, path)
        return sorted(content)

    def _content(self, worker: Worker) -> dict[str, bytes | Path]:
        """All files by their names in the bundle."""
        from onnxshrink.graph.file.data_files import data_files
        from onnxshrink.graph.forms import packed

        source = Path(self.source)
        pack = packed.pack_path(source) if packed.is_packed(source) else None
        if pack is not None and self.target not in _PACKED:
            raise RecipeError(
                f"{source}: is packed, which the example for {self.target} does not read; unpack "
                "it, and 'onnxshrink pack --form graph' makes one file that every runtime opens"
            )
        signature, sample, answers = self._answer(worker)
        content: dict[str, bytes | Path] = {source.name: source}
        content |= {file.name: file for file in sorted(data_files(source))}
        beside = sorted(source.absolute().parent.iterdir())
        found = [file for file in beside if file.is_file() and file.stem.upper() in _LICENCES]
        for licence in (*found, *map(Path, self.licences)):
            if not licence.is_file():
                raise RecipeError(f"--licence {licence}: there is no such file")
            content[licence.name] = licence
        certified = certificate.path_of(source)
        if certified.exists():
            certificate.check_files(certificate.read(certified), certificate.stored(source))
            content[certified.name] = certified
        words = self._words(signature, pack)
        for part in TARGETS[self.target]:
            for template in sorted((_TEMPLATES / part).iterdir()):
                if template.name != _HOW:
                    content[template.name.removesuffix(".template")] = _filled(template, words)
        content |= self._for_target(sample, answers, pack)
        content["README.md"] = self._readme(words, signature, certified).encode()
        sealed = {
            "format": FORMAT, "target": self.target, "model": source.name,
            "inputs": signature.inputs, "outputs": signature.outputs,
            "runtime": f"ONNX Runtime {words['RUNTIME']} or newer",
            "files": {name: _digest(data) for name, data in sorted(content.items())},
        }  # fmt: skip
        return content | {MANIFEST: certificate.seal(sealed, self.key)}

    def _answer(self, worker: Worker) -> tuple[Signature, Row, Row]:
        """The signature, the sample that the example runs on, and what the model says to it."""
        from onnxshrink.graph.file.model import Model

        with certificate.plain(self.source) as path:
            shapes = {port.name: port.shape for port in Model.load(path).inputs}
            first = {str(shape[0]) for shape in shapes.values() if shape is not None and len(shape)}
            rows = {array.shape[:1] for array in self.sample.values()}
            sample = dict(self.sample)
            if len(first) == len(rows) == 1 and not first.pop().isdecimal():
                sample = {name: array[:1] for name, array in sample.items()}
            signature = worker.open(path)
            outputs, _ = worker.step(sample)
            worker.release()
        return signature, sample, dict(zip(signature.outputs, outputs, strict=True))

    def _words(self, signature: Signature, pack: Path | None) -> dict[str, str]:
        from onnxshrink.graph.file.model import Model
        from onnxshrink.graph.rewrite.opset import first_runtime

        source = Path(self.source)
        model = Model.load(source) if pack is None else None
        total = sum(file.stat().st_size for file in self._files())
        return {
            "MODEL": source.name, "STEM": source.stem, "TITLE": source.stem, "SIZE": size(total),
            "RUNTIME": (first_runtime(model) if model is not None else "1.24") or "1.23",
            "INPUTS": _listed(signature.inputs), "OUTPUTS": _listed(signature.outputs),
            "DATA": self._web_data(pack),
        }  # fmt: skip

    def _files(self) -> list[Path]:
        from onnxshrink.graph.file.data_files import data_files

        return [Path(self.source), *sorted(data_files(Path(self.source)))]

    def _web_data(self, pack: Path | None) -> str:
        """JavaScript that hands the weights to the runtime, where they are not in the model."""
        if pack == Path(self.source):
            return (
                'const { unpack } = await import("./onnxshrink_pack.mjs");\n    '
                "({ model, externalData: options.externalData } = await unpack(model));"
            )
        if pack is not None:
            return (
                'const { externalData } = await import("./onnxshrink_pack.mjs");\n    '
                f'const pack = await download("{pack.name}", () => {{}});\n    '
                "options.externalData = await externalData(pack, { model });"
            )
        names = [file.name for file in self._files()[1:]]
        if not names:
            return ""
        parts = (
            f'{{ path: "{name}", data: await download("{name}", () => {{}}) }}' for name in names
        )
        return f"options.externalData = [{', '.join(parts)}];"

    def _for_target(self, sample: Row, answers: Row, pack: Path | None) -> dict[str, bytes | Path]:
        """The sample in the form that the target reads, and what reads the model there."""
        from onnxshrink.runtime import run_inputs
        from onnxshrink.runtime.places import SCRIPT

        if self.target == "linux-c":
            return _raw(sample, answers)
        if self.target not in ("web", "python"):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            content: dict[str, bytes | Path] = {}
            for name, row in (("sample.json", sample), ("answers.json", answers)):
                path = os.path.join(folder, name)
                run_inputs.write(path, [dict(row)], {})
                content[name] = Path(path).read_bytes()
        if self.target == "python":
            return content | {"values.py": SCRIPT}
        if pack is not None:
            content[_READER.name] = _READER
        if self.web_runtime is not None:
            dist = Path(self.web_runtime) / "node_modules" / "onnxruntime-web" / "dist"
            for name in _WEB_RUNTIME:
                if not (dist / name).is_file():
                    raise RecipeError(
                        f"--runtime {self.web_runtime}: has no onnxruntime-web ({name})"
                    )
                content[f"ort/{name}"] = dist / name
        return content

    def _readme(self, words: Mapping[str, str], signature: Signature, certified: Path) -> str:
        lines = [
            f"# {words['TITLE']}", "",
            f"`{words['MODEL']}`, {words['SIZE']}; from ONNX Runtime {words['RUNTIME']} on.", "",
            "| | name | type |", "| --- | --- | --- |",
            *(f"| input | {name} | {kind} |" for name, kind in signature.inputs.items()),
            *(f"| output | {name} | {kind} |" for name, kind in signature.outputs.items()), "",
            *(_filled(_TEMPLATES / part / _HOW, words).decode() for part in TARGETS[self.target]),
        ]  # fmt: skip
        if certified.exists():
            lines += [*_figures(certificate.read(certified)), ""]
        lines.append(
            f"`{MANIFEST}` names every file by SHA-256: `onnxshrink verify` of this folder."
        )
        return "\n".join(lines) + "\n"


def verify(folder: StrPath, key: StrPath | None = None) -> int:
    """Hold the files of a bundle against its manifest.

    Args:
        folder: The bundle.
        key: A file with the public key that must have signed it.

    Returns:
        How many files there are.

    Raises:
        ModelError: A file is missing, new or changed, or the manifest is.
    """
    root = Path(folder)
    sealed = certificate.unseal(root / MANIFEST, FORMAT, key)
    found = {
        path.relative_to(root).as_posix(): _digest(path)
        for path in sorted(root.rglob("*")) if path.is_file() and path != root / MANIFEST
    }  # fmt: skip
    certificate.check_files(certificate.Certificate(str(root / MANIFEST), sealed), found)
    return len(found)


def _figures(found: certificate.Certificate) -> list[str]:
    """What a certificate says of a model, in Markdown."""
    figures, data = found.content["figures"], found.content["data"]
    seen = "that steps had seen" if data["seen_by_steps"] else "that no step had seen"
    lines = [
        f"{times(figures['bytes_before'], figures['bytes_after'])} smaller than the original. "
        f"Against it, on {data['inputs']} inputs {seen}:", "",
        "| output | relative error | top-1 agreement |", "| --- | --- | --- |",
    ]  # fmt: skip
    lines += [f"| {name} | {_told(row)} |" for name, row in figures["outputs"].items()]
    if latency := figures["latency"]:
        cpu = found.content["session"]["cpu"]
        interval = f"{latency['low']:.2f} to {latency['high']:.2f}"
        ratio = f"{latency['median']:.2f} times the original's ({interval}) on {cpu}"
        lines += ["", f"A run takes {ratio}."]
    if found.places:
        lines += ["", "| place | relative error | top-1 agreement |", "| --- | --- | --- |"]
    for label, place in found.places.items():
        version = f"{label} ({place['engine']} {place['version']})" if place["outputs"] else label
        worst = max(place["outputs"].values(), key=_error, default=None)
        told = f"does not run: {place['refusal']} | " if worst is None else _told(worst)
        lines.append(f"| {version} | {told} |")
    return lines


def _error(row: Mapping[str, Any]) -> float:
    error: float | None = row["relative_error"]
    return math.inf if error is None else error


def _told(row: Mapping[str, Any]) -> str:
    error = "-" if row["relative_error"] is None else f"{row['relative_error']:.3g}"
    return f"{error} | {'-' if row['top1'] is None else format(row['top1'], '.4f')}"


def _listed(ports: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in ports.items())


def _filled(template: Path, words: Mapping[str, str]) -> bytes:
    text = template.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@@{word}@@", value)
    return text.encode()


def _raw(sample: Row, answers: Row) -> dict[str, bytes | Path]:
    """A sample as raw bytes, with an index for C."""
    import numpy as np

    content: dict[str, bytes | Path] = {}
    index = []
    for kind, row in (("INPUT", sample), ("OUTPUT", answers)):
        for name, array in row.items():
            if array.dtype.name not in _NUMBERS or " " in name:
                raise ModelError(f"{name!r}: the example in C reads no {array.dtype.name} arrays")
            file = f"{len(content)}.bin"
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            content[f"sample/{file}"] = little.tobytes()
            sizes = " ".join(map(str, (array.ndim, *array.shape)))
            index.append(f"{kind} {name} {_NUMBERS[array.dtype.name]} {file} {sizes}\n")
    return content | {"sample/index.txt": "".join(index).encode()}


def _digest(data: bytes | Path) -> str:
    import hashlib

    from onnxshrink.runtime.run_inputs import digest

    return digest(str(data)) if isinstance(data, Path) else hashlib.sha256(data).hexdigest()


def _place(content: Mapping[str, bytes | Path], folder: Path) -> None:
    """Write files into a new folder; there is all of it, or nothing."""
    with files.scratch(folder.absolute().parent) as made:
        for name, data in content.items():
            path = made / "bundle" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, path)
            else:
                path.write_bytes(data)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        os.rename(made / "bundle", folder)


def _zip(content: Mapping[str, bytes | Path], file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(content.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            source = data.open("rb") if isinstance(data, Path) else io.BytesIO(data)
            with source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)
