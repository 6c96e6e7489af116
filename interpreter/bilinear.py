"""Values of maps at single pixels of the network's square, as if the maps had been upsampled to it.

b  images    c  channels    p  pixels    R  the square's side
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class _Neighbour(NamedTuple):
    place: torch.Tensor
    share: torch.Tensor


def at_pixels(maps: torch.Tensor, pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Values of maps (b, c, h, w) at pixels by bilinear interpolation: (b, p, c).

    Maps in channels-last memory format are read in place; others are first copied to it.

    Args:
        pixels: int64 (b, p) or (1, p), flat indices into (R, R).
        side: R.
    """
    planes = maps.movedim(1, 3).contiguous()
    b, h, w, c = planes.shape
    top, below = _neighbours(pixels // side, h, side)
    left, right = _neighbours(pixels % side, w, side)
    corners = [(y, x) for y in (top, below) for x in (left, right)]
    start = h * w * torch.arange(b, device=maps.device)[:, None]  # index of each image's first row
    rows = torch.stack([start + y.place * w + x.place for y, x in corners], dim=-1)  # (b, p, 4)
    shares = torch.stack([y.share * x.share for y, x in corners], dim=-1).to(maps.dtype).expand(rows.shape)
    found = functional.embedding_bag(
        rows.flatten(0, 1), planes.view(-1, c), mode="sum", per_sample_weights=shares.flatten(0, 1)
    )
    return found.view(b, -1, c)


def _neighbours(at: torch.Tensor, size: int, side: int) -> tuple[_Neighbour, _Neighbour]:
    """The two of ``size`` places between which each pixel out of ``side`` lies, and their interpolation weights."""
    where = ((at.double() + 0.5) * (size / side) - 0.5).clamp(0, size - 1)
    first = where.floor()
    share, place = where - first, first.long()
    return _Neighbour(place, 1 - share), _Neighbour((place + 1).clamp(max=size - 1), share)
