"""Export small architectures with random weights, written in plain torch, for the channel tests.

Run it where torch is installed: ``python tools/export_architectures.py FOLDER``. Files that exist
are kept. Every family of blocks that channel removal meets in the wild is here; widths are those
of the papers' smallest models, or smaller.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Tensor, ...]]
IMAGE = (1, 3, 64, 64)


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: nn.Module | None = None) -> nn.Module:
    """Convolution, batch normalisation, activation (ReLU unless another, or Identity)."""
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, act if act is not None else nn.ReLU())


def linear() -> nn.Module:
    """No activation."""
    return nn.Identity()


class Residual(nn.Module):
    """x + f(x), with a projection where shapes differ."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, act: nn.Module | None = None):
        super().__init__()
        self.body, self.skip, self.act = body, skip or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.act(self.skip(x) + self.body(x))


class Head(nn.Module):
    """Global pooling and a classifier."""

    def __init__(self, i: int, classes: int = 100):
        super().__init__()
        self.fc = nn.Linear(i, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(bottleneck: bool, counts: tuple[int, ...], groups: int = 1, base: int = 64) -> nn.Module:
    """ResNet, ResNeXt."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate(counts):
        inner, out = base * 2**stage, (256 if bottleneck else 64) * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                body = nn.Sequential(
                    conv(width, inner, 1), conv(inner, inner, 3, stride, groups),
                    conv(inner, out, 1, act=linear()),
                )  # fmt: skip
            else:
                body = nn.Sequential(conv(width, out, 3, stride), conv(out, out, 3, act=linear()))
            skip = conv(width, out, 1, stride, act=linear()) if stride > 1 or width != out else None
            layers.append(Residual(body, skip, nn.ReLU()))
            width = out
    return nn.Sequential(*layers, Head(width))


class Dense(nn.Module):
    """A layer of DenseNet: appends its channels to its input's."""

    def __init__(self, i: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(i), nn.ReLU(), conv(i, 4 * growth, 1), nn.Conv2d(4 * growth, growth, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return torch.cat([x, self.body(x)], 1)


def densenet(counts: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32) -> nn.Module:
    """DenseNet-121."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate(counts):
        if stage:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(Dense(width, growth))
            width += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), Head(width))


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, c: int, r: int, gate: nn.Module):
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(c, r, 1), nn.Conv2d(r, c, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return x * self.gate(self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1)))))


def inverted(
    i: int, o: int, t: float, s: int, k: int = 3, act: Callable[[], nn.Module] = nn.ReLU6,
    se: Callable[[int], nn.Module] | None = None,
) -> nn.Module:  # fmt: skip
    """MobileNet's inverted residual."""
    inner = int(i * t)
    layers: list[nn.Module] = [conv(i, inner, 1, act=act())] if t != 1 else []
    layers.append(conv(inner, inner, k, s, inner, act()))
    if se:
        layers.append(se(inner))
    body = nn.Sequential(*layers, conv(inner, o, 1, act=linear()))
    return Residual(body) if s == 1 and i == o else body


def mobilenet_v2() -> nn.Module:
    """MobileNet v2."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6())]
    width = 32
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                       (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for block in range(n):
            layers.append(inverted(width, c, t, s if not block else 1))
            width = c
    return nn.Sequential(*layers, conv(320, 1280, 1, act=nn.ReLU6()), Head(1280, 1000))


def mobilenet_v3() -> nn.Module:
    """MobileNet v3 small."""
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.Hardswish())]
    width = 16
    for k, t, c, se, hs, s in (
        (3, 1, 16, 1, 0, 2), (3, 4.5, 24, 0, 0, 2), (3, 3.67, 24, 0, 0, 1), (5, 4, 40, 1, 1, 2),
        (5, 6, 40, 1, 1, 1), (5, 3, 48, 1, 1, 1), (5, 6, 96, 1, 1, 2), (5, 6, 96, 1, 1, 1),
    ):  # fmt: skip
        gate = (lambda c: Excite(c, max(c // 4, 8), nn.Hardsigmoid())) if se else None
        layers.append(inverted(width, c, t, s, k, nn.Hardswish if hs else nn.ReLU, gate))
        width = c
    return nn.Sequential(*layers, conv(96, 576, 1, act=nn.Hardswish()), Head(576))


def efficientnet() -> nn.Module:
    """EfficientNet B0."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.SiLU())]
    width = 32
    for t, c, n, s, k in ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
                          (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)):  # fmt: skip
        for block in range(n):
            gate = lambda m, r=max(width // 4, 1): Excite(m, r, nn.Sigmoid())  # noqa: E731
            layers.append(inverted(width, c, t, s if not block else 1, k, nn.SiLU, gate))
            width = c
    return nn.Sequential(*layers, conv(320, 1280, 1, act=nn.SiLU()), Head(1280, 1000))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's permutation of channels."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Shuffle2(nn.Module):
    """A unit of ShuffleNet v2."""

    def __init__(self, i: int, o: int, s: int):
        super().__init__()
        half = o // 2
        self.s = s
        start = i if s > 1 else half
        self.right = nn.Sequential(
            conv(start, half, 1), conv(half, half, 3, s, half, linear()), conv(half, half, 1)
        )
        if s > 1:
            self.left = nn.Sequential(conv(i, i, 3, s, i, linear()), conv(i, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        if self.s > 1:
            return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)
        a, b = x.chunk(2, 1)
        return shuffle(torch.cat([a, self.right(b)], 1), 2)


def shufflenet_v2() -> nn.Module:
    """ShuffleNet v2 x1."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    width = 24
    for c, n in ((116, 4), (232, 8), (464, 4)):
        for block in range(n):
            layers.append(Shuffle2(width, c, 1 if block else 2))
            width = c
    return nn.Sequential(*layers, conv(464, 1024, 1), Head(1024, 1000))


class Shuffle1(nn.Module):
    """A unit of ShuffleNet v1: grouped 1x1 convolutions."""

    def __init__(self, i: int, o: int, s: int, g: int = 4):
        super().__init__()
        self.g, self.s, mid = g, s, o // 4
        self.a = conv(i, mid, 1, g=g if i > 24 else 1)
        self.b = conv(mid, mid, 3, s, mid, linear())
        self.c = conv(mid, o - i if s > 1 else o, 1, g=g, act=linear())

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = self.c(self.b(shuffle(self.a(x), self.g)))
        if self.s > 1:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


def shufflenet_v1() -> nn.Module:
    """ShuffleNet v1, four groups."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    width = 24
    for c, n in ((272, 4), (544, 4)):
        for block in range(n):
            layers.append(Shuffle1(width, c, 1 if block else 2))
            width = c
    return nn.Sequential(*layers, Head(544))


class Fire(nn.Module):
    """A unit of SqueezeNet."""

    def __init__(self, i: int, s: int, e: int):
        super().__init__()
        self.s, self.a, self.b = nn.Conv2d(i, s, 1), nn.Conv2d(s, e, 1), nn.Conv2d(s, e, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = F.relu(self.s(x))
        return torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), Fire(64, 16, 64), Fire(128, 16, 64),
        nn.MaxPool2d(3, 2), Fire(128, 32, 128), Fire(256, 32, 128), Fire(256, 48, 192),
        Fire(384, 64, 256), nn.Conv2d(512, 100, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Branches(nn.Module):
    """Inception: branches side by side."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    """Two modules of GoogLeNet behind a stem."""

    def module(i: int, a: int, b: int, c: int) -> nn.Module:
        return Branches(
            conv(i, a, 1), nn.Sequential(conv(i, b // 2, 1), conv(b // 2, b)),
            nn.Sequential(conv(i, c // 2, 1), conv(c // 2, c, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(i, c, 1)),
        )  # fmt: skip

    return nn.Sequential(conv(3, 64, 7, 2), module(64, 64, 128, 32), module(256, 96, 192, 48), Head(384))


def regnet() -> nn.Module:
    """RegNet-like: grouped bottlenecks with excitation."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    width = 32
    for c, n in ((48, 1), (120, 2), (336, 3)):
        for block in range(n):
            s = 1 if block else 2
            body = nn.Sequential(
                conv(width, c, 1), conv(c, c, 3, s, c // 24), Excite(c, width // 4, nn.Sigmoid()),
                conv(c, c, 1, act=linear()),
            )  # fmt: skip
            skip = None if block else conv(width, c, 1, s, act=linear())
            layers.append(Residual(body, skip, nn.ReLU()))
            width = c
    return nn.Sequential(*layers, Head(width))


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over channels in front of the others."""

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """A unit of ConvNeXt."""

    def __init__(self, c: int):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.a, self.b = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale = nn.Parameter(torch.rand(c))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = self.b(F.gelu(self.a(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """A small ConvNeXt."""
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4), LayerNorm2d(48), ConvNext(48), ConvNext(48), LayerNorm2d(48),
        nn.Conv2d(48, 96, 2, 2), ConvNext(96), ConvNext(96), LayerNorm2d(96), Head(96),
    )  # fmt: skip


class UNet(nn.Module):
    """U-Net with transposed convolutions and skips."""

    def __init__(self, w: int = 32):
        super().__init__()
        two = lambda i, o: nn.Sequential(conv(i, o), conv(o, o))  # noqa: E731
        self.d = nn.ModuleList([two(3, w), two(w, 2 * w), two(2 * w, 4 * w)])
        self.u = nn.ModuleList([nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)])
        self.c = nn.ModuleList([two(4 * w, 2 * w), two(2 * w, w)])
        self.out = nn.Conv2d(w, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        a = self.d[0](x)
        b = self.d[1](F.max_pool2d(a, 2))
        x = self.d[2](F.max_pool2d(b, 2))
        x = self.c[0](torch.cat([b, self.u[0](x)], 1))
        return self.out(self.c[1](torch.cat([a, self.u[1](x)], 1)))


class C2f(nn.Module):
    """YOLO's block that splits its channels and joins all steps."""

    def __init__(self, i: int, o: int, n: int = 1):
        super().__init__()
        h = o // 2
        self.a, self.b = conv(i, o, 1, act=nn.SiLU()), conv((2 + n) * h, o, 1, act=nn.SiLU())
        body = lambda: nn.Sequential(conv(h, h, act=nn.SiLU()), conv(h, h, act=nn.SiLU()))  # noqa: E731
        self.m = nn.ModuleList(Residual(body()) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = list(self.a(x).chunk(2, 1))
        for m in self.m:
            y.append(m(y[-1]))
        return self.b(torch.cat(y, 1))


class SPPF(nn.Module):
    """Pooling at several sizes."""

    def __init__(self, c: int):
        super().__init__()
        self.a, self.b = conv(c, c // 2, 1, act=nn.SiLU()), conv(2 * c, c, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = [self.a(x)]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], 5, 1, 2))
        return self.b(torch.cat(y, 1))


class Yolo(nn.Module):
    """YOLOv8-like: C2f, SPPF, a PAN neck, heads with distribution focal loss."""

    def __init__(self, classes: int = 20, bins: int = 16):
        super().__init__()
        a = nn.SiLU
        self.s1 = nn.Sequential(conv(3, 16, 3, 2, act=a()), conv(16, 32, 3, 2, act=a()), C2f(32, 32))
        self.s2 = nn.Sequential(conv(32, 64, 3, 2, act=a()), C2f(64, 64, 2))
        self.s3 = nn.Sequential(conv(64, 128, 3, 2, act=a()), C2f(128, 128), SPPF(128))
        self.up, self.down = C2f(192, 64), conv(64, 64, 3, 2, act=a())
        self.last = C2f(192, 128)
        self.box = nn.ModuleList(nn.Sequential(conv(c, 64, act=a()), nn.Conv2d(64, 4 * bins, 1)) for c in (64, 128))
        self.cls = nn.ModuleList(nn.Sequential(conv(c, 64, act=a()), nn.Conv2d(64, classes, 1)) for c in (64, 128))
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        b = self.s2(self.s1(x))
        c = self.s3(b)
        b = self.up(torch.cat([F.interpolate(c, scale_factor=2.0, mode="nearest"), b], 1))
        c = self.last(torch.cat([self.down(b), c], 1))
        box = torch.cat([m(v).flatten(2) for m, v in zip(self.box, (b, c), strict=True)], 2)
        cls = torch.cat([m(v).flatten(2) for m, v in zip(self.cls, (b, c), strict=True)], 2)
        n, _, p = box.shape
        box = self.dfl(box.view(n, 4, self.bins, p).transpose(2, 1).softmax(1)).view(n, 4, p)
        return torch.cat([box, cls.sigmoid()], 1)


class Crnn(nn.Module):
    """Convolutions, a bidirectional LSTM and a GRU over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2), conv(64, 128),
            nn.MaxPool2d((2, 1)), conv(128, 128), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.lstm = nn.LSTM(128, 96, bidirectional=True)
        self.gru = nn.GRU(192, 64)
        self.out = nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = self.body(x).squeeze(2).permute(2, 0, 1)
        return self.out(self.gru(self.lstm(x)[0])[0])


def espcn() -> nn.Module:
    """Super-resolution by pixel shuffle, twice."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 64, 3, padding=1), nn.Tanh(),
        nn.Conv2d(64, 128, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(32, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )  # fmt: skip


class DeepLab(nn.Module):
    """Dilated convolutions at several rates, and a pooled branch that is resized back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64, 3, 2), conv(64, 128, 3, 2))
        self.rates = nn.ModuleList(nn.Conv2d(128, 48, 3, padding=r, dilation=r) for r in (1, 2, 4))
        self.pool, self.join, self.out = nn.Conv2d(128, 48, 1), conv(192, 64, 1), nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = self.stem(x)
        pooled = F.relu(self.pool(F.adaptive_avg_pool2d(y, 1)))
        wide = F.interpolate(pooled, size=y.shape[2:], mode="bilinear")
        y = torch.cat([F.relu(m(y)) for m in self.rates] + [wide], 1)
        return F.interpolate(self.out(self.join(y)), size=x.shape[2:], mode="bilinear")


class Ghost(nn.Module):
    """GhostNet: half of the channels are cheap functions of the others."""

    def __init__(self, i: int, o: int, relu: bool = True):
        super().__init__()
        act = nn.ReLU() if relu else nn.Identity()
        self.a, self.b = conv(i, o // 2, 1, act=act), conv(o // 2, o // 2, 3, 1, o // 2, act)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        y = self.a(x)
        return torch.cat([y, self.b(y)], 1)


def ghostnet() -> nn.Module:
    """A small GhostNet."""
    layers: list[nn.Module] = [conv(3, 16, 3, 2)]
    width = 16
    for inner, c, s in ((48, 24, 2), (72, 24, 1), (72, 40, 2), (120, 40, 1), (240, 80, 2), (200, 80, 1)):
        mid = [conv(inner, inner, 3, s, inner, linear())] if s > 1 else []
        body = nn.Sequential(Ghost(width, inner), *mid, Ghost(inner, c, False))
        skip = conv(width, c, 1, s, act=linear()) if s > 1 or width != c else None
        layers.append(Residual(body, skip))
        width = c
    return nn.Sequential(*layers, conv(80, 480, 1), Head(480))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, c: int):
        super().__init__()
        self.g = nn.Parameter(torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.g * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Attention in the forms that models write it: fused QKV, GQA, RoPE, masks, cross."""

    def __init__(self, c: int, heads: int, kv: int = 0, fused: bool = False, rope: bool = False,
                 causal: bool = False, bias: bool = True):  # fmt: skip
        super().__init__()
        self.h, self.kv, self.d, self.fused = heads, kv or heads, c // heads, fused
        self.rope, self.causal = rope, causal
        if fused:
            self.qkv = nn.Linear(c, 3 * c, bias)
        else:
            self.q = nn.Linear(c, c, bias)
            self.k, self.v = (nn.Linear(c, self.kv * self.d, bias) for _ in range(2))
        self.o = nn.Linear(c, c, bias)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Run it."""
        b, s, c = x.shape
        m = x if memory is None else memory
        split = lambda t, h: t.view(b, -1, h, self.d).transpose(1, 2)  # noqa: E731
        if self.fused:
            q, k, v = (split(t, self.h) for t in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = split(self.q(x), self.h), split(self.k(m), self.kv), split(self.v(m), self.kv)
        if self.rope:
            q, k = rotate(q), rotate(k)
        if self.kv != self.h:
            k, v = (t.repeat_interleave(self.h // self.kv, 1) for t in (k, v))
        w = q @ k.transpose(-1, -2) / math.sqrt(self.d)
        if self.causal:
            w = w + torch.full((s, s), -1e4).triu(1)
        return self.o((w.softmax(-1) @ v).transpose(1, 2).reshape(b, s, c))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions, in the rotate-half form."""
    s, d = x.shape[-2], x.shape[-1]
    angle = torch.arange(s)[:, None] / 100 ** (torch.arange(0, d, 2) / d)[None]
    angle = torch.cat([angle, angle], -1)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


class Block(nn.Module):
    """A transformer layer, with the norm before or after."""

    def __init__(self, c: int, heads: int, norm: Callable[[int], nn.Module] = nn.LayerNorm,
                 post: bool = False, glu: bool = False, cross: bool = False, **attention: Any):  # fmt: skip
        super().__init__()
        self.a, self.n1, self.n2, self.post = Attention(c, heads, **attention), norm(c), norm(c), post
        self.up, self.down = nn.Linear(c, 4 * c, not glu), nn.Linear(4 * c, c, not glu)
        self.gate = nn.Linear(c, 4 * c, False) if glu else None
        self.cross, self.n3 = (Attention(c, heads), norm(c)) if cross else (None, None)

    def ffn(self, x: Tensor) -> Tensor:
        """The two linear layers."""
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Run it."""
        if self.post:
            x = self.n1(x + self.a(x))
            return self.n2(x + self.ffn(x))
        x = x + self.a(self.n1(x))
        if self.cross is not None and self.n3 is not None:
            x = x + self.cross(self.n3(x), memory)
        return x + self.ffn(self.n2(x))


class Text(nn.Module):
    """A language model: embeddings, layers, a head that may be tied."""

    def __init__(self, c: int, heads: int, n: int, norm: Callable[[int], nn.Module] = nn.LayerNorm,
                 positions: bool = True, tied: bool = True, post: bool = False, **block: Any):  # fmt: skip
        super().__init__()
        self.e, self.p = nn.Embedding(1000, c), nn.Embedding(128, c) if positions else None
        self.first = norm(c) if post else nn.Identity()
        self.b = nn.ModuleList(Block(c, heads, norm, post=post, **block) for _ in range(n))
        self.n = nn.Identity() if post else norm(c)
        self.out = nn.Linear(c, 1000, False)
        if tied:
            self.out.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Run it."""
        x = self.e(ids)
        if self.p is not None:
            x = x + self.p(torch.arange(ids.shape[1]))
        x = self.first(x)
        for b in self.b:
            x = b(x)
        return self.out(self.n(x))


class Vit(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, c: int = 192, heads: int = 3, n: int = 4):
        super().__init__()
        self.e, self.t = nn.Conv2d(3, c, 16, 16), nn.Parameter(torch.rand(1, 1, c))
        self.p = nn.Parameter(torch.rand(1, 17, c))
        self.b = nn.Sequential(*(Block(c, heads, fused=True) for _ in range(n)))
        self.n, self.out = nn.LayerNorm(c), nn.Linear(c, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = self.e(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.t.expand(x.shape[0], -1, -1), x], 1) + self.p
        return self.out(self.n(self.b(x))[:, 0])


class Window(nn.Module):
    """A unit of Swin: attention in shifted windows with a table of relative positions."""

    def __init__(self, c: int, heads: int, size: int = 4, shift: int = 0):
        super().__init__()
        self.h, self.d, self.w, self.shift = heads, c // heads, size, shift
        self.n1, self.n2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.o = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.table = nn.Parameter(torch.rand((2 * size - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        delta = (grid[:, :, None] - grid[:, None]) + size - 1
        self.register_buffer("index", delta[0] * (2 * size - 1) + delta[1])

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        b, hh, ww, c = x.shape
        w = self.w
        y = self.n1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(b, hh // w, w, ww // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        q, k, v = self.qkv(y).reshape(-1, w * w, 3, self.h, self.d).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.flatten()].view(w * w, w * w, self.h).permute(2, 0, 1)
        a = (q * self.d**-0.5) @ k.transpose(-1, -2) + bias[None]
        y = self.o((a.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, c))
        y = y.view(b, hh // w, ww // w, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(b, hh, ww, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Swin(nn.Module):
    """A small Swin with patch merging."""

    def __init__(self, c: int = 48):
        super().__init__()
        self.e = nn.Conv2d(3, c, 4, 4)
        self.a = nn.Sequential(Window(c, 3), Window(c, 3, shift=2))
        self.n, self.merge = nn.LayerNorm(4 * c), nn.Linear(4 * c, 2 * c, False)
        self.b = nn.Sequential(Window(2 * c, 6), Window(2 * c, 6, shift=2))
        self.out = nn.Linear(2 * c, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = self.a(self.e(x).permute(0, 2, 3, 1))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.b(self.merge(self.n(torch.cat(parts, -1))))
        return self.out(x.mean((1, 2)))


class MixerBlock(nn.Module):
    """A unit of MLP-Mixer."""

    def __init__(self, tokens: int, c: int):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.t = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.c = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = x + self.t(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.c(self.n2(x))


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self, c: int = 128):
        super().__init__()
        self.e = nn.Conv2d(3, c, 16, 16)
        self.b, self.n, self.out = nn.Sequential(*(MixerBlock(16, c) for _ in range(3))), nn.LayerNorm(c), nn.Linear(c, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.out(self.n(self.b(self.e(x).flatten(2).transpose(1, 2))).mean(1))


class MobileVit(nn.Module):
    """Convolutions, a transformer over unfolded patches, and back."""

    def __init__(self, c: int = 64, d: int = 96):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), inverted(16, 32, 4, 2), inverted(32, c, 4, 2))
        self.a = nn.Sequential(conv(c, c), nn.Conv2d(c, d, 1, bias=False))
        self.t = nn.Sequential(Block(d, 4, fused=True), Block(d, 4, fused=True), nn.LayerNorm(d))
        self.b, self.c, self.out = conv(d, c, 1), conv(2 * c, c), Head(c)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = self.stem(x)
        y = self.a(x)
        n, d, h, w = y.shape
        y = y.reshape(n * d * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(n, d, h * w // 4, 4)
        y = self.t(y.transpose(1, 3).reshape(n * 4, h * w // 4, d))
        y = y.view(n, 4, h * w // 4, d).transpose(1, 3)
        y = y.reshape(n * d * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(n, d, h, w)
        return self.out(self.c(torch.cat([x, self.b(y)], 1)))


class Whisper(nn.Module):
    """An audio encoder and a text decoder with cross attention."""

    def __init__(self, c: int = 128, heads: int = 4):
        super().__init__()
        self.a, self.b = nn.Conv1d(40, c, 3, padding=1), nn.Conv1d(c, c, 3, 2, 1)
        self.enc = nn.Sequential(*(Block(c, heads) for _ in range(2)), nn.LayerNorm(c))
        self.e, self.p = nn.Embedding(500, c), nn.Parameter(torch.rand(64, c))
        self.dec = nn.ModuleList(Block(c, heads, causal=True, cross=True) for _ in range(2))
        self.n = nn.LayerNorm(c)

    def forward(self, mel: Tensor, ids: Tensor) -> Tensor:
        """Run it."""
        m = self.enc(F.gelu(self.b(F.gelu(self.a(mel)))).transpose(1, 2))
        x = self.e(ids) + self.p[: ids.shape[1]]
        for block in self.dec:
            x = block(x, m)
        return self.n(x) @ self.e.weight.T


class GroupNormNet(nn.Module):
    """Group normalisation, FiLM-like scaling and attention over space, as in diffusion models."""

    def __init__(self, c: int = 64):
        super().__init__()
        self.stem, self.t = nn.Conv2d(4, c, 3, padding=1), nn.Linear(32, 2 * c)
        self.n1, self.c1, self.n2 = nn.GroupNorm(8, c), nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(8, c)
        self.c2, self.n3, self.qkv = nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(8, c), nn.Conv1d(c, 3 * c, 1)
        self.o, self.out = nn.Conv1d(c, c, 1), nn.Conv2d(c, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Run it."""
        x = self.stem(x)
        scale, shift = self.t(t)[..., None, None].chunk(2, 1)
        y = self.n2(self.c1(F.silu(self.n1(x)))) * (1 + scale) + shift
        x = x + self.c2(F.silu(y))
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.n3(x).view(n, c, h * w)).chunk(3, 1)
        y = torch.einsum("bct,bcs->bts", q, k).softmax(-1)
        return self.out(x + self.o(torch.einsum("bts,bcs->bct", y, v)).view(n, c, h, w))


def _cases() -> dict[str, Callable[[], Case]]:
    image, ids = torch.randn(IMAGE), torch.randint(0, 1000, (1, 12))
    gray, audio = torch.randn(1, 1, 32, 64), torch.randn(1, 40, 24)
    on = lambda make, *x: lambda: (make(), x)  # noqa: E731
    return {
        "resnet18": on(lambda: resnet(False, (2, 2, 2, 2)), image),
        "resnet50": on(lambda: resnet(True, (3, 4, 6, 3)), image),
        "resnext": on(lambda: resnet(True, (2, 2, 2), 32, 128), image),
        "densenet121": on(densenet, image),
        "mobilenet_v2": on(mobilenet_v2, image),
        "mobilenet_v3": on(mobilenet_v3, image),
        "efficientnet_b0": on(efficientnet, image),
        "shufflenet_v1": on(shufflenet_v1, image),
        "shufflenet_v2": on(shufflenet_v2, image),
        "squeezenet": on(squeezenet, image),
        "inception": on(inception, image),
        "regnet": on(regnet, image),
        "convnext": on(convnext, image),
        "unet": on(UNet, image),
        "yolo": on(Yolo, image),
        "crnn": on(Crnn, gray),
        "espcn": on(espcn, gray),
        "deeplab": on(DeepLab, image),
        "ghostnet": on(ghostnet, image),
        "bert": on(lambda: Text(128, 4, 3, post=True), ids),
        "gpt": on(lambda: Text(128, 4, 3, fused=True, causal=True), ids),
        "llama": on(
            lambda: Text(128, 8, 3, RMSNorm, positions=False, tied=False, glu=True, kv=2, rope=True,
                         causal=True, bias=False), ids),
        "vit": on(Vit, image),
        "swin": on(Swin, image),
        "mixer": on(Mixer, image),
        "mobilevit": on(MobileVit, image),
        "whisper": on(Whisper, audio, ids[:, :6] % 500),
        "diffusion": on(GroupNormNet, torch.randn(1, 4, 8, 8), torch.randn(1, 32)),
    }  # fmt: skip


#: Axes that may vary, by architecture; images keep their size, batches do not.
_FREE: dict[str, tuple[dict[int, str], ...]] = {
    "bert": ({0: "batch", 1: "length"},),
    "gpt": ({0: "batch", 1: "length"},),
    "llama": ({0: "batch", 1: "length"},),
    "whisper": ({0: "batch"}, {0: "batch", 1: "length"}),
    "diffusion": ({0: "batch"}, {0: "batch"}),
    "unet": ({0: "batch", 2: "height", 3: "width"},),
    "deeplab": ({0: "batch", 2: "height", 3: "width"},),
    "yolo": ({0: "batch", 2: "height", 3: "width"},),
    "resnet18": ({0: "batch", 2: "height", 3: "width"},),
    "crnn": ({0: "batch", 3: "width"},),
    "mobilevit": ({},),
}


def _randomise(model: nn.Module) -> None:
    """Norms and biases away from the zeros and ones that they begin with, which hide mistakes."""
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
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
        names = [f"x{index}" for index in range(len(inputs))]
        free = _FREE.get(name, ({0: "batch"},) * len(inputs))
        torch.onnx.export(
            model, inputs, path, input_names=names, output_names=["y"], opset_version=17,
            dynamic_axes=dict(zip(names, free, strict=True)), dynamo=False,
            do_constant_folding=True, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip


if __name__ == "__main__":
    main()
