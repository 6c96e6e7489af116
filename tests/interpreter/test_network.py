"""The VSS block against its equations, and the interpreter for any FeatureSpec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from interpreter.errors import ConfigurationError
from interpreter.network import Interpreter, InterpreterConfig
from interpreter.vss import VssBlock
from store import Block, FeatureSpec
from tests.conftest import changed
from tests.interpreter.test_scan import by_hand


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def vss_by_hand(x: np.ndarray, p: dict[str, np.ndarray], gate: bool) -> np.ndarray:
    """VMamba's equations for one map (c, h, w), pixel by pixel."""
    _, h, w = x.shape
    d = p["conv.weight"].shape[0]
    n, r = p["scan.A_log"].shape[1], p["scan.delta_weight"].shape[2]
    pixels = layer_norm(x.transpose(1, 2, 0), p["norm.weight"], p["norm.bias"]) @ p["in_proj.weight"].T
    inner = pixels[..., :d]
    padded = np.pad(inner, ((1, 1), (1, 1), (0, 0)))
    convolved = np.zeros((h, w, d))
    for i in range(h):
        for j in range(w):
            window = padded[i : i + 3, j : j + 3]
            convolved[i, j] = (window * p["conv.weight"][:, 0].transpose(1, 2, 0)).sum((0, 1)) + p["conv.bias"]
    convolved = convolved * sigmoid(convolved)
    rows = [(i, j) for i in range(h) for j in range(w)]
    columns = [(i, j) for j in range(w) for i in range(h)]
    merged = np.zeros((h, w, d))
    for k, path in enumerate((rows, columns, rows[::-1], columns[::-1])):
        u = np.stack([convolved[i, j] for i, j in path], axis=1)[None]  # (1, d, l)
        mixed = np.einsum("bdl,md->bml", u, p["scan.project"][k])
        delta = np.einsum("brl,dr->bdl", mixed[:, :r], p["scan.delta_weight"][k])
        B, C = mixed[:, None, r : r + n], mixed[:, None, r + n :]
        A = -np.exp(p["scan.A_log"][k * d : (k + 1) * d])
        y = by_hand(u, delta, A, B, C, p["scan.D"][k * d : (k + 1) * d], p["scan.delta_bias"][k])
        for position, (i, j) in enumerate(path):
            merged[i, j] += y[0, :, position]
    out = layer_norm(merged, p["out_norm.weight"], p["out_norm.bias"])
    if gate:
        z = pixels[..., d:]
        out = out * z * sigmoid(z)
    return x + (out @ p["out_proj.weight"].T).transpose(2, 0, 1)


@pytest.mark.parametrize("variant", ["v0", "v05"])
def test_the_vss_block_is_vmambas_arithmetic(variant: str) -> None:
    torch.manual_seed(0)
    block = VssBlock(6, variant).eval()  # type: ignore[arg-type]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 6, 4, 5)
    parameters = {name: value.detach().double().numpy() for name, value in block.state_dict().items()}
    expected = np.stack([vss_by_hand(one, parameters, variant == "v0") for one in x.double().numpy()])
    found = block(x).detach().numpy()
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_drop_path_skips_whole_images_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = VssBlock(4, drop_path=0.5), torch.randn(64, 4, 2, 2)
    skipped = (block(x) == x).flatten(1).all(dim=1)
    assert 10 < int(skipped.sum()) < 54
    block.eval()
    assert not (block(x) == x).flatten(1).all(dim=1).any()


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
    assert small.parameter_count < large.parameter_count


def test_wrong_settings_are_refused(spec: FeatureSpec) -> None:
    oblong = changed(spec, blocks=(Block(name="block_0", channels=4, height=8, width=16),))
    with pytest.raises(ConfigurationError, match="block_0 is 8 x 16"):
        Interpreter(oblong, InterpreterConfig())
    with pytest.raises(ValidationError, match="classes"):
        InterpreterConfig(classes=1)
