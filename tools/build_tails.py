#!/usr/bin/env python3
"""Train a detector and a voice, models whose outputs are what a tail picks, ranks or expands.

    python tools/build_tails.py FOLDER

- `nms.onnx`, `topk.onnx`: one detector of discs, squares and triangles on pictures of 64 x 64, with
  NonMaxSuppression behind it (any number of boxes) and with TopK (ten, ranked). `pictures.cal.npz`,
  `pictures.test.npz`: pictures; `truth.npz`: the boxes of the latter, and how many of each.
- `voice.onnx`: text -> noisy durations -> Ceil -> frames -> noise -> waveform, as VITS has it (Kim
  et al. 2021). `texts.cal/`, `texts.test/`: texts of several lengths.

Needs `pip install torch onnxscript`; takes some four minutes on one core.
"""

# mypy: allow-subclassing-any, allow-untyped-calls, allow-untyped-decorators
# (torch is unknown to mypy where it is not installed, and partly untyped where it is)

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

SEED = 2026
SIDE, CELLS, SHAPES = 64, 8, 3  # pixels of a picture; cells along its side; kinds of things
CELL = SIDE // CELLS
PICTURES = {"cal": 160, "test": 200}
TEXTS = {"cal": 64, "test": 64}
SYMBOLS, HOP = 20, 32  # of the voice's alphabet; samples of a frame
_OPSET = 17
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE]


class Picture(NamedTuple):
    """A picture of shape ``[3, side, side]``, its boxes ``[n, 4]`` (corners) and their kinds."""

    pixels: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray


