"""Numbers on their way from a device to the host.

On CUDA the copy of one tensor runs beside the computation of the next: into page-locked memory, on a stream
of its own. What was begun may be read after ``finish``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray


class ToHost(Protocol):
    """Begins to bring a tensor to the host; the array holds its numbers when the copies are finished."""

    def __call__(self, tensor: torch.Tensor) -> NDArray[Any]: ...


def at_once(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's numbers on the host, in the order of memory that they have."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


class Copies:
    """Copies from one CUDA device, beside its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, tensor: torch.Tensor) -> NDArray[Any]:
        """An array that holds the tensor's numbers after ``finish``."""
        source = tensor.contiguous()
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)  # its memory is not given to others before it was copied
        array: NDArray[Any] = target.numpy()
        return array

    def finish(self) -> None:
        """Wait for everything that was begun."""
        self._stream.synchronize()
