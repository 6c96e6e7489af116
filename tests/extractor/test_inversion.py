"""The inversion against a closed form, and what it refuses.

For Gaussian data of standard deviation s the ideal network is linear, x0_hat = k x with
k = sqrt(a) s^2 / (a s^2 + 1 - a), and the walk is known: x_t = x_0 sqrt(a_t s^2 + 1 - a_t) / s where the
walk starts. DDIM is first order in the number of steps against it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput

from extractor.architectures import plain_unet, tiny_unet
from extractor.backbone import Backbone
from extractor.backbone_cli import preprocessing_for
from extractor.backbone_folder import load_backbone, save_backbone
from extractor.diffusion import Diffusion, Prediction
from extractor.errors import BackboneError, NonFiniteActivation, ScheduleError
from extractor.inversion import anchor, diffuse, invert, reconstruct, residual
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from store.manifest import Manifest, seal
from store.spec import Preprocessing

S = 0.5


def gaussian(prediction: Prediction) -> Backbone:
    """The ideal network for Gaussian data, in place of the U-Net's own computation."""
    unet, diffusion = build_unet(tiny_unet()), Diffusion(noise_schedule("cosine-1000"), prediction)

    def ideal(x: torch.Tensor, timesteps: torch.Tensor, class_labels: None = None) -> UNet2DOutput:
        assert class_labels is None
        a = float(diffusion.schedule.alphas_cumprod[int(timesteps[0])])
        x0 = a**0.5 * S**2 / (a * S**2 + 1 - a) * x.double()
        noise = (x.double() - a**0.5 * x0) / (1 - a) ** 0.5
        velocity = a**0.5 * noise - (1 - a) ** 0.5 * x0
        told = {"sample": x0, "epsilon": noise, "v_prediction": velocity}[prediction]
        return UNet2DOutput(sample=told.float())

    unet.forward = ideal  # type: ignore[method-assign]
    return Backbone(unet, diffusion, tiny_unet())


def final_error(steps: int) -> float:
    backbone = gaussian("epsilon")
    grid = [int(t) for t in np.unique(np.linspace(10, 800, steps).astype(int))]
    x0 = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    last = list(invert(backbone, x0, grid, ()))[-1]
    a, a0 = (float(backbone.schedule.alphas_cumprod[t]) for t in (grid[-1], grid[0]))
    exact = x0 * ((a * S**2 + 1 - a) / (a0 * S**2 + 1 - a0)) ** 0.5
    return float((last.x - exact).abs().max() / exact.abs().max())


def test_inversion_converges_to_the_closed_form_at_first_order() -> None:
    errors = [final_error(steps) for steps in (20, 40, 80)]
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.4


def test_all_predictions_walk_the_same_way() -> None:
    x0 = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    ends = [list(invert(gaussian(p), x0, (10, 100, 500), ()))[-1].x for p in ("epsilon", "sample", "v_prediction")]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-4, atol=1e-5)


def test_walking_back_down_returns_to_the_image() -> None:
    backbone = gaussian("v_prediction")
    grid = list(range(5, 400, 3))
    x0 = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    forwards: list[None] = []
    with backbone.unet.register_forward_hook(lambda *_: forwards.append(None)):
        last = list(invert(backbone, x0, grid, ()))[-1]
        assert len(forwards) == len(grid) - 1  # the way back computes the estimate at the top
        assert float((reconstruct(backbone, last.x, grid) - x0).abs().max()) < 0.05