def picture(rng: np.random.Generator) -> Picture:
    """One to four things that do not lie on each other, before noise."""
    pixels = rng.random((3, 1, 1)) * 0.4 + rng.normal(0, 0.06, (3, SIDE, SIDE))
    centres: list[np.ndarray] = []
    boxes, kinds = [], []
    for _ in range(rng.integers(1, 5)):
        width = rng.integers(10, 24)
        x, y = centre = rng.integers(width // 2 + 1, SIDE - 1 - width // 2, 2)
        kind, color = rng.integers(SHAPES), rng.random((3, 1)) * 0.6 + 0.4
        if any(np.all(np.abs(centre - other) < 18) for other in centres):
            continue
        half, right, down = width / 2, np.abs(_COLUMNS - x), _ROWS - y
        inside = (
            right**2 + down**2 <= half**2,
            np.maximum(right, np.abs(down)) <= half,
            (np.abs(down) <= half) & (right <= (down + half) / 2),
        )[kind]
        pixels[:, inside] = color + rng.normal(0, 0.05, (3, inside.sum()))
        centres.append(centre)
        boxes.append((x - half, y - half, x + half, y + half))
        kinds.append(kind)
    return Picture(
        pixels.astype(np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kinds, np.int64),
    )


class Detector(nn.Module):
    """Of each cell: where a centre lies, how large its box is, whether it is one, of which kind."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width]
        strides = [2, 1, 2, 1, 2, 1, 1]
        self.features = nn.Sequential(
            *itertools.chain.from_iterable(
                (
                    nn.Conv2d(few, many, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(many),
                    nn.SiLU(),
                )
                for (few, many), stride in zip(itertools.pairwise(widths), strides, strict=True)
            )
        )
        self.head = nn.Conv2d(widths[-1], 5 + SHAPES, 1)
        places = (torch.arange(CELLS) + 0.5) * CELL
        self.register_buffer("across", places.repeat(CELLS)[None])
        self.register_buffer("down", places.repeat_interleave(CELLS)[None])

    def raw(self, pixels: torch.Tensor) -> Any:
        """``[batch, 5 + kinds, cells]``."""
        return self.head(self.features(pixels)).flatten(2)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes ``[batch, cells, 4]`` and scores ``[batch, kinds, cells]``."""
        raw = self.raw(pixels)
        x, y = self.across + raw[:, 0] * CELL, self.down + raw[:, 1] * CELL
        width, height = raw[:, 2].exp() * 8, raw[:, 3].exp() * 8
        boxes = torch.stack([x - width, y - height, x + width, y + height], -1)
        return boxes, raw[:, 4:5].sigmoid() * raw[:, 5:].softmax(1)


def wanted(batch: Sequence[Picture]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``raw`` should say: of boxes ``[batch, 4, cells]``, whether there is one, its kind."""
    cells = CELLS * CELLS
    places = torch.zeros(len(batch), 4, cells)
    there = torch.zeros(len(batch), cells)
    kinds = torch.zeros(len(batch), cells, dtype=torch.long)
    for number, shown in enumerate(batch):
        for box, kind in zip(shown.boxes, shown.kinds, strict=True):
            centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            column, row = np.minimum(centre // CELL, CELLS - 1).astype(int)
            cell = row * CELLS + column
            offset = (centre - (np.array([column, row]) + 0.5) * CELL) / CELL
            places[number, :, cell] = torch.tensor([*offset, *np.log(size / 16)])
            there[number, cell], kinds[number, cell] = 1, int(kind)
    return places, there, kinds


def train_detector(steps: int = 700) -> Detector:
    """Train on 1,500 pictures."""
    model, rng = Detector(), np.random.default_rng(SEED)
    pictures = [picture(rng) for _ in range(1500)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    for _ in range(steps):
        batch = [pictures[number] for number in rng.integers(0, len(pictures), 32)]
        places, there, kinds = wanted(batch)
        raw = model.raw(torch.tensor(np.stack([each.pixels for each in batch])))
        seen = there > 0
        loss = (
            10 * functional.binary_cross_entropy_with_logits(raw[:, 4], there)
            + 5
            * functional.smooth_l1_loss(
                raw[:, :4].transpose(1, 2)[seen], places.transpose(1, 2)[seen]
            )
            + functional.cross_entropy(raw[:, 5:].transpose(1, 2)[seen], kinds[seen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def export(model: nn.Module, example: torch.Tensor, path: Path, **names: Any) -> None:
    """Write a module as ONNX."""
    torch.onnx.export(model, (example,), str(path), opset_version=_OPSET, dynamo=False, **names)


def with_tail(raw: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The detector with NonMaxSuppression or TopK behind it."""
    model = onnx.ModelProto()
    model.CopyFrom(raw)
    graph = model.graph
    del graph.output[:]

    def give(name: str, value: object, dtype: type) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))

    node = helper.make_node
    if kind == "nms":
        shape: list[str | int] = ["n"]
        for name, value in (("most", [20]), ("kind at", 1), ("box at", 2), ("first", [0])):
            give(name, value, np.int64)
        give("overlap", [0.45], np.float32)
        give("least", [0.4], np.float32)
        picks = ["boxes", "scores", "most", "overlap", "least"]
        graph.node.extend([
            node("NonMaxSuppression", picks, ["picked"]),
            node("Gather", ["picked", "box at"], ["number"], axis=1),
            node("Gather", ["picked", "kind at"], ["labels"], axis=1),
            node("Squeeze", ["boxes", "first"], ["all boxes"]),
            node("Gather", ["all boxes", "number"], ["detected"], axis=0),
            node("GatherND", ["scores", "picked"], ["certainty"]),
        ])  # fmt: skip
    else:
        shape = ["batch", 10]
        give("count", shape[1:], np.int64)
        give("last", [-1], np.int64)
        graph.node.extend([
            node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=0),
            node("ArgMax", ["scores"], ["kinds"], axis=1, keepdims=0),
            node("TopK", ["best", "count"], ["certainty", "at"], axis=1),
            node("Unsqueeze", ["at", "last"], ["at column"]),
            node("GatherND", ["boxes", "at column"], ["detected"], batch_dims=1),
            node("GatherElements", ["kinds", "at"], ["labels"], axis=1),
        ])  # fmt: skip
    for name, dtype, more in (
        ("detected", TensorProto.FLOAT, [4]),
        ("certainty", TensorProto.FLOAT, []),
        ("labels", TensorProto.INT64, []),
    ):
        graph.output.append(helper.make_tensor_value_info(name, dtype, [*shape, *more]))
    onnx.checker.check_model(model)
    return model


class Decoder(nn.Module):
    """From frames ``[batch, channels, frames]`` to samples, 32 of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, 96, 7, padding=3)
        self.grow = nn.ModuleList([
            nn.ConvTranspose1d(96, 64, 8, 4, 2),
            nn.ConvTranspose1d(64, 32, 8, 4, 2),
            nn.ConvTranspose1d(32, 24, 4, 2, 1),
        ])  # fmt: skip
        self.refine = nn.ModuleList([
            nn.Conv1d(64, 64, 5, padding=2),
            nn.Conv1d(32, 32, 7, padding=3),
            nn.Conv1d(24, 24, 7, padding=6, dilation=2),
        ])  # fmt: skip
        self.last = nn.Conv1d(24, 1, 7, padding=3)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Samples of shape ``[batch, 1, samples]``."""
        values = functional.leaky_relu(self.first(frames), 0.1)
        for grow, refine in zip(self.grow, self.refine, strict=True):
            values = functional.leaky_relu(grow(values), 0.1)
            values = values + functional.leaky_relu(refine(values), 0.1)
        return torch.tanh(self.last(values))


