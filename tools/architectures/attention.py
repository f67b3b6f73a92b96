"""Transformers for text, images and sound."""

# mypy: disable-error-code="misc,no-untyped-call,var-annotated"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.classifiers import Head, conv, inverted


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

    def __init__(
        self, c: int, heads: int, norm: Callable[[int], nn.Module] = nn.LayerNorm,
        post: bool = False, glu: bool = False, cross: bool = False, **attention: Any,
    ):  # fmt: skip
        super().__init__()
        self.a, self.n1, self.n2, self.post = (
            Attention(c, heads, **attention),
            norm(c),
            norm(c),
            post,
        )
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

    def __init__(
        self, c: int, heads: int, n: int, norm: Callable[[int], nn.Module] = nn.LayerNorm,
        positions: bool = True, tied: bool = True, post: bool = False, **block: Any,
    ):  # fmt: skip
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
        grid = torch.stack(
            torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        ).flatten(1)
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
        self.b, self.n, self.out = (
            nn.Sequential(*(MixerBlock(16, c) for _ in range(3))),
            nn.LayerNorm(c),
            nn.Linear(c, 100),
        )

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


class Merged(nn.Module):
    """Attention that merges heads with the batch, as fairseq, BART and OPT do."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        self.h, self.d = heads, c // heads
        self.q, self.k, self.v, self.o = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Run it."""
        b, s, c = x.shape
        split = lambda t: (  # noqa: E731
            t.view(b, -1, self.h, self.d).transpose(1, 2).reshape(b * self.h, -1, self.d)
        )
        q, k, v = split(self.q(x) * self.d**-0.5), split(self.k(memory)), split(self.v(memory))
        w = torch.bmm(q, k.transpose(1, 2)).view(b, self.h, s, -1)
        w = w + torch.full((s, s), -1e4).triu(1)
        w = w.view(b * self.h, s, -1).softmax(-1)
        y = torch.bmm(w, v).view(b, self.h, s, self.d).transpose(1, 2)
        return self.o(y.reshape(b, s, c))


class Opt(nn.Module):
    """A language model whose heads are merged with the batch."""

    def __init__(self, c: int = 128, heads: int = 4):
        super().__init__()
        self.e, self.b = nn.Embedding(1000, c), nn.ModuleList(Block(c, heads) for _ in range(2))
        for block in self.b:
            block.a = Merged(c, heads)
        self.n, self.out = nn.LayerNorm(c), nn.Linear(c, 1000, False)

    def forward(self, ids: Tensor) -> Tensor:
        """Run it."""
        x = self.e(ids)
        for block in self.b:
            normed = block.n1(x)
            x = x + block.a(normed, normed)
            x = x + block.ffn(block.n2(x))
        return self.out(self.n(x))


class Translator(nn.Module):
    """An encoder and a decoder with torch's own attention, time first."""

    def __init__(self, c: int = 128, heads: int = 4):
        super().__init__()
        self.e, self.f, self.h = nn.Embedding(500, c), nn.Embedding(500, c), heads
        self.own, self.past, self.cross = (nn.MultiheadAttention(c, heads) for _ in range(3))
        self.n = nn.ModuleList(nn.LayerNorm(c) for _ in range(4))
        self.up, self.down, self.out = nn.Linear(c, 4 * c), nn.Linear(4 * c, c), nn.Linear(c, 500)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Run it."""
        x, y = self.e(source).transpose(0, 1), self.f(target).transpose(0, 1)
        x = self.n[0](x + self.own(x, x, x, need_weights=False)[0])
        y = self.n[1](y + self.past(y, y, y, need_weights=True)[0])
        y = self.n[2](y + self.cross(y, x, x, need_weights=False)[0])
        y = self.n[3](y + self.down(F.relu(self.up(y))))
        return self.out(y.transpose(0, 1))


class GroupNormNet(nn.Module):
    """Group normalisation, FiLM-like scaling and attention over space, as in diffusion models."""

    def __init__(self, c: int = 64):
        super().__init__()
        self.stem, self.t = nn.Conv2d(4, c, 3, padding=1), nn.Linear(32, 2 * c)
        self.n1, self.c1, self.n2 = (
            nn.GroupNorm(8, c),
            nn.Conv2d(c, c, 3, padding=1),
            nn.GroupNorm(8, c),
        )
        self.c2, self.n3, self.qkv = (
            nn.Conv2d(c, c, 3, padding=1),
            nn.GroupNorm(8, c),
            nn.Conv1d(c, 3 * c, 1),
        )
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
