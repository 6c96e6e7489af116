"""Numbers of the original guided-diffusion code, reproduced from its own weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from extractor.backbone import Backbone
from extractor.backbone_folder import load_backbone, save_backbone
from extractor.diffusion import Diffusion
from extractor.errors import BackboneError, CheckpointError
from extractor.guided_diffusion import UnrecordedOptions, import_checkpoint, read_checkpoint
from extractor.inversion import Step, anchor, diffuse, invert, reconstruct
from extractor.schedule import noise_schedule

NAMES = ("eyepacs_tiny", "imagenet_tiny", "iddpm_tiny")
SPARSE = (1, 10, 100, 500)
TOLERANCE, TOLERANCE_DENSE = 2e-4, 1e-3
Expected = dict[str, np.ndarray]


def load_fixture(folder: Path, name: str) -> tuple[Backbone, Expected]:
    config = json.loads((folder / f"{name}.json").read_text())
    process = config["diffusion"]
    fixed_width = config["num_head_channels"] > 0
    unrecorded = UnrecordedOptions(
        head_channels=config["num_head_channels"] if fixed_width else None,
        heads=None if fixed_width else config["num_heads"],
        new_attention_order=config["use_new_attention_order"],
    )
    diffusion = Diffusion(
        noise_schedule(f"{process['noise_schedule']}-{process['steps']}"),
        "sample" if process["predict_xstart"] else "epsilon",
        process["rescale_timesteps"],
    )
    imported = import_checkpoint(load_file(folder / f"{name}.safetensors"), unrecorded, diffusion)
    # The numbers were made in PyTorch's default memory format; clipping magnifies rounding.
    same_rounding = Backbone(imported.unet, diffusion, imported.config, memory_format=torch.contiguous_format)
    with np.load(folder / f"{name}.npz") as file:
        return same_rounding, dict(file)


@pytest.fixture(scope="module", params=NAMES)
def fixture(request: pytest.FixtureRequest, shared: Path) -> tuple[Backbone, Expected]:
    return load_fixture(shared / "fixtures", request.param)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest difference over largest value; four numbers stand for mean, std, first and last value."""
    if expected.shape == (4,):
        values = found.double()
        found = torch.stack([values.mean(), values.std(), values.flatten()[0], values.flatten()[-1]])
    elif found.ndim == 4:
        found = found[: len(expected)]
    assert found.shape == expected.shape
    return float((found.numpy() - expected).__abs__().max() / np.abs(expected).max())


def worst_of(steps: list[Step], expected: Expected, prefix: str) -> dict[str, float]:
    """Largest relative error of each kind of number; insists that every expected one was compared."""
    worst: dict[str, float] = {}
    compared = set()
    for step in steps:
        found = {f"x_t/{step.t}": step.x, f"pred_xstart/{step.t}": step.x0_hat}
        found |= {f"features/{step.t}/{block}": maps for block, maps in step.features.items()}
        for key, tensor in found.items():
            if f"{prefix}/{key}" in expected and tensor is not None:
                kind = key.split("/")[0]
                worst[kind] = max(worst.get(kind, 0), relative_error(tensor, expected[f"{prefix}/{key}"]))
                compared.add(f"{prefix}/{key}")
    kinds = ("x_t", "pred_xstart", "features")
    assert compared == {key for key in expected if key.startswith(tuple(f"{prefix}/{kind}" for kind in kinds))}
    return worst


def test_the_schedule(fixture: tuple[Backbone, Expected]) -> None:
    backbone, expected = fixture
    np.testing.assert_allclose(backbone.schedule.alphas_cumprod, expected["alphas_cumprod"], rtol=1e-12)


def test_the_raw_output_square_and_not(fixture: tuple[Backbone, Expected]) -> None:
    backbone, expected = fixture
    compared = 0
    for key, output in expected.items():
        if key.startswith("forward/"):
            x = torch.from_numpy(expected["x0_rect" if "rect" in key else "x0"])
            t = int(key.split("/")[-2][1:])
            assert relative_error(backbone.raw_output(x, t), output) < 1e-5, key
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("clip", [False, True])
def test_inversion_over_the_sparse_grid(fixture: tuple[Backbone, Expected], clip: bool) -> None:
    backbone, expected = fixture
    prefix = f"ddim4_{'clip' if clip else 'noclip'}"
    x0 = torch.from_numpy(expected["x0"])
    steps = list(invert(backbone, x0, SPARSE, backbone.block_names, clip=clip, final_estimate=True))
    worst = worst_of(steps, expected, prefix)
    back = reconstruct(backbone, steps[-1].x, SPARSE, clip=clip)
    worst["reconstruction"] = relative_error(back, expected[f"{prefix}/reconstruction"])
    print(f"{prefix}: {worst}")
    assert max(worst.values()) < TOLERANCE


