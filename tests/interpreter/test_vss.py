"""The VSS block against its equations, written once more: NumPy scalars and loops, nothing shared with the package.

x_in, z = W_in LN(x)          u = SiLU(dwconv3x3(x_in))
along each of four paths:     (d, B, C) = W_k u_l,  delta = softplus(W_delta d + bias)
                              h = exp(delta A) h + delta B u_l,  y_l = C h + D u_l
out = x + W_out (LN(sum of the four y) SiLU(z))
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interpreter.scan import Method
from interpreter.vss import Variant, VssBlock


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def product(weight: np.ndarray, x: list[float]) -> list[float]:
    return [sum(float(weight[i, j]) * x[j] for j in range(len(x))) for i in range(len(weight))]


def layer_norm(x: list[float], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [
        (v - mean) / math.sqrt(variance + 1e-5) * float(w) + float(b) for v, w, b in zip(x, weight, bias, strict=True)
    ]


def scan_along(path: list[tuple[int, int]], u: dict[tuple[int, int], list[float]], p: dict, k: int) -> dict:  # type: ignore[type-arg]
    d, n = p["conv.weight"].shape[0], p["scan.A_log"].shape[1]
    r = p["scan.delta_weight"].shape[2]
    h = [[0.0] * n for _ in range(d)]
    y = {}
    for place in path:
        mixed = product(p["scan.project"][k], u[place])
        low, B, C = mixed[:r], mixed[r : r + n], mixed[r + n :]
        raw = product(p["scan.delta_weight"][k], low)
        out = []
        for c in range(d):
            delta = math.log1p(math.exp(raw[c] + float(p["scan.delta_bias"][k, c])))
            for s in range(n):
                A = -math.exp(float(p["scan.A_log"][k * d + c, s]))
                h[c][s] = math.exp(delta * A) * h[c][s] + delta * B[s] * u[place][c]
            out.append(sum(C[s] * h[c][s] for s in range(n)) + float(p["scan.D"][k * d + c]) * u[place][c])
        y[place] = out
    return y


def by_hand(x: np.ndarray, p: dict[str, np.ndarray], gate: bool) -> np.ndarray:
    """One map (c, h, w)."""
    _, h, w = x.shape
    d = p["conv.weight"].shape[0]
    places = [(i, j) for i in range(h) for j in range(w)]
    inner, z = {}, {}
    for i, j in places:
        normed = layer_norm([float(v) for v in x[:, i, j]], p["norm.weight"], p["norm.bias"])
        both = product(p["in_proj.weight"], normed)
        inner[i, j], z[i, j] = both[:d], both[d:]
    u = {}
    for i, j in places:
        u[i, j] = []
        for e in range(d):
            total = float(p["conv.bias"][e])
            for a in range(3):
                for b in range(3):
                    if (i + a - 1, j + b - 1) in inner:
                        total += float(p["conv.weight"][e, 0, a, b]) * inner[i + a - 1, j + b - 1][e]
            u[i, j].append(silu(total))
    columns = [(i, j) for j in range(w) for i in range(h)]
    found = [scan_along(path, u, p, k) for k, path in enumerate((places, columns, places[::-1], columns[::-1]))]
    out = np.zeros_like(x)
    for i, j in places:
        merged = [sum(y[i, j][e] for y in found) for e in range(d)]
        normed = layer_norm(merged, p["out_norm.weight"], p["out_norm.bias"])
        if gate:
            normed = [v * silu(g) for v, g in zip(normed, z[i, j], strict=True)]
        out[:, i, j] = x[:, i, j] + product(p["out_proj.weight"], normed)
    return out


@pytest.mark.parametrize("variant", ["v0", "v05"])
@pytest.mark.parametrize("method", ["numba", "torch"])
def test_the_vss_block_is_vmambas_arithmetic(variant: Variant, method: Method) -> None:
    torch.manual_seed(0)
    block = VssBlock(5, variant).eval()
    block.scan.method = method
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 5, 3, 4)
    parameters = {name: value.detach().double().numpy() for name, value in block.state_dict().items()}
    expected = np.stack([by_hand(one, parameters, variant == "v0") for one in x.double().numpy()])
    found = block(x).detach().numpy()
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_the_cross_scan_has_the_gradient_that_autograd_finds() -> None:
    from interpreter.vss import _Fold, _Unfold

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Unfold.apply, x)
    y = torch.randn(2, 4, 3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: _Fold.apply(t, 4, 5), y)


def test_drop_path_skips_whole_images_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = VssBlock(4, drop_path=0.5), torch.randn(64, 4, 2, 2)
    skipped = (block(x) == x).flatten(1).all(dim=1)
    assert 10 < int(skipped.sum()) < 54
    block.eval()
    assert not (block(x) == x).flatten(1).all(dim=1).any()
