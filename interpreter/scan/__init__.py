"""The selective scan of Mamba (Gu and Dao 2023, Algorithm 2), on the device of its tensors.

b  batch    d  channels    l  positions    n  state size    g  groups of channels that share B and C

    delta_l = softplus(delta_l + delta_bias)
    h_l     = exp(delta_l A) h_{l-1} + delta_l B_l u_l        h (b, d, n), h_0 = 0
    y_l     = C_l h_l + D u_l

``u, delta`` (b, d, l); ``A`` (d, n), negative; ``B, C`` (b, g, n, l); ``D, delta_bias`` (d,). The
arithmetic is float32, also under autocast; the result has the dtype of ``u``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

from interpreter.errors import ScanUnavailable
from interpreter.scan.portable import selective_scan as _portable
from interpreter.scan.reference import selective_scan as _reference

logger = logging.getLogger(__name__)
Method = Literal["auto", "reference", "numba", "torch", "mamba_ssm"]
Scan = Callable[..., torch.Tensor]  # called with u, delta, A, B, C, D, delta_bias
_announced: set[str] = set()


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    delta_bias: torch.Tensor,
    method: Method = "auto",
) -> torch.Tensor:
    """y (b, d, l) of the recurrence above, differentiable in every argument.

    Args:
        method: the implementation. ``auto`` takes Numba for CPU tensors, mamba_ssm's kernel for CUDA tensors
            if it is installed, and the torch operations of ``portable`` otherwise.

    Raises:
        ScanUnavailable: the chosen method cannot run on these tensors.
    """
    if u.device.type == "meta":  # only shapes matter, as when operations are counted
        return torch.empty_like(u)
    name = implementation(method, u.device)
    if name not in _announced:
        _announced.add(name)
        logger.info("selective scan on %s: %s", u.device.type, name)
    scan = _implementation(name, u.device)
    with torch.autocast(u.device.type, enabled=False):
        float32 = [tensor.float().contiguous() for tensor in (u, delta, A, B, C, D, delta_bias)]
        return scan(*float32).to(u.dtype)


def implementation(method: Method, device: torch.device) -> str:
    """Name of the implementation that a method stands for on a device."""
    if method != "auto":
        return method
    if device.type == "cpu":
        return "numba"
    if device.type == "cuda" and _mamba() is not None:
        return "mamba_ssm"
    return "torch"


def _implementation(name: str, device: torch.device) -> Scan:
    match name:
        case "reference":
            return _reference
        case "torch":
            return _portable
        case "numba" if device.type == "cpu":
            from interpreter.scan.numba_cpu import selective_scan as numba_scan  # compiles on first use

            return numba_scan
        case "mamba_ssm" if device.type == "cuda" and (kernel := _mamba()) is not None:
            return kernel
    raise ScanUnavailable(
        f"the scan {name!r} cannot run on {device.type} tensors here; numba needs CPU tensors, mamba_ssm needs CUDA "
        "tensors and its kernel (`make gpu` builds it)"
    )


@cache
def _mamba() -> Scan | None:
    """mamba_ssm's CUDA kernel with the signature of ``Scan``; None if it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception:  # a missing package, or a build without the kernel, which fails in many ways
        return None

    def scan(*tensors: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = selective_scan_fn(*tensors[:6], delta_bias=tensors[6], delta_softplus=True)
        return y

    return scan