def test_inversion_over_the_dense_grid(fixture: tuple[Backbone, Expected]) -> None:
    backbone, expected = fixture
    grid = [int(t) for t in expected["ddim_dense/steps"]]
    x0 = torch.from_numpy(expected["x0"])
    steps = list(invert(backbone, x0, grid, backbone.block_names, final_estimate=True))
    worst = worst_of(steps, expected, "ddim_dense")
    worst["reconstruction"] = relative_error(
        reconstruct(backbone, steps[-1].x, grid), expected["ddim_dense/reconstruction"]
    )
    print(f"ddim_dense: {worst}")
    assert max(worst.values()) < TOLERANCE_DENSE


def test_anchored_and_stochastic(fixture: tuple[Backbone, Expected]) -> None:
    backbone, expected = fixture
    x0, noise = torch.from_numpy(expected["x0"]), torch.from_numpy(expected["stochastic/noise"])
    for prefix, steps in (
        ("anchored", anchor(backbone, x0, SPARSE, backbone.block_names)),
        ("stochastic", diffuse(backbone, x0[: len(noise)], SPARSE, backbone.block_names, noise)),
    ):
        asked = {int(key.split("/")[2]) for key in expected if key.startswith(f"{prefix}/features/")}
        worst = worst_of([step for step in steps if step.t in asked], expected, prefix)
        assert worst
        assert max(worst.values()) < TOLERANCE, prefix


def test_channels_last_agrees(shared: Path) -> None:
    backbone, expected = load_fixture(shared / "fixtures", "eyepacs_tiny")
    fast = Backbone(backbone.unet, backbone.diffusion, backbone.config)
    steps = list(invert(fast, torch.from_numpy(expected["x0"]), SPARSE, fast.block_names, final_estimate=True))
    assert max(worst_of(steps, expected, "ddim4_noclip").values()) < TOLERANCE


def reordered(weights: dict[str, torch.Tensor], head: int) -> dict[str, torch.Tensor]:
    """The same network as the original's new attention order stores it: (q k v, head, channel)."""
    changed = dict(weights)
    for name, tensor in weights.items():
        if ".qkv." in name:
            heads = tensor.shape[0] // (3 * head)
            changed[name] = tensor.reshape(heads, 3, head, -1).transpose(0, 1).reshape(tensor.shape)
    return changed


def test_both_attention_orders_give_the_same_network(shared: Path) -> None:
    weights = load_file(shared / "fixtures" / "eyepacs_tiny.safetensors")
    diffusion = Diffusion(noise_schedule("cosine-4000"), "sample")
    old = import_checkpoint(weights, UnrecordedOptions(32), diffusion)
    new = import_checkpoint(reordered(weights, 32), UnrecordedOptions(32, new_attention_order=True), diffusion)
    wrong = import_checkpoint(weights, UnrecordedOptions(32, new_attention_order=True), diffusion)
    assert old.fingerprint == new.fingerprint
    assert old.fingerprint != wrong.fingerprint


def test_an_imported_backbone_survives_its_folder(shared: Path, tmp_path: Path) -> None:
    imported, expected = load_fixture(shared / "fixtures", "imagenet_tiny")
    save_backbone(imported, tmp_path / "backbone", half=False)
    again = load_backbone(tmp_path / "backbone")
    assert again.fingerprint == imported.fingerprint
    assert again.config["base_width"] == 64
    x0 = torch.from_numpy(expected["x0"])
    assert relative_error(again.raw_output(x0, 100), expected["forward/t100/out"]) < 1e-5


def test_class_conditional_models_need_a_label(shared: Path) -> None:
    weights = load_file(shared / "fixtures" / "eyepacs_tiny.safetensors")
    weights["label_emb.weight"] = torch.randn(5, weights["time_embed.2.bias"].shape[0])
    with pytest.raises(BackboneError, match="conditioned on 5 classes"):
        import_checkpoint(weights, UnrecordedOptions(32), Diffusion(noise_schedule("cosine-4000")))
    outputs = []
    for label in (0, 1):
        diffusion = Diffusion(noise_schedule("cosine-4000"), "sample", class_label=label)
        backbone = import_checkpoint(weights, UnrecordedOptions(32), diffusion)
        outputs.append(backbone.raw_output(torch.zeros(1, 3, 32, 32), 10))
    assert not torch.allclose(outputs[0], outputs[1])


def test_what_does_not_fit_is_listed(shared: Path) -> None:
    weights = load_file(shared / "fixtures" / "eyepacs_tiny.safetensors")
    diffusion = Diffusion(noise_schedule("cosine-4000"), "sample")
    del weights["middle_block.0.in_layers.2.bias"]
    weights["surplus"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing +middle_block.0.in_layers.2.bias(.|\n)*left over +surplus"):
        import_checkpoint(weights, UnrecordedOptions(32), diffusion)
    with pytest.raises(CheckpointError, match="cannot be divided by 48"):
        import_checkpoint(load_file(shared / "fixtures" / "eyepacs_tiny.safetensors"), UnrecordedOptions(48), diffusion)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a file of weights alone"):
        read_checkpoint(tmp_path / "text.pt")
    torch.save({"step": 3}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="a dictionary of tensors"):
        read_checkpoint(tmp_path / "state.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a guided-diffusion U-Net"):
        import_checkpoint(
            read_checkpoint(tmp_path / "other.pt"), UnrecordedOptions(), Diffusion(noise_schedule("linear-1000"))
        )
