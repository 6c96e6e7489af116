"""The selective scan in its most readable form, a loop over positions. Letters as in ``interpreter.scan``."""

from __future__ import annotations

import torch
from torch.nn import functional


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    delta_bias: torch.Tensor,
) -> torch.Tensor:
    """y (b, d, l); any float type, differentiable by autograd."""
    b, d, _ = u.shape
    share = d // B.shape[1]
    delta = functional.softplus(delta + delta_bias[:, None])
    B = B.repeat_interleave(share, dim=1)  # (b, d, n, l)
    C = C.repeat_interleave(share, dim=1)  # (b, d, n, l)
    h = u.new_zeros(b, d, A.shape[1])
    y = []
    # Unbind once: for every index into a tensor, autograd would allocate a gradient of the whole tensor.
    for u_l, delta_l, B_l, C_l in zip(*(x.unbind(-1) for x in (u, delta, B, C)), strict=True):
        step = delta_l[..., None]  # (b, d, 1)
        h = torch.exp(step * A) * h + step * B_l * u_l[..., None]  # (b, d, n)
        y.append((C_l * h).sum(-1))  # (b, d)
    return torch.stack(y, dim=-1) + D[:, None] * u
