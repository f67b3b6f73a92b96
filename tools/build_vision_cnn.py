#!/usr/bin/env python3
"""Train `models/vision_cnn`: which piece of clothing a small grey picture shows.

A small network with what makes CNNs hard to compress: BatchNormalization left as it is,
depthwise and grouped convolutions, a residual sum and a concatenation.

Needs `pip install torch` and `apt-get install dataset-fashion-mnist` (the data; MIT).
A rebuild is bit-identical only with the same version of torch.
"""

# mypy: allow-subclassing-any, allow-untyped-calls
# (torch is unknown to mypy where it is not installed, and partly untyped where it is)

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from model_files import export_torch, output_folder, verify, write_data
from model_metrics import top_hits
from torch import nn

SEED = 28
EPOCHS = 5
BATCH = 128
CLASSES = 10
WIDTHS = (24, 64, 96, 144, 192)
DATA = Path("/usr/share/datasets/fashion-mnist")

README = """# vision_cnn

Tells ten kinds of clothing apart in 28 x 28 grey pictures: a CNN of {parameters:,} parameters with
BatchNormalization (not folded), depthwise and grouped convolutions, two residual sums and a
concatenation.

| metric (higher is better) | this model | naive answer |
|---|---|---|
| accuracy, {tests:,} test pictures | {metric:.4f} | {naive:.4f} |

The naive answer is always the most common class. On all 10,000 test pictures: {full:.4f}.

Input: `image`, float32 `[batch, 1, 28, 28]`, 0 black to 1 white. Output: `scores`, float32
`[batch, 10]`, before softmax: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
ankle boot.

- **Data**: Fashion-MNIST, of Debian's package dataset-fashion-mnist. Trained on its 60,000 training
  pictures. `test.npz`: the first {tests:,} of its 10,000 test pictures. `calibration.npz`:
  {calibrations} of the training pictures.
- **Licence**: data MIT, copyright 2017 Zalando SE; the model is the project's own, Apache-2.0.
- **Built by** `python tools/build_vision_cnn.py`, seed {seed}, torch {torch}, opset 17.
"""


def convolve(
    inner: int, outer: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution and BatchNormalization; `stride` divides the sides."""
    convolution = nn.Conv2d(
        inner, outer, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(outer)]


class Residual(nn.Module):
    """A grouped 3 x 3 and a 1 x 1 convolution, added to their input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolve(channels, channels, 3, groups=groups),
            nn.ReLU(),
            *convolve(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape, `[batch, channels, height, width]`."""
        return nn.functional.relu(x + self.body(x))


class Fork(nn.Module):
    """Two views at half the size, side by side: a plain one and a depthwise separable one."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.plain = nn.Sequential(*convolve(inner, outer // 2, 1, stride=2), nn.ReLU())
        self.separable = nn.Sequential(
            *convolve(inner, inner, 3, stride=2, groups=inner),
            nn.ReLU(),
            *convolve(inner, outer // 2, 1),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[batch, outer, height / 2, width / 2]`."""
        return torch.cat([self.plain(x), self.separable(x)], dim=1)


def network(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Build the untrained network: channels at the start, of its three parts, and at the end."""
    first, second, third, fourth, last = widths
    return nn.Sequential(
        *convolve(1, first, 3),
        nn.ReLU(),
        *convolve(first, first, 3, stride=2, groups=first),
        nn.ReLU(),
        *convolve(first, second, 1),
        nn.ReLU(),
        Residual(second, groups=8),
        Fork(second, third),
        Residual(third, groups=4),
        *convolve(third, fourth, 3, stride=2),
        nn.ReLU(),
        *convolve(fourth, last, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, CLASSES),
    )


def read_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the pictures, float32 `[rows, 1, 28, 28]`, and their classes, int64 `[rows]`.

    Raises:
        SystemExit: The data is not installed.
    """
    if not DATA.is_dir():
        raise SystemExit("missing data: apt-get install dataset-fashion-mnist")
    # The IDX format: a header of 16 bytes for pictures, 8 for classes, then one byte each.
    with gzip.open(DATA / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)
    with gzip.open(DATA / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    images = pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return images, labels.astype(np.int64)


def fit(images: np.ndarray, labels: np.ndarray, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Train on one thread, which makes the sums come in the same order each time."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    model = network(widths)
    inputs, target = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(target) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(target))
        for start in range(0, len(target) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            mirrored = torch.rand(BATCH, 1, 1, 1) < 0.5
            pictures = torch.where(mirrored, inputs[batch].flip(3), inputs[batch])
            loss = nn.functional.cross_entropy(model(pictures), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"loss {loss.item():.4f}", flush=True)
    return model.eval()


def main() -> None:
    """Train, export, check and write the folder."""
    folder = output_folder("vision_cnn", __doc__)
    images, labels = read_split("train")
    test_images, test_labels = read_split("t10k")
    model = fit(images, labels)

    with torch.no_grad():
        scores = np.concatenate(
            [model(part).numpy() for part in torch.from_numpy(test_images).split(500)]
        )
    path = folder / "model.onnx"
    export_torch(model, {"image": images[:2]}, "scores", path)
    verify(path, {"image": test_images}, scores)

    tests = 2000
    truth = test_labels[:tests]
    chosen = np.random.default_rng(SEED).choice(len(images), 256, replace=False)
    write_data(folder, {"image": images[np.sort(chosen)]}, {"image": test_images[:tests]}, truth)
    text = README.format(
        parameters=sum(p.numel() for p in model.parameters()),
        metric=top_hits(scores[:tests], truth, 1),
        full=top_hits(scores, test_labels, 1),
        naive=np.bincount(truth).max() / tests,
        tests=tests,
        calibrations=len(chosen),
        seed=SEED,
        torch=torch.__version__.split("+")[0],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
