"""How a process multiplies float32 on CUDA devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SWITCHED = threading.RLock()


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """cuDNN rounds float32 to ten bits unless it is told not to, and a walk multiplies what was rounded."""
    if device.type != "cuda":
        yield
        return
    # Since torch 2.9, where reading the former flag may raise.
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    switch, name, exact = (
        (convolutions, "fp32_precision", "ieee") if convolutions else (torch.backends.cudnn, "allow_tf32", False)
    )
    with _SWITCHED:
        before = getattr(switch, name)
        setattr(switch, name, exact)
        try:
            yield
        finally:
            setattr(switch, name, before)
