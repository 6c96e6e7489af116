"""The arithmetic for CPUs against torch's own: single convolutions, and whole networks."""

from __future__ import annotations

import functools
import itertools
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from extractor.architectures import plain_unet
from extractor.backbone import Backbone
from extractor.backbones import open_backbone
from extractor.cpu.convolution import Residual, convolve
from extractor.cpu.kernels import transform_kernel, transform_projection
from extractor.cpu.moments import channel_moments
from extractor.cpu.network import _Weights
from extractor.diffusion import Diffusion
from extractor.schedule import noise_schedule
from extractor.unet import build_unet


def last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def error(found: np.ndarray, expected: torch.Tensor) -> float:
    """Largest difference over largest value; found (n, h, w, k), expected (n, k, h, w)."""
    return float((torch.from_numpy(found).permute(0, 3, 1, 2) - expected).abs().max() / expected.abs().max())


SIZES = [(8, 16, 4, 4), (16, 32, 36, 20), (24, 48, 64, 12), (96, 16, 8, 132), (16, 3, 8, 520)]


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) for shape in shapes]


@pytest.mark.parametrize(("c", "k", "h", "w"), SIZES)
def test_convolutions(c: int, k: int, h: int, w: int) -> None:
    x, weight, bias, scale, shift = drawn((2, c, h, w), (k, c, 3, 3), (2, k), (2, c), (2, c))
    exact = x.double() * scale[:, :, None, None] + shift[:, :, None, None]
    expected = functional.conv2d(functional.silu(exact), weight.double(), padding=1) + bias[:, :, None, None]
    normalising = scale.numpy(), shift.numpy()
    kernel = transform_kernel(weight.numpy())
    found, moments = convolve(last(x), kernel, bias.numpy(), normalising=normalising)
    assert error(found, expected) < 3e-6
    np.testing.assert_allclose(moments.mean, expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.variance, expected.var(dim=(2, 3), correction=0), rtol=1e-4)
    both = convolve(last(x[:, :8]), kernel, bias.numpy(), skip=last(x[:, 8:]), normalising=normalising)
    np.testing.assert_array_equal(both[0], found)


@pytest.mark.parametrize(("c", "k", "h", "w"), SIZES)
def test_convolutions_of_doubled_maps(c: int, k: int, h: int, w: int) -> None:
    x, weight, bias = drawn((2, c, h, w), (k, c, 3, 3), (2, k))
    doubled = functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    expected = functional.conv2d(doubled, weight.double(), padding=1) + bias[:, :, None, None]
    found, _ = convolve(last(x), transform_kernel(weight.numpy(), doubled=True), bias.numpy())
    assert error(found, expected) < 1e-5


def test_residuals() -> None:
    x, weight, bias, ones, zeros = drawn((2, 16, 12, 20), (32, 16, 3, 3), (2, 32), (2, 16), (2, 16))
    same, first, second, projection = drawn((2, 32, 12, 20), (2, 8, 12, 20), (2, 16, 12, 20), (32, 24))
    kernel, normalising = transform_kernel(weight.numpy()), (ones.numpy(), zeros.numpy())
    alone = torch.from_numpy(convolve(last(x), kernel, bias.numpy(), normalising=normalising)[0]).permute(0, 3, 1, 2)
    projected = torch.einsum("kc,nchw->nkhw", projection.double(), torch.cat([first, second], dim=1).double())
    panels = transform_projection(projection.numpy())
    for residual, expected in (
        (Residual(last(same)), alone + same),
        (Residual(last(first), last(second), panels), alone + projected),
    ):
        found, moments = convolve(last(x), kernel, bias.numpy(), normalising=normalising, residual=residual)
        assert error(found, expected) < 1e-6
        np.testing.assert_allclose(moments.variance, expected.double().var(dim=(2, 3), correction=0), rtol=1e-4)


def test_what_is_not_finite_stays_so() -> None:
    x, weight, ones, zeros = torch.zeros(1, 8, 8, 8), torch.ones(16, 8, 3, 3), torch.ones(1, 8), torch.zeros(1, 16)
    for number in (torch.nan, torch.inf):
        x[0, 0, 4, 4] = number
        normalising = ones.numpy(), np.zeros((1, 8), np.float32)
        found, _ = convolve(last(x), transform_kernel(weight.numpy()), zeros.numpy(), normalising=normalising)
        assert not np.isfinite(found[0, 4, 4]).any()


