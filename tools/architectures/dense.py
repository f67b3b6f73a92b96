"""Convolutional models for images, boxes and text lines: U-Net, YOLO, CRNN and others."""

# mypy: disable-error-code="misc,no-untyped-call,var-annotated"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.classifiers import Head, Residual, conv, linear


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
        self.u = nn.ModuleList(
            [nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)]
        )
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
        self.s1 = nn.Sequential(
            conv(3, 16, 3, 2, act=a()), conv(16, 32, 3, 2, act=a()), C2f(32, 32)
        )
        self.s2 = nn.Sequential(conv(32, 64, 3, 2, act=a()), C2f(64, 64, 2))
        self.s3 = nn.Sequential(conv(64, 128, 3, 2, act=a()), C2f(128, 128), SPPF(128))
        self.up, self.down = C2f(192, 64), conv(64, 64, 3, 2, act=a())
        self.last = C2f(192, 128)
        self.box = nn.ModuleList(
            nn.Sequential(conv(c, 64, act=a()), nn.Conv2d(64, 4 * bins, 1)) for c in (64, 128)
        )
        self.cls = nn.ModuleList(
            nn.Sequential(conv(c, 64, act=a()), nn.Conv2d(64, classes, 1)) for c in (64, 128)
        )
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
        self.pool, self.join, self.out = (
            nn.Conv2d(128, 48, 1),
            conv(192, 64, 1),
            nn.Conv2d(64, 5, 1),
        )

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
    for inner, c, s in (
        (48, 24, 2),
        (72, 24, 1),
        (72, 40, 2),
        (120, 40, 1),
        (240, 80, 2),
        (200, 80, 1),
    ):
        mid = [conv(inner, inner, 3, s, inner, linear())] if s > 1 else []
        body = nn.Sequential(Ghost(width, inner), *mid, Ghost(inner, c, False))
        skip = conv(width, c, 1, s, act=linear()) if s > 1 or width != c else None
        layers.append(Residual(body, skip))
        width = c
    return nn.Sequential(*layers, conv(80, 480, 1), Head(480))
