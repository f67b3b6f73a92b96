"""Export small architectures with random weights, written in plain torch, for the channel tests.

Run it where torch is installed: ``python tools/export_architectures.py FOLDER``. Files that exist
are kept. Every family of blocks that channel removal meets in the wild is here; widths are those
of the papers' smallest models, or smaller.
"""

# mypy: disable-error-code="misc,no-untyped-call,var-annotated"

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from architectures import attention, classifiers, dense
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Tensor, ...]]
IMAGE = (1, 3, 64, 64)


def _cases() -> dict[str, Callable[[], Case]]:
    image, ids = torch.randn(IMAGE), torch.randint(0, 1000, (1, 12))
    gray, audio = torch.randn(1, 1, 32, 64), torch.randn(1, 40, 24)
    on = lambda make, *x: lambda: (make(), x)  # noqa: E731
    return {
        "resnet18": on(lambda: classifiers.resnet(False, (2, 2, 2, 2)), image),
        "resnet50": on(lambda: classifiers.resnet(True, (3, 4, 6, 3)), image),
        "resnext": on(lambda: classifiers.resnet(True, (2, 2, 2), 32, 128), image),
        "densenet121": on(classifiers.densenet, image),
        "mobilenet_v2": on(classifiers.mobilenet_v2, image),
        "mobilenet_v3": on(classifiers.mobilenet_v3, image),
        "efficientnet_b0": on(classifiers.efficientnet, image),
        "shufflenet_v1": on(classifiers.shufflenet_v1, image),
        "shufflenet_v2": on(classifiers.shufflenet_v2, image),
        "squeezenet": on(classifiers.squeezenet, image),
        "inception": on(classifiers.inception, image),
        "regnet": on(classifiers.regnet, image),
        "convnext": on(dense.convnext, image),
        "unet": on(dense.UNet, image),
        "yolo": on(dense.Yolo, image),
        "crnn": on(dense.Crnn, gray),
        "espcn": on(dense.espcn, gray),
        "deeplab": on(dense.DeepLab, image),
        "ghostnet": on(dense.ghostnet, image),
        "bert": on(lambda: attention.Text(128, 4, 3, post=True), ids),
        "gpt": on(lambda: attention.Text(128, 4, 3, fused=True, causal=True), ids),
        "llama": on(
            lambda: attention.Text(
                128, 8, 3, attention.RMSNorm, positions=False, tied=False, glu=True, kv=2,
                rope=True, causal=True, bias=False), ids),
        "vit": on(attention.Vit, image),
        "swin": on(attention.Swin, image),
        "mixer": on(attention.Mixer, image),
        "mobilevit": on(attention.MobileVit, image),
        "whisper": on(attention.Whisper, audio, ids[:, :6] % 500),
        "opt": on(attention.Opt, ids.repeat(2, 1)),
        "translator": on(attention.Translator, ids % 500, ids[:, :6] % 500),
        "diffusion": on(attention.GroupNormNet, torch.randn(1, 4, 8, 8), torch.randn(1, 32)),
    }  # fmt: skip


#: Axes that may vary, by architecture; images keep their size, batches do not.
_FREE: dict[str, tuple[dict[int, str], ...]] = {
    "bert": ({0: "batch", 1: "length"},),
    "gpt": ({0: "batch", 1: "length"},),
    "llama": ({0: "batch", 1: "length"},),
    "opt": ({0: "batch", 1: "length"},),
    "whisper": ({0: "batch"}, {0: "batch", 1: "length"}),
    "diffusion": ({0: "batch"}, {0: "batch"}),
    "unet": ({0: "batch", 2: "height", 3: "width"},),
    "deeplab": ({0: "batch", 2: "height", 3: "width"},),
    "yolo": ({0: "batch", 2: "height", 3: "width"},),
    "resnet18": ({0: "batch", 2: "height", 3: "width"},),
    "crnn": ({0: "batch", 3: "width"},),
    "mobilevit": ({},),
}

#: Those that the newer exporter writes, which needs onnxscript.
_DYNAMO = {"opt"}


def _randomise(model: nn.Module) -> None:
    """Norms and biases away from the zeros and ones that they begin with, which hide mistakes."""
    for module in model.modules():
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if tensor.ndim == 1 and tensor.is_floating_point():
                low = 0.5 if name in ("weight", "running_var", "g") else -0.2
                nn.init.uniform_(tensor, low, low + 1.0 if low > 0 else 0.2)


def main() -> None:
    """Export what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, make in _cases().items():
        path = arguments.folder / f"{name}.onnx"
        if path.exists() or (arguments.only and name not in arguments.only):
            continue
        torch.manual_seed(0)
        model, inputs = make()
        model.eval()
        with torch.no_grad():
            _randomise(model)
        export(name, model, inputs, path)


def export(name: str, model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write one architecture, with the axes free that are for it."""
    names = [f"x{index}" for index in range(len(inputs))]
    free = _FREE.get(name, ({0: "batch"},) * len(inputs))
    if name in _DYNAMO:
        dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free)
        torch.onnx.export(
            model, inputs, path, input_names=names, output_names=["y"], opset_version=18,
            dynamic_shapes=dynamic, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        return
    torch.onnx.export(
        model, inputs, path, input_names=names, output_names=["y"], opset_version=17,
        dynamic_axes=dict(zip(names, free, strict=True)), dynamo=False,
        do_constant_folding=True, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
