"""The visual state-space block of VMamba (Liu et al. 2024), as DiffDGSS uses it.

b  batch   c  channels of the block   d  inner channels (2 c)   h, w  size   l  h * w
n  state size   r  rank of delta   k  four directions: rows, columns, and both backwards

    VSS(x) = x + out_proj( LN(SS2D(SiLU(dwconv(x_in)))) * SiLU(z) ),   (x_in, z) = in_proj(LN(x))

``v0`` is the first VMamba (state size 16, gate z); ``v05`` the later, faster version (state size 1, no gate).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from interpreter.scan import Method, selective_scan

Variant = Literal["v0", "v05"]


@dataclass(frozen=True)
class VssShape:
    """What distinguishes the variants: the state size n, and whether there is a gate z."""

    state: int
    gate: bool


VARIANTS: dict[Variant, VssShape] = {"v0": VssShape(state=16, gate=True), "v05": VssShape(state=1, gate=False)}


class SS2D(nn.Module):
    """Selective scan over a map along four directions; (b, d, h, w) in and out.

    Attributes:
        method: implementation of the selective scan; ``auto`` chooses by the device.
    """

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.r, self.n = math.ceil(d / 32), n  # r = ceil(c / 16), c = d / 2
        self.method: Method = "auto"
        self.project = nn.Parameter(torch.stack([_linear(self.r + 2 * n, d) for _ in range(4)]))  # (k, r + 2n, d)
        self.delta_weight = nn.Parameter(torch.empty(4, d, self.r).uniform_(-1, 1) * self.r**-0.5)
        self.delta_bias = nn.Parameter(torch.stack([_delta_bias(d) for _ in range(4)]))  # (k, d)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, n + 1).float()).repeat(4 * d, 1))  # (k d, n)
        self.D = nn.Parameter(torch.ones(4 * d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = _Unfold.apply(x)  # (b, k, d, l)
        mixed = self.project @ u  # (b, k, r + 2n, l)
        low_rank, B, C = mixed.split([self.r, self.n, self.n], dim=2)
        delta = self.delta_weight @ low_rank  # (b, k, d, l)
        y = selective_scan(
            rearrange(u, "b k d l -> b (k d) l"),
            rearrange(delta, "b k d l -> b (k d) l"),
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D,
            self.delta_bias.flatten(),
            self.method,
        )
        merged: torch.Tensor = _Fold.apply(rearrange(y, "b (k d) l -> b k d l", k=4), *x.shape[2:])
        return merged


def _unfold(x: torch.Tensor) -> torch.Tensor:
    """Lay out a map (b, d, h, w) along the four directions: (b, k, d, l)."""
    b, d, h, w = x.shape
    u = x.new_empty(b, 4, d, h * w)
    u[:, 0].view(b, d, h, w).copy_(x)
    u[:, 1].view(b, d, w, h).copy_(x.transpose(2, 3))
    u[:, 2:] = u[:, :2].flip(-1)
    return u


def _fold(y: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Sum the four directions at each pixel, (b, k, d, l) -> (b, d, h, w): the transpose of ``_unfold``."""
    forth = y[:, 2:].flip(-1).add_(y[:, :2])
    rows, columns = forth[:, 0], forth[:, 1]
    return rows.reshape(*rows.shape[:2], h, w) + columns.reshape(*columns.shape[:2], w, h).transpose(2, 3)


class _Unfold(torch.autograd.Function):
    """``_unfold`` with ``_fold`` as its gradient: autograd's own would copy the map five times."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.size = x.shape[2:]
        return _unfold(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _fold(gradients[0], *ctx.size)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, y: torch.Tensor, h: int, w: int) -> torch.Tensor:
        return _fold(y, h, w)

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _unfold(gradients[0]), None, None


class VssBlock(nn.Module):
    """One VSS block; (b, c, h, w) in and out.

    Args:
        c: channels.
        variant: ``v0`` or ``v05``.
        drop_path: probability that the block is skipped for an image in training.
    """

    def __init__(self, c: int, variant: Variant = "v0", drop_path: float = 0.0) -> None:
        super().__init__()
        shape, d = VARIANTS[variant], 2 * c
        self.gate, self.drop_path = shape.gate, drop_path
        self.norm = nn.LayerNorm(c)
        self.in_proj = nn.Linear(c, 2 * d if shape.gate else d, bias=False)
        self.conv = nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.scan = SS2D(d, shape.state)
        self.out_norm = nn.LayerNorm(d)
        self.out_proj = nn.Linear(d, c, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels_last = rearrange(x, "b c h w -> b h w c")
        inner = self.in_proj(self.norm(channels_last))
        inner, z = inner.chunk(2, dim=-1) if self.gate else (inner, None)
        inner = functional.silu(self.conv(rearrange(inner, "b h w d -> b d h w")))
        y = self.out_norm(rearrange(self.scan(inner), "b d h w -> b h w d"))
        if z is not None:
            y = y * functional.silu(z)
        return x + self._drop(rearrange(self.out_proj(y), "b h w c -> b c h w"))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


def _linear(rows: int, columns: int) -> torch.Tensor:
    return nn.Linear(columns, rows, bias=False).weight.detach()


def _delta_bias(d: int, smallest: float = 1e-3, largest: float = 0.1) -> torch.Tensor:
    """The inverse softplus of steps drawn log-uniformly, as in Mamba: (d,)."""
    steps = torch.exp(torch.rand(d) * (math.log(largest) - math.log(smallest)) + math.log(smallest))
    return steps + torch.log(-torch.expm1(-steps))
