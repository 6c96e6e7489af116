"""The selective scan in plain torch operations, for any device. Letters as in ``interpreter.scan``.

Positions are processed in chunks. Inside a chunk the recurrence h_l = a_l h_{l-1} + x_l is an associative
product of pairs, (a, x) then (b, y) = (a b, b x + y), so doubling the reach of every position log2(K)
times gives all K states at once (a prefix scan); nothing is divided, so nothing overflows. Only the state
at the end of a chunk is passed on to the next, and only that is kept for the backward pass, which
recomputes the rest of the chunk.

K  positions in a chunk
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 1 << 24  # numbers in the largest intermediate (b, d, n, K): 64 MB
LONGEST_CHUNK = 512


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
    b, d, length = u.shape
    n = A.shape[1]
    size = max(1, min(LONGEST_CHUNK, CHUNK_VALUES // (b * d * n)))
    h = u.new_zeros(b, d, n)
    parts = []
    for start in range(0, length, size):
        piece = [x[..., start : start + size] for x in (u, delta, B, C)]
        y, h = checkpoint(_chunk, h, *piece, A, D, delta_bias, use_reentrant=False, preserve_rng_state=False)
        parts.append(y)
    return torch.cat(parts, dim=-1)


def _chunk(
    h: torch.Tensor,
    u: torch.Tensor,
    delta: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    delta_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y (b, d, K) of a chunk and its last state (b, d, n), given the state before it, h (b, d, n)."""
    groups = B.shape[1]
    step = functional.softplus(delta + delta_bias[:, None])  # (b, d, K)
    decay = torch.exp(step[:, :, None] * A[:, :, None])  # (b, d, n, K)
    drive = (step * u).unflatten(1, (groups, -1))[:, :, :, None] * B[:, :, None]  # (b, g, d / g, n, K)
    states = _prefix(decay, torch.cat([h[..., None], drive.flatten(1, 2)], dim=-1))
    y = (states.unflatten(1, (groups, -1)) * C[:, :, None]).sum(3).flatten(1, 2)
    return y + D[:, None] * u, states[..., -1]


def _prefix(decay: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
    """Solve h_l = decay_l h_{l-1} + drive_l for h_1 .. h_K, (..., K).

    Args:
        decay: (..., K).
        drive: (..., K + 1), h_0 first.
    """
    states = torch.cat([drive[..., 1:2] + decay[..., :1] * drive[..., :1], drive[..., 2:]], dim=-1)
    reach = 1
    while reach < states.shape[-1]:
        earlier = decay[..., reach:] * states[..., :-reach]
        states = torch.cat([states[..., :reach], states[..., reach:] + earlier], dim=-1)
        decay = torch.cat([decay[..., :reach], decay[..., reach:] * decay[..., :-reach]], dim=-1)
        reach *= 2
    return states
