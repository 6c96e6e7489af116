"""Copying tensors from a device to the host.

On CUDA the copy of one tensor overlaps with the computation of the next: it goes to page-locked memory, on a
stream of its own. The copies may be read after ``finish``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray


class ToHost(Protocol):
    """Starts copying a tensor to the host; the array holds its numbers once the copies are finished."""

    def __call__(self, tensor: torch.Tensor) -> NDArray[Any]: ...


def at_once(tensor: torch.Tensor) -> NDArray[Any]:
    """Copy a tensor to the host now; the array keeps the tensor's memory layout."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


class Copies:
    """Copies from one CUDA device that overlap with its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Start copying a tensor; the array holds its numbers after ``finish``."""
        source = tensor.contiguous()
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)  # so that its memory is not reused before it is copied
        array: NDArray[Any] = target.numpy()
        return array

    def finish(self) -> None:
        """Wait for all copies that were started."""
        self._stream.synchronize()