class Voice(nn.Module):
    """Characters to samples, with noise in durations and in frames."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(SYMBOLS, channels)
        self.encoder = nn.Sequential(
            nn.Conv1d(channels, 128, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(128, 128, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(128, channels, 1),
        )
        self.duration = nn.Sequential(
            nn.Conv1d(channels, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 1, 1)
        )
        self.decoder = Decoder(channels)

    def hidden(self, tokens: torch.Tensor) -> Any:
        """``[batch, channels, characters]``."""
        return self.encoder(self.table(tokens).transpose(1, 2))

    def forward(self, tokens: torch.Tensor) -> Any:
        """Samples of shape ``[1, 1, samples]`` of tokens ``[1, characters]``."""
        hidden = self.hidden(tokens)
        logs = self.duration(hidden)
        frames = torch.ceil(torch.exp(logs + 0.03 * torch.randn_like(logs))).squeeze(1)
        ends = torch.cumsum(frames, 1)
        count = ends[:, -1].max().to(torch.int64)
        at = torch.arange(count)[None, :, None].to(frames.dtype)
        path = ((at < ends[:, None, :]) & (at >= (ends - frames)[:, None, :])).to(hidden.dtype)
        spread = torch.matmul(path, hidden.transpose(1, 2)).transpose(1, 2)
        return self.decoder(spread + 0.05 * torch.randn_like(spread))


def spoken(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames of each character, and the samples that the voice should make of it."""
    frames = 2 + tokens * 7 % 5
    steps = np.linspace(0.02, 0.35, SYMBOLS)
    each = np.repeat(tokens, frames * HOP)
    phase = np.cumsum(steps[each] * 2 * np.pi)
    breath = 0.05 * rng.normal(0, 1, len(each)) * (each % 3 == 0)
    return frames, (0.5 * np.sin(phase) + 0.2 * np.sin(2 * phase) + breath).astype(np.float32)


def spectrum(samples: torch.Tensor) -> torch.Tensor:
    """Magnitudes of shape ``[batch, 65, windows]``."""
    window = torch.hann_window(128)
    return torch.stft(samples, 128, HOP, window=window, return_complex=True).abs()


def train_voice(steps: int = 600) -> Voice:
    """Train on texts made on the way."""
    model, rng = Voice(), np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(steps):
        loss = torch.zeros(())
        for _ in range(4):
            tokens = rng.integers(0, SYMBOLS, 8)
            frames, samples = spoken(tokens, rng)
            hidden = model.hidden(torch.tensor(tokens)[None])
            logs = model.duration(hidden)[:, 0]
            spread = hidden[:, :, torch.tensor(np.repeat(np.arange(len(tokens)), frames))]
            made = spectrum(model.decoder(spread + 0.05 * torch.randn_like(spread))[:, 0])
            true = spectrum(torch.tensor(samples)[None])
            loss = loss + (torch.log(made + 0.05) - torch.log(true + 0.05)).abs().mean()
            loss = loss + 0.2 * (made - true).abs().mean()
            logs_wanted = torch.tensor(np.log(frames - 0.5), dtype=torch.float32)
            loss = loss + (logs - logs_wanted).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return model


def main() -> None:
    """Train both, write them and their inputs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED + 1)
    for part, count in PICTURES.items():
        shown = [picture(rng) for _ in range(count)]
        np.savez(folder / f"pictures.{part}.npz", image=np.stack([[p.pixels] for p in shown]))
        if part == "test":
            counts = [len(p.kinds) for p in shown]
            boxes, kinds = (
                np.concatenate(parts) for parts in zip(*(p[1:] for p in shown), strict=True)
            )
            np.savez(folder / "truth.npz", boxes=boxes, kinds=kinds, counts=counts)
    raw = folder / "raw.onnx"
    export(
        train_detector(),
        torch.zeros(1, 3, SIDE, SIDE),
        raw,
        input_names=["image"],
        output_names=["boxes", "scores"],
    )
    for kind in ("nms", "topk"):
        onnx.save(with_tail(onnx.load(raw), kind), folder / f"{kind}.onnx")
    raw.unlink()
    for part, count in TEXTS.items():
        (folder / f"texts.{part}").mkdir(exist_ok=True)
        for number in range(count):
            tokens = rng.integers(0, SYMBOLS, (1, rng.integers(8, 24)))
            np.savez(folder / f"texts.{part}" / f"{number:03d}.npz", tokens=tokens)
    export(
        train_voice(),
        torch.zeros(1, 9, dtype=torch.long),
        folder / "voice.onnx",
        input_names=["tokens"],
        output_names=["audio"],
        dynamic_axes={"tokens": {1: "characters"}, "audio": {2: "samples"}},
    )


if __name__ == "__main__":
    main()
