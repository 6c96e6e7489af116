"""Maps at single pixels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from interpreter.bilinear import at_pixels


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (4, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_are_read_as_if_they_had_been_upsampled(size: tuple[int, int], layout: torch.memory_format) -> None:
    maps = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    upsampled = functional.interpolate(maps, size=32, mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(at_pixels(maps, torch.arange(32 * 32)[None], 32), upsampled, atol=1e-5, rtol=1e-5)


def test_each_image_has_pixels_of_its_own() -> None:
    maps = torch.arange(2 * 3 * 16.0, dtype=torch.float64).view(2, 3, 4, 4)
    found = at_pixels(maps, torch.tensor([[0, 5], [15, 2]]), 4)
    assert torch.equal(found, torch.stack([maps[0].flatten(1)[:, [0, 5]].T, maps[1].flatten(1)[:, [15, 2]].T]))
