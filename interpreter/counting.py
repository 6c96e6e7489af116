"""The size of an interpreter, and the operations it takes to segment one photograph."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from interpreter.network import Interpreter
from interpreter.vss import SS2D


class Cost(NamedTuple):
    """Number of weights, and floating-point operations for one photograph, all voters together."""

    parameters: int
    flops: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e3:.0f} k weights, {self.flops / 1e9:.1f} GFLOP for a photograph"


def cost_of(interpreter: Interpreter) -> Cost:
    """Count what an interpreter costs: convolutions and matrix products as torch counts them, scans by ``scan_flops``.

    Nothing is computed: the network runs on meta tensors, which have a shape but no values.
    """
    spec, head = interpreter.spec, copy.deepcopy(interpreter.head).to("meta").eval()
    maps = {
        block.name: torch.empty(1, block.channels, block.height, block.width, device="meta") for block in spec.blocks
    }
    scans = 0

    def count_scan(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        nonlocal scans
        assert isinstance(module, SS2D)
        b, d, h, w = inputs[0].shape
        scans += scan_flops(b, 4 * d, h * w, module.n)

    for module in head.modules():
        if isinstance(module, SS2D):
            module.register_forward_hook(count_scan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for _ in head.votes(lambda _: maps, spec.timesteps):
            pass
    return Cost(interpreter.parameter_count, int(counter.get_total_flops()) + scans)


def scan_flops(b: int, d: int, length: int, n: int) -> int:
    """Floating-point operations of a selective scan of (b, d, l) with n states, as Mamba and VMamba count them.

    Each state takes 9: one for the product delta A, two for its exponential, and two each for the drive, the
    recurrence and the output. Each position of each channel takes 2 more, for D u.
    """
    return 9 * b * d * length * n + 2 * b * d * length
