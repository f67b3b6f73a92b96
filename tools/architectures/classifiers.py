"""Convolutional classifiers: residual, dense, depthwise, shuffled, squeezed, grouped."""

# mypy: disable-error-code="misc,no-untyped-call,var-annotated"

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(
    i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: nn.Module | None = None
) -> nn.Module:
    """Convolution, batch normalisation, activation (ReLU unless another, or Identity)."""
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, act if act is not None else nn.ReLU())


def linear() -> nn.Module:
    """No activation."""
    return nn.Identity()


class Residual(nn.Module):
    """x + f(x), with a projection where shapes differ."""

    def __init__(
        self, body: nn.Module, skip: nn.Module | None = None, act: nn.Module | None = None
    ):
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
            nn.BatchNorm2d(i),
            nn.ReLU(),
            conv(i, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, 1, 1),
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
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1),
                nn.AvgPool2d(2),
            ]
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


def _gate(squeezed: int, channels: int) -> nn.Module:
    return Excite(channels, squeezed, nn.Sigmoid())


def efficientnet() -> nn.Module:
    """EfficientNet B0."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.SiLU())]
    width = 32
    for t, c, n, s, k in ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
                          (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)):  # fmt: skip
        for block in range(n):
            gate = partial(_gate, max(width // 4, 1))
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
        self.s, self.a, self.b = (
            nn.Conv2d(i, s, 1),
            nn.Conv2d(s, e, 1),
            nn.Conv2d(s, e, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        x = F.relu(self.s(x))
        return torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), Fire(64, 16, 64), Fire(128, 16, 64),
        nn.MaxPool2d(3, 2), Fire(128, 32, 128), Fire(256, 32, 128), Fire(256, 48, 192),
        Fire(384, 64, 256), nn.Conv2d(512, 100, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
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

    return nn.Sequential(
        conv(3, 64, 7, 2), module(64, 64, 128, 32), module(256, 96, 192, 48), Head(384)
    )


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
