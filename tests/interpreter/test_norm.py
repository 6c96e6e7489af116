"""The adaptive norm's kernel against torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch

from interpreter.heads.adaptive import AdaptiveNorm, Pointwise
from interpreter.norm_cpu import normed_silu


def worst(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Largest error over the largest value."""
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(("c", "h", "w"), [(16, 40, 24), (20, 17, 9), (64, 8, 8), (8, 2, 3)])
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_values_and_gradients_are_those_of_torch(c: int, h: int, w: int, level: float) -> None:
    """``level``: how far the channels' means are from zero, in deviations: where sums of squares lose digits."""
    torch.manual_seed(0)
    norm = AdaptiveNorm(c, 8)
    x = torch.randn(3, c, h, w) + level * torch.randn(c, 1, 1)
    parameters = [torch.randn(3, c) for _ in range(2)]
    gy = torch.randn(3, c, h, w)

    def both(dtype: torch.dtype) -> list[torch.Tensor]:
        values, scale, shift = (tensor.to(dtype).requires_grad_() for tensor in (x, *parameters))
        if dtype == torch.float64:
            y = norm.reference(values, scale, shift)
        else:
            y = normed_silu(values, scale, shift, norm.norm.num_groups, norm.norm.eps)
        return [y.detach(), *torch.autograd.grad(y, (values, scale, shift), gy.to(dtype))]

    assert worst(both(torch.float32), both(torch.float64)) < (2e-6 if level == 0 else 2e-5)


def test_results_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 64, 64).requires_grad_()
    scale, shift = torch.randn(2, 16).requires_grad_(), torch.randn(2, 16).requires_grad_()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = normed_silu(x, scale, shift, 8, 1e-5)
            found.append([y, *torch.autograd.grad(y.square().sum(), (x, scale, shift))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_images_of_a_batch_are_normed_alone() -> None:
    torch.manual_seed(0)
    x, scale, shift = torch.randn(3, 16, 20, 20), torch.randn(3, 16), torch.randn(3, 16)
    together = normed_silu(x, scale, shift, 8, 1e-5)
    for i in range(3):
        alone = slice(i, i + 1)
        assert torch.equal(normed_silu(x[alone], scale[alone], shift[alone], 8, 1e-5), together[alone])


def test_other_devices_and_types_take_torchs_operations() -> None:
    norm, x, embedding = AdaptiveNorm(16, 8), torch.randn(2, 16, 6, 6), torch.randn(2, 8)
    exact = norm.double()(x.double(), embedding.double())
    torch.testing.assert_close(norm.float()(x, embedding), exact.float())
    assert norm.to("meta")(x.to("meta"), embedding.to("meta")).shape == x.shape


def test_a_product_is_the_convolution() -> None:
    torch.manual_seed(0)
    product, x = Pointwise(5, 7), torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(product(x), torch.nn.functional.conv2d(x, product.weight, product.bias))
