"""Encodings: what comes back is close to what went in, by the measure that each promises."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from store import (
    AffineEncoding,
    Codebook,
    DamagedEntry,
    FeatureSpec,
    FloatEncoding,
    MissingEntry,
    Moments,
    NonFiniteFeatures,
    SpecError,
    load_codebook,
)
from store.codebook import BlockCode, water_level
from store.codecs import AffineCodec, FloatCodec, TransformCodec, codec_for
from tests.store.conftest import coded, fitted, some_maps


@given(arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-100, 100, width=32)))
@settings(max_examples=50, deadline=None)
def test_int8_is_within_half_a_step_of_each_channels_range(maps: np.ndarray) -> None:
    codec = AffineCodec()
    back = codec.decode("block", codec.encode("block", torch.from_numpy(maps))).numpy()
    reach = np.ptp(maps, axis=(2, 3), keepdims=True)
    assert (np.abs(back - maps) <= reach / 255 * 0.51 + 1e-4).all()


def test_int8_keeps_the_ends_of_the_range() -> None:
    codec = AffineCodec()
    maps = torch.tensor([-3.0, 0.5, 7.0]).reshape(1, 1, 1, 3)
    encoded = codec.encode("block", maps)
    assert encoded.values.ravel().tolist()[::2] == [-128, 127]
    torch.testing.assert_close(codec.decode("block", encoded)[..., ::2], maps[..., ::2])


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.001, -300.0])
def test_int8_keeps_a_constant_channel(value: float) -> None:
    codec = AffineCodec()
    maps = torch.full((1, 2, 3, 3), value)
    torch.testing.assert_close(codec.decode("b", codec.encode("b", maps)), maps, rtol=0, atol=0)


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    random = np.random.default_rng(0)
    maps = (300 + 0.1 * random.normal(size=(2, 4, 64, 64))).astype(np.float32)
    moments = Moments(4)
    moments.add(maps)
    codec = TransformCodec(Codebook({"b": moments.fit(0.01)}))
    lost = (codec.decode("b", codec.encode("b", torch.from_numpy(maps))).numpy() - maps).var() / maps.var()
    assert lost < 0.012
    with pytest.raises(NonFiniteFeatures):
        moments.add(maps * np.nan)
    with pytest.raises(SpecError, match="no maps at all"):
        Moments(4).fit(0.01)


def test_float16_rounds_and_float32_keeps(spec: FeatureSpec) -> None:
    maps = some_maps(spec)["block_2"]
    half = FloatCodec(FloatEncoding(kind="float16"))
    torch.testing.assert_close(half.decode("b", half.encode("b", maps)), maps.half().float(), rtol=0, atol=0)
    exact = FloatCodec(FloatEncoding(kind="float32"))
    torch.testing.assert_close(exact.decode("b", exact.encode("b", maps)), maps, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 16, 64, 64), (2, 8, 40, 40), (1, 3, 5, 7), (1, 8, 1, 1), (3, 1, 9, 20)])
def test_int8_is_the_same_however_maps_lie_in_memory(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10
    maps[0, 0] = 0.25  # a channel without range
    side_by_side = maps.to(memory_format=torch.channels_last)
    codec = AffineCodec()
    planar, turned = codec.encode("b", maps), codec.encode("b", side_by_side)
    for a, b in zip(
        (planar.values, planar.scale, planar.offset), (turned.values, turned.scale, turned.offset), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert abs(codec.decode("b", planar) - maps).max() <= planar.scale.max() / 2 + 1e-5  # type: ignore[union-attr]
    for bad, place in itertools.product((np.nan, np.inf, -np.inf), (0, -1)):
        broken = side_by_side.clone()
        broken[place, place, place, place] = bad
        with pytest.raises(NonFiniteFeatures):
            codec.encode("b", broken)


@pytest.mark.parametrize("distortion", [0.005, 0.02, 0.1])
def test_compact_loses_the_share_of_variance_that_was_asked_for(spec: FeatureSpec, distortion: float) -> None:
    codec = TransformCodec(fitted(spec, distortion))
    for name, maps in some_maps(spec).items():
        lost = (codec.decode(name, codec.encode(name, maps)) - maps).square().mean()
        variance = (maps - maps.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
        assert 0.5 * distortion < lost / variance < 1.15 * distortion


def test_small_numbers_have_empty_high_bits() -> None:
    one = np.ones(1, np.float32)
    code = BlockCode(0 * one, one[:, None], one, np.array([3], np.uint8))
    codec = TransformCodec(Codebook({"b": code}))
    maps = torch.tensor([0.0, -1, 1, -2, 2, 3, -4, 4, -5, 99]).reshape(1, 1, 1, -1)
    encoded = codec.encode("b", maps)
    assert encoded.values.ravel().tolist() == [0, 1, 2, 3, 4, 6, 7, 6, 7, 6]  # three bits, cut off at -4 and 3
    assert codec.decode("b", encoded).ravel().tolist() == [0, -1, 1, -2, 2, 3, -4, 3, -4, 3]


def test_water_filling_matches_its_closed_form() -> None:
    variances = np.array([16.0, 4.0, 1.0, 0.25])
    assert water_level(variances, 4 * 0.2) == pytest.approx(0.2)  # below the smallest: all share alike
    assert water_level(variances, 3 * 0.5 + 0.25) == pytest.approx(0.5)  # the smallest is dropped
    bits = Moments(4)
    random = np.random.default_rng(0)
    bits.add((np.sqrt(variances)[:, None] * random.normal(size=(4, 100_000))).astype(np.float32)[:, :, None])
    code = bits.fit(1.75 / variances.sum())
    assert len(code.bits) == 3
    assert list(code.bits) == sorted(code.bits, reverse=True)
    np.testing.assert_allclose(code.step, np.sqrt(12 * 0.5), rtol=0.03)
    np.testing.assert_allclose(code.basis.T @ code.basis, np.eye(3), atol=1e-6)


def test_a_constant_block_can_be_coded() -> None:
    moments = Moments(2)
    maps = np.full((1, 2, 4, 4), 3.0, np.float32)
    moments.add(maps)
    codec = TransformCodec(Codebook({"b": moments.fit(0.02)}))
    torch.testing.assert_close(codec.decode("b", codec.encode("b", torch.from_numpy(maps))), torch.from_numpy(maps))


@pytest.mark.parametrize("distortion", [0.0, 1.0, -1.0])
def test_an_impossible_distortion_is_refused(distortion: float) -> None:
    with pytest.raises(SpecError, match="between 0 and 1"):
        Moments(2).fit(distortion)


@pytest.mark.parametrize("name", ["float16", "int8", "compact"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(spec: FeatureSpec, name: str, bad: float) -> None:
    codec = codec_for(*coded(spec, name))
    maps = some_maps(spec)["block_2"]
    maps[0, 0, 0, 0] = bad
    with pytest.raises(NonFiniteFeatures, match="block_2"):
        codec.encode("block_2", maps)


def test_overflow_of_half_precision_is_refused(spec: FeatureSpec) -> None:
    maps = some_maps(spec)["block_2"]
    maps[0, 0, 0, 0] = 1e6
    with pytest.raises(NonFiniteFeatures, match=r"beyond float16 \(largest 1e\+06\); encode as float32"):
        codec_for(spec).encode("block_2", maps)


def test_a_range_beyond_float32_is_refused() -> None:
    maps = torch.zeros(1, 4, 8, 8)
    maps[0, 1, 2, 2], maps[0, 1, 2, 3] = 3e38, -3e38
    with pytest.raises(NonFiniteFeatures, match="block_2"):
        AffineCodec().encode("block_2", maps)


def test_a_codebook_survives_a_file(spec: FeatureSpec, tmp_path: Path) -> None:
    codebook = fitted(spec)
    codebook.save(tmp_path / "codebook.safetensors")
    again = load_codebook(tmp_path / "codebook.safetensors")
    assert again.digest == codebook.digest
    assert again.encoding == codebook.encoding
    with pytest.raises(MissingEntry, match="fit-codebook"):
        load_codebook(tmp_path / "none")
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    with pytest.raises(DamagedEntry, match="no codebook, or a damaged one"):
        load_codebook(tmp_path / "rubbish")


def test_the_codebook_must_be_the_specs_own(spec: FeatureSpec) -> None:
    compact, codebook = coded(spec, "compact")
    other = fitted(spec, 0.1)
    with pytest.raises(SpecError, match=f"codebook {codebook.digest[:12]}, got {other.digest[:12]}"):  # type: ignore[union-attr]
        codec_for(compact, other)
    with pytest.raises(SpecError, match="got none"):
        codec_for(compact)
    with pytest.raises(SpecError, match="codes blocks"):
        other.require_blocks(spec.blocks[:1])
    assert codec_for(spec.with_encoding(AffineEncoding())).dtype == np.int8


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["float16", "int8", "compact"])
def test_encodings_agree_on_both_devices(spec: FeatureSpec, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    codec = codec_for(*coded(spec, name))
    for block, maps in some_maps(spec).items():
        here, there = codec.encode(block, maps), codec.encode(block, maps.cuda())
        assert (np.abs(here.values.astype(np.float32) - there.values.astype(np.float32)) > 1e-3).mean() < 1e-3
        decoded = codec.decode(block, here, "cuda").cpu()
        torch.testing.assert_close(decoded, codec.decode(block, here), rtol=1e-4, atol=1e-3)
