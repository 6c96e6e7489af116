"""What ``extractor.cuda`` computes, on whatever device is at hand, against torch and diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.cuda.network import SHORTEST, group_norm, quicken
from extractor.cuda.recording import MOST, RUNS_BEFORE, Computation, Maps, Recordings
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
    norm, x, told = some_norm(2, 8), torch.randn(2, 8, 6, 6), torch.randn(2, 16)
    scale, shift = told[..., None, None].chunk(2, dim=1)
    torch.testing.assert_close(group_norm(x, norm, told), norm(x) * (1 + scale) + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time", ["default", "scale_shift"])
def test_a_quickened_network_answers_as_before(time: str) -> None:
    config = tiny_unet() | {"resnet_time_scale_shift": time, "add_attention": True, "attention_head_dim": 4}
    torch.manual_seed(0)
    unet = build_unet(config)
    usual = Backbone(unet, Diffusion(noise_schedule("cosine-100")), config)
    x = torch.randn(2, 3, 32, 32)
    expected = usual.estimate(x, 7, usual.block_names)
    patched = quicken(unet)
    assert all("forward" in vars(module) for module in patched.modules() if isinstance(module, ResnetBlock2D))
    found = usual.estimate(x, 7, usual.block_names)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-5)
    for name, maps in expected.features.items():
        torch.testing.assert_close(found.features[name], maps, rtol=1e-4, atol=1e-5)


def test_it_leaves_what_it_was_given_as_it_was() -> None:
    unet = quicken(build_unet(tiny_unet()))
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
    quicken(unet)(x, t).sample.sum().backward()
    assert expected is not None
    assert torch.equal(unet.conv_in.weight.grad, expected)


class Replayed:
    """In place of a graph: what it was recorded of, each time."""

    def __init__(self, compute: Computation, inputs: Sequence[torch.Tensor], _pool: object) -> None:
        self._made = compute(*inputs)

    def replay(self, _inputs: Sequence[torch.Tensor]) -> Maps:
        return self._made


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.setattr(Recordings, "_record", lambda _, compute, inputs: Replayed(compute, inputs, None))
    return Recordings()


class Counted:
    """A computation that knows how often it was made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, x: torch.Tensor) -> Maps:
        self.times += 1
        return {"twice": 2 * x}


def test_what_is_asked_for_often_is_recorded_once(recordings: Recordings) -> None:
    compute, x = Counted(), torch.ones(2, 3)
    for _ in range(10):
        assert torch.equal(recordings.run("name", compute, [x])["twice"], 2 * x)
    assert compute.times == RUNS_BEFORE + 1


def test_another_name_shape_or_type_is_another_computation(recordings: Recordings) -> None:
    compute, x = Counted(), torch.ones(2, 3)
    others = [("name", x[:1]), ("other", x), ("name", x.double())]
    for _ in range(RUNS_BEFORE + 2):
        recordings.run("name", compute, [x])
    before = compute.times
    for name, given in others:
        assert torch.equal(recordings.run(name, compute, [given])["twice"], 2 * given)
    assert compute.times == before + len(others)


def test_no_more_graphs_are_kept_than_is_said(recordings: Recordings) -> None:
    compute = Counted()
    for n in range(MOST + 1):
        for _ in range(RUNS_BEFORE + 1):
            recordings.run(n, compute, [torch.ones(1)])
    before = compute.times
    for n in range(MOST + 1):
        recordings.run(n, compute, [torch.ones(1)])
    assert compute.times == before + 1  # the last is run


def test_who_has_no_room_to_record_runs(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Replayed:
        raise torch.OutOfMemoryError

    compute = Counted()
    for _ in range(RUNS_BEFORE + 1):
        recordings.run("recorded", compute, [torch.ones(1)])
    monkeypatch.setattr(Recordings, "_record", full)
    for n in range(RUNS_BEFORE + 3):
        recordings.run("no room", compute, [torch.ones(1)])
        assert compute.times == RUNS_BEFORE + 1 + n + 1
    monkeypatch.setattr(Recordings, "_record", lambda *_: pytest.fail("recorded on a device that was full"))
    before = compute.times
    for _ in range(RUNS_BEFORE + 2):
        recordings.run("recorded", compute, [torch.ones(1)])
    assert compute.times == before + RUNS_BEFORE + 2  # the graph was given up for room
    assert not recordings.forget()
