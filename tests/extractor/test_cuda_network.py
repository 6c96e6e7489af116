"""What ``extractor.cuda`` computes, on whatever device is at hand, against torch and diffusers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.cuda import recording
from extractor.cuda.network import SHORTEST, group_norm, use_fast_kernels
from extractor.cuda.recording import MAX_GRAPHS, WARMUP_RUNS, Computation, GraphCache, Maps
from extractor.diffusion import Diffusion
from extractor.schedule import noise_schedule
from extractor.unet import build_unet


def some_norm(groups: int, channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-5)
    for weights in norm.parameters():
        nn.init.normal_(weights)
    return norm.requires_grad_(False)


@pytest.mark.parametrize("side", [1, 5, 12, 96, 160])
@pytest.mark.parametrize("far", [0.0, 300.0])
def test_a_norm_is_that_of_torch(side: int, far: float) -> None:
    """``far`` from zero a variance that is a difference of squares would be lost."""
    norm = some_norm(4, 12)
    x = torch.randn(3, 12, side, side) + far
    assert 8 * SHORTEST < 3 * 160 * 160  # the largest is cut into rows
    exact = functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(group_norm(x, norm), exact.float(), rtol=1e-4, atol=1e-5 + 1e-6 * far)


def test_time_scales_and_shifts_what_was_normed() -> None:
    norm, x, modulation = some_norm(2, 8), torch.randn(2, 8, 6, 6), torch.randn(2, 16)
    scale, shift = modulation[..., None, None].chunk(2, dim=1)
    torch.testing.assert_close(group_norm(x, norm, modulation), norm(x) * (1 + scale) + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time", ["default", "scale_shift"])
def test_a_quickened_network_answers_as_before(time: str) -> None:
    config = tiny_unet() | {"resnet_time_scale_shift": time, "add_attention": True, "attention_head_dim": 4}
    torch.manual_seed(0)
    unet = build_unet(config)
    usual = Backbone(unet, Diffusion(noise_schedule("cosine-100")), config)
    x = torch.randn(2, 3, 32, 32)
    expected = usual.estimate(x, 7, usual.block_names)
    patched = use_fast_kernels(unet)
    assert all("forward" in vars(module) for module in patched.modules() if isinstance(module, ResnetBlock2D))
    found = usual.estimate(x, 7, usual.block_names)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-5)
    for name, maps in expected.features.items():
        torch.testing.assert_close(found.features[name], maps, rtol=1e-4, atol=1e-5)


def test_half_precision_is_near() -> None:
    torch.manual_seed(0)
    config = tiny_unet()
    unet = build_unet(config)
    exact = Backbone(unet, Diffusion(noise_schedule("cosine-100")), config)
    x = torch.randn(2, 3, 32, 32)
    expected = exact.estimate(x, 7).x0
    use_fast_kernels(unet)
    found = Backbone(unet, exact.diffusion, config, precision="bfloat16").estimate(x, 7).x0
    assert expected is not None
    assert found is not None
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().mean() < 0.05 * expected.std()


def test_it_leaves_what_it_was_given_as_it_was() -> None:
    unet = use_fast_kernels(build_unet(tiny_unet()))
    block = next(module for module in unet.modules() if isinstance(module, ResnetBlock2D))
    x = torch.randn(1, block.in_channels, 8, 8)
    before = x.clone()
    with torch.no_grad():
        block(x, torch.randn(1, unet.time_embedding.linear_2.out_features))
    assert torch.equal(x, before)


def test_a_network_that_is_trained_is_diffusers_own() -> None:
    config = tiny_unet()
    torch.manual_seed(1)
    unet, x, t = build_unet(config), torch.randn(1, 3, 16, 16), torch.tensor([3.0])
    unet(x, t).sample.sum().backward()
    expected = unet.conv_in.weight.grad
    unet.conv_in.weight.grad = None
    use_fast_kernels(unet)(x, t).sample.sum().backward()
    assert expected is not None
    assert torch.equal(unet.conv_in.weight.grad, expected)


class Replayed:
    """In place of a graph: what it was recorded of, each time."""

    def __init__(self, compute: Computation, inputs: Sequence[torch.Tensor], _place: object) -> None:
        self._made = compute(*inputs)

    def replay(self, _inputs: Sequence[torch.Tensor]) -> Maps:
        return self._made


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> GraphCache:
    monkeypatch.setattr(recording, "_Graph", Replayed)
    monkeypatch.setattr(recording, "_capture_context", lambda _: None)
    return GraphCache()


class Counted:
    """A computation that knows how often it was made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, x: torch.Tensor) -> Maps:
        self.times += 1
        return {"twice": 2 * x}