def test_the_residual_is_what_the_ideal_network_shrinks_away() -> None:
    """x0_hat = k x at the first step, where x is the image: it misses (1 - k) x0, where it is asked about."""
    backbone = gaussian("epsilon")
    x0 = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, :4], inside[1, :, 2:5] = True, True
    first = next(invert(backbone, x0, (300, 500), ()))
    assert first.x0_hat is not None
    a = float(backbone.schedule.alphas_cumprod[300])
    missed = (1 - a**0.5 * S**2 / (a * S**2 + 1 - a)) ** 2
    expected = [missed * x0[0, :, :4].square().mean(), missed * x0[1, :, :, 2:5].square().mean()]
    torch.testing.assert_close(residual(first.x0_hat, x0, inside), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert residual(first.x0_hat, x0, inside & False).tolist() == [0, 0]


def test_a_block_that_is_not_there_is_told(backbone: Backbone) -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(BackboneError, match="no block block_99 here; this backbone has block_0"):
        backbone.estimate(x, 7, ["block_0", "block_99"], features_only=True)
    with pytest.raises(BackboneError, match="no block block_99"):
        backbone.features(x, [7], ["block_99"])


def test_one_forward_for_each_step_and_none_behind_the_last_block(backbone: Backbone) -> None:
    calls: list[str] = []
    handles = [
        backbone.unet.conv_in.register_forward_hook(lambda *_: calls.append("in")),
        backbone.unet.conv_out.register_forward_hook(lambda *_: calls.append("out")),
    ]
    steps = list(invert(backbone, torch.zeros(2, 3, 32, 32), (1, 10, 100), ["block_2"], keep=(1, 100)))
    for handle in handles:
        handle.remove()
    assert [(step.t, list(step.features)) for step in steps] == [(1, ["block_2"]), (10, []), (100, ["block_2"])]
    assert calls == ["in", "out", "in", "out", "in"]
    assert steps[0].features["block_2"].shape == (2, 8, 32, 32)


def test_anchored_keeps_the_image_and_stochastic_adds_the_noise(backbone: Backbone) -> None:
    x0, noise = torch.full((1, 3, 32, 32), 0.5), torch.ones(1, 3, 32, 32)
    assert all((step.x == x0).all() for step in anchor(backbone, x0, (1, 100), ["block_0"]))
    steps = list(diffuse(backbone, x0, (1, 100), ["block_0"], noise))
    a = backbone.schedule.alphas_cumprod[100]
    assert float(steps[1].x[0, 0, 0, 0]) == pytest.approx(a**0.5 * 0.5 + (1 - a) ** 0.5)


@pytest.mark.parametrize(
    ("grid", "message"), [((10, 1), "strictly increasing"), ((), "strictly increasing"), ((1, 200), r"within 0\.\.199")]
)
def test_wrong_grids_are_refused(backbone: Backbone, grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        list(invert(backbone, torch.zeros(1, 3, 32, 32), grid, ()))


@pytest.mark.parametrize("name", ["cosine", "spiral-100", "cosine-1", "linear-x"])
def test_unknown_schedules_are_refused(name: str) -> None:
    with pytest.raises(ScheduleError, match="unknown noise schedule"):
        noise_schedule(name)


def test_non_finite_features_stop_with_the_name_of_their_block() -> None:
    broken = Backbone(build_unet(tiny_unet()), Diffusion(noise_schedule("cosine-200")), tiny_unet())
    broken.unet.up_blocks[1].resnets[0].conv1.weight[0] = torch.inf
    with pytest.raises(NonFiniteActivation, match="block_2 at timestep 10"):
        list(invert(broken, torch.zeros(1, 3, 32, 32), (10, 20), ["block_0", "block_2"]))
    with pytest.raises(NonFiniteActivation, match="output at timestep 10"):
        list(invert(broken, torch.zeros(1, 3, 32, 32), (10, 20), ["block_0"]))


def test_blocks_by_name_or_index(backbone: Backbone) -> None:
    blocks = backbone.blocks([2, "block_0"], 64)
    assert [(b.name, b.channels, b.height) for b in blocks] == [("block_0", 16, 32), ("block_2", 8, 64)]
    with pytest.raises(BackboneError, match=r"no block block_9 here; this backbone has block_0 \.\. block_3"):
        backbone.blocks([9], 64)
    with pytest.raises(BackboneError, match="not a multiple of the network's stride 2"):
        backbone.blocks([0], 33)


def test_a_network_of_other_than_colour_photographs_is_refused() -> None:
    config = tiny_unet() | {"in_channels": 6}
    with pytest.raises(BackboneError, match="6 input and 3 output channels; expected a network for colour photographs"):
        Backbone(build_unet(config), Diffusion(noise_schedule("cosine-1000"), "epsilon"), config)


def test_blocks_of_a_network_that_norms_each_channel_by_itself() -> None:
    config = plain_unet((4, 4, 4), norm_groups=4)
    backbone = Backbone(build_unet(config), Diffusion(noise_schedule("cosine-1000"), "epsilon"), config)
    assert [(one.height, one.width) for one in backbone.blocks([0, 1, 2, 4], 16)] == [(4, 4), (8, 8), (8, 8), (16, 16)]


def test_half_precision_is_close(backbone: Backbone) -> None:
    x0 = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half = Backbone(backbone.unet, backbone.diffusion, backbone.config, "bfloat16")
    exact, rounded = (list(invert(b, x0, (1, 10, 100), ["block_2"])) for b in (backbone, half))
    assert rounded[-1].x.dtype == torch.float32
    difference = (rounded[-1].features["block_2"].float() - exact[-1].features["block_2"]).abs().max()
    assert 0 < float(difference) < 0.1 * float(exact[-1].features["block_2"].abs().max())


@pytest.mark.parametrize("changes", [{"trained_betas": [0.1, 0.2]}, {"rescale_betas_zero_snr": True}])
def test_schedules_that_were_changed_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match=f"changed by {next(iter(changes))}"):
        Diffusion.from_json({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"} | changes)


@pytest.mark.parametrize("name", ["linear-4000", "linear-1000", "cosine-4000"])
def test_diffusers_reads_the_schedule_that_is_saved(name: str) -> None:
    diffusion = Diffusion(noise_schedule(name), "v_prediction")
    theirs = DDIMScheduler.from_config(diffusion.to_json())
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), diffusion.schedule.alphas_cumprod, rtol=1e-3, atol=1e-7)
    assert (theirs.config.clip_sample, theirs.config.prediction_type) == (False, "v_prediction")
    assert Diffusion.from_json(diffusion.to_json()).schedule.name == name


def test_a_folder_of_diffusers_own_making_is_read(tmp_path: Any) -> None:
    unet = UNet2DModel(**tiny_unet())
    unet.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"scheduler_config.json: cannot be read"):
        load_backbone(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "linear", "num_train_timesteps": 1000}')
    loaded = load_backbone(tmp_path)
    assert loaded.schedule.name == "linear-1000"
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.raw_output(x, 7), unet(x, 7).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("scheduler_config.json", '{"beta_schedule": "scaled_linear"}', "scaled_linear"),
        ("scheduler_config.json", '{"beta_schedule": "linear", "beta_end": 0.5}', "from 0.0001 to 0.5"),
        ("scheduler_config.json", '{"prediction_type": "flow"}', "prediction_type"),
        ("config.json", "{", "not JSON"),
        ("config.json", '{"block_out_channels": [8], "rubbish": 1}', "not the configuration of a UNet2DModel"),
        ("diffusion_pytorch_model.safetensors", "rubbish", "the weights do not fit"),
    ],
)
def test_damaged_backbones_are_refused(backbone: Backbone, tmp_path: Any, file: str, text: str, message: str) -> None:
    save_backbone(backbone, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(BackboneError, match=message):
        load_backbone(tmp_path)


def test_a_backbone_remembers_how_its_photographs_were_prepared(tmp_path: Path) -> None:
    config = tiny_unet()
    diffusion = Diffusion(noise_schedule("cosine-4000"))
    plain = Backbone(build_unet(config), diffusion, config, preprocessing=Preprocessing(clahe=None))
    save_backbone(plain, tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.preprocessing == loaded.untrained_copy().preprocessing == Preprocessing(clahe=None)
    assert preprocessing_for(loaded, None) == Preprocessing(clahe=None)
    assert preprocessing_for(loaded, "fundus") == Preprocessing()
    (tmp_path / "preprocessing.json").write_text('{"interpolation": "sinc"}')
    with pytest.raises(BackboneError, match=r"preprocessing\.json.*this version"):
        load_backbone(tmp_path)
    save_backbone(plain, tmp_path)
    seal(tmp_path, Manifest(summary="a network"))
    (tmp_path / "preprocessing.json").unlink()
    with pytest.raises(BackboneError, match=r"preprocessing\.json"):
        load_backbone(tmp_path)
    (tmp_path / "manifest.json").unlink()
    # In its place, one that nobody knows that of.
    save_backbone(Backbone(build_unet(config), diffusion, config), tmp_path)
    assert load_backbone(tmp_path).preprocessing is None
    assert preprocessing_for(load_backbone(tmp_path), None) == Preprocessing()


def test_neither_folder_nor_hub_id() -> None:
    with pytest.raises(BackboneError, match="not a hub id"):
        load_backbone("nowhere")
