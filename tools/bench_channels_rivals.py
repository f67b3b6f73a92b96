#!/usr/bin/env python3
"""prune-channels side by side with Torch-Pruning and onnxsim, on the exported architectures.

    python tools/bench_channels_rivals.py FOLDER --rival-python PYTHON [--only NAME ...]

FOLDER is what ``tools/export_architectures.py`` wrote. PYTHON has torch, torch-pruning and onnxsim;
each of their runs is a process of its own. A rival fails when it raises, when what it makes does
not run, or when its output has another shape. Prints a Markdown table of the parameters and
multiply-accumulates that are left.
"""

# mypy: disable-error-code="no-untyped-call,import-not-found,import-untyped"

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

RIVALS = {"torch-pruning": "_torch_pruning", "onnxsim": "_onnxsim"}
_MINUTES = 5


# ------------------------------------------------------------------ in the rivals' environment


def _torch_pruning(name: str, source: str, out: str, ratio: float) -> None:
    """Its pruner as its documentation has it: all but the last layer, no hints for the model."""
    import torch
    import torch_pruning
    from export_architectures import _cases, _randomise, export

    torch.manual_seed(0)
    model, inputs = _cases()[name]()
    model.eval()
    with torch.no_grad():
        _randomise(model)
        before = model(*inputs).shape
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    last = [module for module in model.modules() if isinstance(module, kinds)][-1]
    pruner = torch_pruning.pruner.MetaPruner(
        model, inputs[0] if len(inputs) == 1 else inputs, ignored_layers=[last],
        importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
    )  # fmt: skip
    pruner.step()
    with torch.no_grad():
        after = model(*inputs).shape
    if after != before:
        raise ValueError(f"the output is {list(after)}, not {list(before)}")
    export(name, model, inputs, Path(out))


def _onnxsim(name: str, source: str, out: str, ratio: float) -> None:
    """Its structured pruning of convolutions and products, without that of attention heads."""
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(onnxsim.apply_structured_pruning(model, sparsity=ratio), out)


# ----------------------------------------------------------------- in the project's environment


def _left(source: Path, other: Path) -> str:
    """Parameters and MACs of one model over those of another, which must answer in its shapes."""
    from onnxshrink.channels.groups import Cost, cost
    from onnxshrink.channels.labels import labelled
    from onnxshrink.channels.probing import probe_any
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.generate import generated_inputs
    from onnxshrink.runtime.worker import Worker

    costs: list[Cost] = []
    shapes: list[list[tuple[int, ...]]] = []
    with Worker() as worker:
        feeds = generated_inputs(Model.load(source), 1, 0, worker=worker)
        for path in (source, other):
            model = Model.load(path)
            shapes.append([array.shape for array in worker.run(path, feeds).outputs[0]])
            costs.append(cost(labelled(model, probe_any(model, feeds, 0, worker))))
    if shapes[0] != shapes[1]:
        return f"fails: outputs {shapes[1]}, not {shapes[0]}"
    before, after = costs
    return f"{after.parameters / before.parameters:.3f} / {after.macs / max(before.macs, 1):.3f}"


def _ours(source: Path, out: Path, ratio: float, round_to: int) -> None:
    from onnxshrink.contract import Settings
    from onnxshrink.graph.file.model import Model
    from onnxshrink.passes.prune_channels import PruneChannels
    from onnxshrink.pipeline import run
    from onnxshrink.runtime.generate import generated_inputs

    model = Model.load(source)
    step = PruneChannels(ratio=ratio, round_to=round_to, importance="l2", max_error=1e9)
    settings = Settings(feeds=generated_inputs(model, 2, 0), generated=True)
    run([step], model, settings).model.save(out)


def _rival(python: str, name: str, source: Path, out: Path, ratio: float, kind: str) -> str:
    command = [python, __file__, str(source), "--as", kind, "--out", str(out)]
    try:
        done = subprocess.run(
            [*command, "--only", name, "--ratio", str(ratio)], capture_output=True, text=True,
            timeout=60 * _MINUTES, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"fails: more than {_MINUTES} minutes"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"fails: {lines[-1][:70] if lines else 'crash'}" if done.returncode else ""


def main() -> None:
    """Print one row for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rival-python", default=sys.executable)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--as", dest="kind", choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        globals()[RIVALS[given.kind]](given.only[0], str(given.folder), given.out, given.ratio)
        return
    logging.getLogger().setLevel(logging.ERROR)
    print("| model | prune-channels | to the unit | Torch-Pruning | onnxsim |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for source in sorted(given.folder.glob("*.onnx")):
            if given.only and source.stem not in given.only:
                continue
            cells = []
            for round_to in (8, 1):
                _ours(source, out, given.ratio, round_to)
                cells.append(_left(source, out))
            for kind in RIVALS:
                out.unlink(missing_ok=True)
                said = _rival(
                    given.rival_python, source.stem, source, out, given.ratio, kind
                )  # fmt: skip
                try:
                    cells.append(said or _left(source, out))
                except Exception as error:  # whatever is wrong with the model is its result
                    cells.append(f"fails: {str(error).splitlines()[0][-70:]}")
            print(f"| {source.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