def test_what_is_asked_for_often_is_recorded_once(recordings: GraphCache) -> None:
    compute, x = Counted(), torch.ones(2, 3)
    for _ in range(10):
        assert torch.equal(recordings.run("name", compute, [x])["twice"], 2 * x)
    assert compute.times == WARMUP_RUNS + 1


def test_another_name_shape_or_type_is_another_computation(recordings: GraphCache) -> None:
    compute, x = Counted(), torch.ones(2, 3)
    others = [("name", x[:1]), ("other", x), ("name", x.double())]
    for _ in range(WARMUP_RUNS + 2):
        recordings.run("name", compute, [x])
    before = compute.times
    for name, given in others:
        assert torch.equal(recordings.run(name, compute, [given])["twice"], 2 * given)
    assert compute.times == before + len(others)


def test_no_more_graphs_are_kept_than_is_said(recordings: GraphCache) -> None:
    compute = Counted()
    for n in range(MAX_GRAPHS + 1):
        for _ in range(WARMUP_RUNS + 1):
            recordings.run(n, compute, [torch.ones(1)])
    before = compute.times
    for n in range(MAX_GRAPHS + 1):
        recordings.run(n, compute, [torch.ones(1)])
    assert compute.times == before + 1  # the last is run


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("another thread records")])
def test_what_cannot_be_recorded_is_run(
    recordings: GraphCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def failing(*_: object) -> Replayed:
        raise error

    compute, x = Counted(), [torch.ones(1)]
    for _ in range(WARMUP_RUNS + 1):
        recordings.run("recorded", compute, x)
    monkeypatch.setattr(recording, "_Graph", failing)
    for n in range(WARMUP_RUNS + 3):
        recordings.run("other", compute, x)
        assert compute.times == WARMUP_RUNS + 1 + n + 1
    assert str(error) in caplog.text
    monkeypatch.setattr(recording, "_Graph", lambda *_: pytest.fail("tried again"))
    before = compute.times
    for _ in range(WARMUP_RUNS + 2):
        recordings.run("recorded", compute, x)
    assert compute.times == before + WARMUP_RUNS + 2  # the graph was given up, too
    assert not recordings.forget()


def test_who_has_nothing_to_forget_records_as_before(recordings: GraphCache) -> None:
    compute, x = Counted(), [torch.ones(1)]
    assert not recordings.forget()
    for _ in range(WARMUP_RUNS + 4):
        recordings.run("name", compute, x)
    assert compute.times == WARMUP_RUNS + 1
    assert recordings.forget()


def test_a_full_device_gives_up_its_recordings_and_holds_nothing_of_what_failed(
    recordings: GraphCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_unet()
    network = Backbone(build_unet(config), Diffusion(noise_schedule("cosine-100")), config)
    x, other = torch.randn(2, 1, 3, 16, 16)
    network._graphs = recordings
    expected = [network.estimate(x, 7, ["block_1"]) for _ in range(WARMUP_RUNS + 2)][-1]
    usual, held = Backbone._network, list[weakref.ref[torch.Tensor]]()

    def full_once(self: Backbone, *inputs: torch.Tensor) -> torch.Tensor:
        made = usual(self, *inputs)
        if not held:
            held.append(weakref.ref(made))
            raise torch.OutOfMemoryError("out of memory")
        gone.append(held[0]() is None)
        return made

    gone: list[bool] = []
    monkeypatch.setattr(Backbone, "_network", full_once)
    network.estimate(other.repeat(2, 1, 1, 1), 7, ["block_1"])
    assert gone == [True]
    again = network.estimate(x, 7, ["block_1"])
    assert torch.equal(again.features["block_1"], expected.features["block_1"])
    held.clear()
    with pytest.raises(torch.OutOfMemoryError):  # nothing is left to give up
        network.estimate(x, 7, ["block_1"])