def test_moments_of_channels_far_from_zero() -> None:
    x = drawn((2, 8, 20, 12))[0] + 100
    moments = channel_moments(last(x))
    np.testing.assert_allclose(moments.mean, x.double().mean(dim=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, x.double().var(dim=(2, 3), correction=0), rtol=1e-4)


@pytest.mark.parametrize("time_scale_shift", ["scale_shift", "default"])
def test_a_quick_network_is_the_same_network(time_scale_shift: str) -> None:
    config = plain_unet((16, 32, 48), norm_groups=4) | {"resnet_time_scale_shift": time_scale_shift}
    torch.manual_seed(0)
    unet = build_unet(config)
    diffusion = Diffusion(noise_schedule("cosine-200"), "v_prediction")
    usual = Backbone(build_unet(config), diffusion, config)
    usual.unet.load_state_dict(unet.state_dict())
    quick = Backbone(unet, diffusion, config)
    quick.use_fast_kernels()
    assert quick.fingerprint == usual.fingerprint
    x = torch.randn(2, 3, 64, 64)
    expected, found = (one.estimate(x, 7, one.block_names) for one in (usual, quick))
    for name, maps in expected.features.items():
        assert not torch.equal(found.features[name], maps), name  # it did compute in another way
        torch.testing.assert_close(found.features[name], maps, rtol=0, atol=1e-5 * float(maps.abs().max()))
    assert torch.equal(quick.estimate(x, 7).x0, quick.estimate(x, 7).x0)  # type: ignore[arg-type]
    for i, name in itertools.product(range(2), quick.block_names):  # an image's bits are the same in every batch
        assert torch.equal(quick.estimate(x[i : i + 1], 7, [name]).features[name], found.features[name][i : i + 1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = quick.estimate(x, 7, ["block_3"]).features["block_3"]
    assert torch.get_num_threads() == 1  # Numba's number of threads did not become torch's
    torch.set_num_threads(threads)
    torch.testing.assert_close(alone, found.features["block_3"], rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_maps_of_other_channels_than_the_kernels_are_refused() -> None:
    kernel = transform_kernel(np.zeros((16, 8, 3, 3), np.float32))
    with pytest.raises(ValueError, match="expected maps of 8 channels, got 16"):
        convolve(np.zeros((1, 4, 4, 16), np.float32), kernel, np.zeros((1, 16), np.float32))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the width asked for is one of x86 vectors")
def test_processors_with_narrow_vectors_convolve_too(tmp_path: Path) -> None:
    """What is compiled for a processor without AVX-512 passes this file's tests of convolutions."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    lanes = [sys.executable, "-c", "from extractor.cpu.vectors import LANES; print(LANES)"]
    assert subprocess.run(lanes, env=environment, capture_output=True, text=True, check=True).stdout == "8\n"
    tests = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", "convol or residuals"]
    done = subprocess.run([*tests, "-m", "not slow"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_weights_that_change_are_transformed_again() -> None:
    config = plain_unet((16, 16), norm_groups=4)
    quick = Backbone(build_unet(config), Diffusion(noise_schedule("cosine-200")), config)
    quick.use_fast_kernels()
    usual = Backbone(build_unet(config), quick.diffusion, config)
    x = torch.randn(1, 3, 32, 32)
    quick.estimate(x, 1)
    quick.unet.load_state_dict(usual.unet.state_dict())
    torch.testing.assert_close(quick.estimate(x, 1).x0, usual.estimate(x, 1).x0, rtol=1e-4, atol=1e-4)


def test_threads_may_ask_for_weights_at_once() -> None:
    weights = _Weights(torch.nn.Conv2d(64, 64, 3))
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(lambda _: weights.kernel().weights, range(8)))
    assert all(np.array_equal(kernel, kernels[0]) for kernel in kernels)


def test_what_cannot_be_done_here_is_done_as_usual() -> None:
    """Odd sizes, gradients and autocast go through diffusers' own code."""
    config = plain_unet((16, 16), norm_groups=4)
    usual, quick = (Backbone(build_unet(config), Diffusion(noise_schedule("cosine-200")), config) for _ in range(2))
    quick.unet.load_state_dict(usual.unet.state_dict())
    quick.use_fast_kernels()
    odd = torch.randn(1, 3, 18, 18)
    assert torch.equal(quick.estimate(odd, 1).x0, usual.estimate(odd, 1).x0)  # type: ignore[arg-type]
    x = torch.randn(1, 3, 32, 32).requires_grad_()
    quick.unet(x, 1).sample.sum().backward()
    assert x.grad is not None


def test_backbones_that_are_opened_by_name_are_quick() -> None:
    block = open_backbone("small").unet.up_blocks[0].resnets[0]
    assert "forward" in vars(block)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_is_the_same_network() -> None:
    config = plain_unet((16, 16), norm_groups=4)
    usual, compiled = (Backbone(build_unet(config), Diffusion(noise_schedule("cosine-200")), config) for _ in range(2))
    compiled.unet.load_state_dict(usual.unet.state_dict())
    x = torch.randn(1, 3, 32, 32)
    compiled.use_fast_kernels()
    compiled.compile()
    expected, found = (one.estimate(x, 7, ["block_0"]) for one in (usual, compiled))
    torch.testing.assert_close(found.features["block_0"], expected.features["block_0"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-4)


def test_every_block_is_compiled_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = plain_unet((8, 16, 24), norm_groups=4)
    network = Backbone(build_unet(config), Diffusion(noise_schedule("cosine-200")), config)
    usual = network.estimate(torch.ones(1, 3, 16, 16), 7, ["block_1"])
    network.compile()
    found = network.estimate(torch.ones(1, 3, 16, 16), 7, ["block_1"])
    torch.testing.assert_close(found.features, usual.features, rtol=1e-4, atol=1e-4)
