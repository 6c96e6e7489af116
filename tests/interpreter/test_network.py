"""The interpreter for any FeatureSpec, its heads and its size."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from extractor.preprocess import Framed
from interpreter.checkpoint import CARD_FILE, WEIGHTS_FILE, Card, load_interpreter, save_interpreter
from interpreter.config import HeadName, InterpreterConfig
from interpreter.counting import cost_of, scan_flops
from interpreter.cropping import crop_maps
from interpreter.errors import ConfigurationError, ScanUnavailable
from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.mlp import MlpEnsemble, _features
from interpreter.heads.photometric import photometric_change
from interpreter.network import Interpreter
from interpreter.prediction import predict
from interpreter.standardising import moments_of
from interpreter.task import Task
from store import AffineEncoding, Block, Encoded, FeatureSpec, FloatEncoding
from store.codecs import FloatCodec
from store.geometry import Geometry
from store.pixels import PIXELS, spec_of_pixels
from store.spec import PREPROCESSINGS
from tests.conftest import changed, draw_fundus

WHOLE = np.ones((32, 32), dtype=np.bool_)
EACH = np.ones((3, 32, 32), dtype=np.bool_)


def features(spec: FeatureSpec, b: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m.name: torch.randn(b, m.channels, m.height, m.width, generator=generator).half() for m in spec.blocks}


@pytest.mark.parametrize(
    "sizes",
    [((4, 12, 8), (5, 6, 16), (6, 8, 32)), ((0, 8, 16),), ((1, 6, 16), (2, 6, 16), (3, 3, 32))],
)
def test_it_is_built_for_any_spec(spec: FeatureSpec, sizes: tuple[tuple[int, int, int], ...]) -> None:
    blocks = tuple(Block(name=f"block_{k}", channels=c, height=s, width=s) for k, c, s in sizes)
    other = changed(spec, blocks=blocks)
    for vss in ("v0", "v05"):
        network = Interpreter(other, InterpreterConfig(classes=3, vss=vss))  # type: ignore[arg-type]
        logits = network(features(other), torch.tensor([1, 100]))
        assert logits.shape == (2, 3, 32, 32)
        assert logits.dtype == torch.float32
        logits.sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_the_timestep_reaches_every_level(spec: FeatureSpec) -> None:
    network = Interpreter(spec, InterpreterConfig()).eval()
    maps = features(spec)
    one, other = network(maps, torch.tensor([1, 1])), network(maps, torch.tensor([100, 100]))
    assert not torch.allclose(one, other)


def test_images_of_a_batch_do_not_touch_each_other(spec: FeatureSpec) -> None:
    network = Interpreter(spec, InterpreterConfig()).eval()
    maps, t = features(spec, 3), torch.tensor([1, 10, 100])
    together = network(maps, t)
    alone = network({name: m[1:2] for name, m in maps.items()}, t[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_large_levels_go_without_vss(spec: FeatureSpec) -> None:
    small = Interpreter(spec, InterpreterConfig(vss_max_size=0))
    large = Interpreter(spec, InterpreterConfig(vss_max_size=512))
    assert (small.scan, large.scan) == (None, "numba")
    large.use_scan("torch")
    assert large.scan == "torch"
    assert small.parameter_count < large.parameter_count


@pytest.mark.parametrize(("multiplier", "at_most", "widths"), [(1, 64, [24, 8]), (2, 64, [48, 16]), (3, 40, [40, 24])])
def test_levels_are_so_many_times_as_wide_as_their_maps(
    spec: FeatureSpec, multiplier: int, at_most: int, widths: list[int]
) -> None:
    blocks = tuple(Block(name=f"block_{i}", channels=8 + 16 * (i == 0), height=8 << i, width=8 << i) for i in range(2))
    config = InterpreterConfig(width_multiplier=multiplier, max_width=at_most, vss_max_size=0)
    head = Interpreter(changed(spec, blocks=blocks), config).head
    assert isinstance(head, AdaptiveHead)
    assert [entry.out_channels for entry in head.entries.values()] == widths  # type: ignore[union-attr]


def test_wrong_settings_are_refused(spec: FeatureSpec) -> None:
    oblong = changed(spec, blocks=(Block(name="block_0", channels=4, height=8, width=16),))
    with pytest.raises(ConfigurationError, match="block_0 is 8 x 16"):
        Interpreter(oblong, InterpreterConfig())
    with pytest.raises(ValidationError, match="classes"):
        InterpreterConfig(classes=1)


def test_an_interpreter_from_before_there_were_heads_loads(spec: FeatureSpec, tmp_path: Path) -> None:
    network = Interpreter(spec, InterpreterConfig())
    task = Task(name="vessels", targets=("mask",))
    save_interpreter(tmp_path, network, Card(spec=spec, backbone="x", task=task, config=network.config))
    weights = load_file(tmp_path / WEIGHTS_FILE)
    save_file({name.removeprefix("head."): value for name, value in weights.items()}, tmp_path / WEIGHTS_FILE)
    plain = json.loads((tmp_path / CARD_FILE).read_text())
    del plain["temperature"], plain["config"]["head"], plain["config"]["overlapping"], plain["task"]["overlapping"]
    del plain["config"]["standardise"], plain["config"]["width_multiplier"]
    (tmp_path / CARD_FILE).write_text(json.dumps(plain))
    old, card = load_interpreter(tmp_path)
    assert (old.config.head, old.temperature, card.task.overlapping) == ("adaptive", 1.0, False)
    assert not old.config.standardise
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(old.parameters(), network.parameters(), strict=True))


def test_weights_beyond_half_precision_are_saved_as_they_are(spec: FeatureSpec, tmp_path: Path) -> None:
    network = Interpreter(spec, InterpreterConfig())
    large = next(network.parameters())
    with torch.no_grad():
        large[0] = 1e5
    task = Task(name="vessels", targets=("mask",))
    save_interpreter(tmp_path, network, Card(spec=spec, backbone="x", task=task, config=network.config))
    assert torch.equal(next(load_interpreter(tmp_path)[0].parameters()), large)


@pytest.mark.parametrize("head", ["adaptive", "joint", "mlp"])
@pytest.mark.parametrize("overlapping", [False, True])
def test_heads_are_built_saved_and_loaded_by_name(
    spec: FeatureSpec, tmp_path: Path, head: HeadName, overlapping: bool
) -> None:
    torch.manual_seed(0)
    config = InterpreterConfig(classes=3, head=head, overlapping=overlapping)
    network = Interpreter(spec, config).eval()
    task = Task(name="x", targets=("a", "b"), overlapping=overlapping)
    card = Card(spec=spec, backbone="x", task=task, config=config, temperature=2.5)
    save_interpreter(tmp_path, network, card)
    loaded, read = load_interpreter(tmp_path)
    assert (read.config, loaded.temperature) == (config, 2.5)
    generator = np.random.default_rng(0)
    maps = {
        b.name: Encoded(generator.standard_normal((3, b.channels, b.height, b.width)).astype("f4")) for b in spec.blocks
    }
    prediction = predict(loaded, maps, WHOLE)
    assert len(prediction.labels_by_voter) == len(loaded.voters) == {"adaptive": 3, "joint": 1, "mlp": 10}[head]
    assert prediction.probabilities.shape == (3, 32, 32)
    exact = torch.cat(list(network.votes(maps, WHOLE)))
    assert exact.shape == (len(loaded.voters), 2 if overlapping else 3, 32, 32)
    torch.testing.assert_close(torch.cat(list(loaded.votes(maps, WHOLE))), exact, rtol=0.02, atol=0.02)


def stored(spec: FeatureSpec, camera: int) -> dict[str, Encoded]:
    """int8 maps of one photograph; a camera is a gain and an offset of each channel of each timestep."""
    maps, of_camera = {}, np.random.default_rng(camera)
    for number, block in enumerate(spec.blocks):
        shape = (len(spec.timesteps), block.channels, block.height, block.width)
        values = np.random.default_rng(number).integers(-128, 128, shape).astype(np.int8)
        gain, offset = of_camera.uniform(0.5, 2, shape[:2]), of_camera.normal(0, 10, shape[:2])
        maps[block.name] = Encoded(values, gain.astype("f4"), offset.astype("f4"))
    return maps


@pytest.mark.parametrize("head", ["adaptive", "joint", "mlp"])
def test_a_standardised_interpreter_does_not_see_what_a_camera_does_to_whole_channels(
    spec: FeatureSpec, head: HeadName
) -> None:
    spec = changed(spec, encoding=AffineEncoding())
    torch.manual_seed(0)
    usual = Interpreter(spec, InterpreterConfig(head=head)).eval()
    alike = Interpreter(spec, InterpreterConfig(head=head, standardise=True)).eval()
    one, other = stored(spec, 0), stored(spec, 1)
    torch.testing.assert_close(
        torch.cat([*alike.votes(one, WHOLE)]), torch.cat([*alike.votes(other, WHOLE)]), rtol=1e-3, atol=1e-3
    )
    assert not torch.allclose(
        torch.cat([*usual.votes(one, WHOLE)]), torch.cat([*usual.votes(other, WHOLE)]), rtol=0.1, atol=0.1
    )
    for maps in alike.decoded(one, alike.moments(one, EACH)).values():
        variance, mean = torch.var_mean(maps, dim=(-2, -1), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)


def test_windows_are_standardised_as_their_photograph_is(spec: FeatureSpec) -> None:
    spec = changed(spec, encoding=AffineEncoding())
    network, maps = Interpreter(spec, InterpreterConfig(standardise=True)), stored(spec, 0)
    moments, half = network.moments(maps, EACH), spec.resolution // 2
    whole = network.decoded(maps, moments)
    windows = crop_maps(maps, [(half, 0)] * len(spec.timesteps), half, spec.resolution)
    for name, window in network.decoded(windows, moments).items():
        side = window.shape[-1]
        assert torch.equal(window, whole[name][..., side:, :side])


def test_moments_of_large_maps_are_those_of_a_grid_of_their_places() -> None:
    codec, side = FloatCodec(FloatEncoding(kind="float32")), 256
    values = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype("f4")
    fov = np.tri(2 * side, dtype=np.bool_)[None].repeat(2, 0)  # below the diagonal
    fov[1] = fov[1, :, ::-1]
    mean, deviation = moments_of("block_0", Encoded(values), codec, fov)
    assert mean.shape == deviation.shape == (2, 3, 1, 1)
    for i in range(2):
        inside = fov[i, 1::2, 1::2][::2, ::2]
        looked_at = values[i, :, ::2, ::2][:, inside]
        np.testing.assert_allclose(mean[i].flatten(), looked_at.mean(1), atol=1e-5)
        np.testing.assert_allclose(deviation[i].flatten(), looked_at.std(1), rtol=1e-4)
    odd = moments_of("block_0", Encoded(values[..., :192, :192]), codec, np.ones((2, 192, 192), dtype=np.bool_))
    np.testing.assert_allclose(odd.mean[..., 0, 0], values[..., :192:2, :192:2].mean((-2, -1)), atol=1e-5)


def test_what_surrounds_the_field_of_view_has_no_part_in_the_moments(spec: FeatureSpec) -> None:
    spec = changed(spec, encoding=AffineEncoding())
    network, maps = Interpreter(spec, InterpreterConfig(standardise=True)), stored(spec, 0)
    fov = EACH.copy()
    fov[1, :, 16:] = False  # of the second alone the left half counts
    fov[2] = False  # nothing counts: then all of it
    some, every = network.moments(maps, fov), network.moments(maps, EACH)
    assert some is not None and every is not None
    for name, stored_maps in maps.items():
        half = stored_maps.values.shape[-1] // 2
        left = network.codec.decode(name, stored_maps)[1, ..., :half]
        torch.testing.assert_close(some[name][0][1, :, 0, 0], left.mean((-2, -1)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(some[name][1][1, :, 0, 0], left.std((-2, -1), correction=0), rtol=1e-4, atol=1e-4)
        for i in (0, 2):
            assert torch.equal(some[name][0][i], every[name][0][i])


def test_a_channel_that_says_nothing_is_not_blown_up() -> None:
    codec, places = FloatCodec(FloatEncoding(kind="float32")), np.linspace(-1, 1, 32)
    fov = (places[:, None] ** 2 + places**2 < 1)[None]
    values = np.where(fov, 30.3, 31.3).astype("f4")[:, None]  # all it varies by is the surround
    standardised = moments_of("block_0", Encoded(values), codec, fov).standardised(torch.from_numpy(values))[0, 0]
    assert standardised[torch.from_numpy(fov[0])].abs().max() < 0.01
    assert standardised.abs().max() < 1000


def test_photographs_are_not_standardised(spec: FeatureSpec) -> None:
    with pytest.raises(ConfigurationError, match="only features are standardised"):
        Interpreter(
            spec_of_pixels(spec.resolution, spec.preprocessing), InterpreterConfig(head="unet", standardise=True)
        )


def test_what_reads_all_timesteps_votes_as_it_learns(spec: FeatureSpec) -> None:
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig(head="joint", vss_max_size=0)).eval()
    steps = [features(spec, 1), {name: -m for name, m in features(spec, 1).items()}, features(spec, 1)]
    maps = {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}
    seen: list[torch.Tensor] = []

    def measure(logits: torch.Tensor, _truth: torch.Tensor, _inside: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return logits.sum()

    side = spec.resolution
    with torch.no_grad():
        network.head.loss(maps, torch.zeros(1, 3), torch.zeros(1, side, side), torch.ones(1, side, side), measure)
        (vote,) = network.head.votes(steps.__getitem__, spec.timesteps)
        (exchanged,) = network.head.votes([steps[1], steps[0], steps[2]].__getitem__, spec.timesteps)
    torch.testing.assert_close(vote, seen[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(exchanged, vote, rtol=0.1, atol=0.1)
    alone = Interpreter(spec, InterpreterConfig(vss_max_size=0))
    shapes = [{n: w.shape for n, w in one.named_parameters() if "entries" not in n} for one in (network, alone)]
    assert shapes[0] == shapes[1]


def test_the_mlps_read_what_upsampling_and_concatenating_gives(spec: FeatureSpec) -> None:
    head = Interpreter(spec, InterpreterConfig(head="mlp")).head
    assert isinstance(head, MlpEnsemble)
    maps = {b.name: torch.randn(2, 3, b.channels, b.height, b.width) for b in spec.blocks}
    pixels = torch.arange(32 * 32)[None].expand(2, -1)
    whole = torch.cat(
        [torch.nn.functional.interpolate(m.flatten(1, 2), size=(32, 32), mode="bilinear") for m in maps.values()], dim=1
    )
    torch.testing.assert_close(
        _features(head._planes(maps), pixels, spec.resolution), whole.flatten(2).movedim(1, 2), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rows", [8, 64])
def test_the_mlps_vote_as_they_classify_pixels_in_training(
    spec: FeatureSpec, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpreter.heads.mlp.ROWS", rows)
    torch.manual_seed(0)
    head = Interpreter(spec, InterpreterConfig(head="mlp", classes=3)).head.eval()
    assert isinstance(head, MlpEnsemble)
    steps = [{b.name: torch.randn(1, b.channels, b.height, b.width) for b in spec.blocks} for _ in spec.timesteps]
    maps = {b.name: torch.stack([step[b.name] for step in steps], dim=1) for b in spec.blocks}
    features = _features(head._planes(maps), torch.arange(32 * 32)[None], 32)[0]
    with torch.no_grad():
        expected = torch.stack([model(features).T.unflatten(1, (32, 32)) for model in head.models])
        found = torch.cat(list(head.votes(steps.__getitem__, spec.timesteps)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_unet_holds_pixels_only(spec: FeatureSpec) -> None:
    with pytest.raises(ConfigurationError, match="the head 'unet' reads photographs"):
        Interpreter(spec, InterpreterConfig(head="unet"))
    network = Interpreter(spec_of_pixels(spec.resolution, spec.preprocessing), InterpreterConfig(head="unet"))
    assert 1e5 < network.parameter_count < 4e5  # about an interpreter's
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    x[:, :, :4] = -1
    changed_pixels = photometric_change(x)
    assert not torch.allclose(changed_pixels, x)
    assert (changed_pixels[:, :, :3] == -1).all()
    assert changed_pixels.abs().max() <= 1


def test_a_photograph_without_colour_is_given_none() -> None:
    fundus = draw_fundus(64)[0]
    framed = Framed(cv2.resize(fundus, (64, 64)), np.ones((64, 64), np.bool_), Geometry.whole(64, 64, 64))
    x = torch.cat([framed.shown(PREPROCESSINGS[name]()).x0 for name in ("fundus", "red-free")])
    assert x[1].amax(dim=0).sub(x[1].amin(dim=0)).max() > 0  # by rounding

    def green_over_red(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels[:, 1] + 1.01) / (pixels[:, 0] + 1.01)).flatten(1).median(dim=1).values

    torch.manual_seed(0)
    before, after = green_over_red(x), green_over_red(photometric_change(x))
    assert (after[0] / before[0] - 1).abs() > 0.05
    assert after[1] == pytest.approx(1, abs=0.02)


def test_the_control_on_photographs_is_an_interpreter_of_as_many_weights(spec: FeatureSpec) -> None:
    with pytest.raises(ConfigurationError, match="the head 'pyramid' reads photographs"):
        Interpreter(spec, InterpreterConfig(head="pyramid"))
    _, card = load_interpreter("vessels_base")
    config = card.config.model_copy(update={"head": "pyramid", "standardise": False})
    control = Interpreter(spec_of_pixels(card.spec.resolution, card.spec.preprocessing), config)
    theirs, ours = (
        Interpreter(card.spec, card.config).parameter_count,
        control.parameter_count,
    )
    assert 0.8 < ours / theirs < 1.2
    assert sorted(control.head.levels) == [64, 128, 256, 512]  # type: ignore[operator,arg-type]
    tiny = Interpreter(spec_of_pixels(spec.resolution, spec.preprocessing), InterpreterConfig(head="pyramid")).eval()
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    x.requires_grad_()
    tiny(({PIXELS: x}), torch.tensor([0]))[0, 1, 16, 16].backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=1)[0, 2, 16] > 0  # far away, which one level of two convolutions does not see


@pytest.mark.parametrize("head", ["unet", "pyramid", "adaptive"])
def test_whatever_holds_pixels_sees_each_anew(spec: FeatureSpec, head: HeadName) -> None:
    network = Interpreter(spec_of_pixels(spec.resolution, spec.preprocessing), InterpreterConfig(head=head))
    x = torch.rand(2, 3, 32, 32)
    first, second = (network.head.augment({PIXELS: x})[PIXELS] for _ in range(2))
    assert not torch.allclose(first, second)
    cached = features(spec)
    assert Interpreter(spec, InterpreterConfig()).head.augment(cached) is cached


def test_the_cost_is_what_a_count_by_hand_gives(spec: FeatureSpec) -> None:
    one = changed(spec, blocks=(Block(name="block_0", channels=8, height=16, width=16),), timesteps=(1,), grid=(1,))
    small = cost_of(Interpreter(one, InterpreterConfig(vss_max_size=0, time_width=8)))
    pixels = 16 * 16
    time = 2 * 2 * 8 * 8 + 2 * 2 * 8 * 16  # embedding, then scale and shift of two norms
    layers = 8 * 8 + 2 * (8 * 9 + 8 * 8) + 8 * 2
    assert small.flops == 2 * pixels * layers + time
    with_vss = cost_of(Interpreter(one, InterpreterConfig(vss_max_size=16, time_width=8)))
    assert with_vss.flops - small.flops > scan_flops(1, 4 * 16, pixels, 16)
    assert with_vss.parameters > small.parameters


def test_the_scan_can_be_forced(spec: FeatureSpec) -> None:
    network = Interpreter(spec, InterpreterConfig()).eval()
    maps, t = features(spec), torch.tensor([1, 100])
    fast = network(maps, t)
    network.use_scan("torch")
    torch.testing.assert_close(network(maps, t), fast, rtol=1e-4, atol=1e-5)
    network.use_scan("mamba_ssm")
    with pytest.raises(ScanUnavailable):
        network(maps, t)
