"""A spec names what was computed, and refuses what contradicts itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from interpreter.checkpoint import load_interpreter
from store import (
    AffineEncoding,
    Clahe,
    FeatureSpec,
    FloatEncoding,
    Preprocessing,
    SpecError,
    SpecMismatch,
    TransformEncoding,
    parse_spec,
)
from tests.conftest import changed


def test_digest_is_that_of_the_canonical_json_and_survives_a_round_trip(spec: FeatureSpec) -> None:
    again = parse_spec(spec.model_dump_json())
    assert again == spec
    assert again.digest == spec.digest
    assert " " not in spec.canonical_json


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "1" * 64},
        {"schedule": "linear-1000"},
        {"trajectory": "anchored"},
        {"grid": (1, 5, 10, 100)},
        {"timesteps": (1, 100)},
        {"resolution": 64},
        {"clip": True},
        {"precision": "bfloat16"},
        {"encoding": FloatEncoding(kind="float32")},
        {"encoding": AffineEncoding()},
        {"encoding": TransformEncoding(codebook="1" * 64, bits=((8, 3), (4,)))},
        {"preprocessing": Preprocessing(clahe=Clahe(clip_limit=3))},
        {"trajectory": "stochastic", "seed": 1},
    ],
)
def test_whatever_changes_a_number_changes_the_digest(spec: FeatureSpec, change: dict[str, object]) -> None:
    assert changed(spec, **change).digest != spec.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (10, 1)}, r"strictly increasing grid, got \(10, 1\)"),
        ({"timesteps": ()}, "strictly increasing timesteps"),
        ({"timesteps": (1, 7)}, r"timesteps \[7\] are kept but not in the grid"),
        ({"grid": (1, 10, 100, 200)}, r"within 0\.\.199 of cosine-200"),
        ({"timesteps": (1, 10)}, "goes on after 10"),
        ({"trajectory": "anchored", "clip": True}, "belong to the ddim trajectory"),
        ({"trajectory": "anchored", "grid": (1, 5, 10, 100)}, "belong to the ddim trajectory"),
        ({"trajectory": "stochastic"}, "a seed for the stochastic trajectory"),
        ({"seed": 3}, "a seed for the stochastic trajectory"),
        ({"backbone": "abc"}, "backbone"),
        ({"encoding": TransformEncoding(codebook="1" * 64, bits=((8,),))}, "made for 1 blocks, and these are 2"),
        ({"encoding": TransformEncoding(codebook="1" * 64, bits=((8,) * 99, (1,)))}, "block_0: expected 1 to"),
    ],
)
def test_contradictions_are_refused(spec: FeatureSpec, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(spec, **change)


def test_two_blocks_of_one_name_are_refused(spec: FeatureSpec) -> None:
    with pytest.raises(ValidationError, match="every block once"):
        changed(spec, blocks=(spec.blocks[0], spec.blocks[0]))


def test_a_mismatch_says_what_differs(spec: FeatureSpec) -> None:
    other = changed(spec, clip=True)
    with pytest.raises(SpecMismatch, match="clip: False expected, True found"):
        spec.require(other)
    spec.require(spec)


def test_a_damaged_spec_names_the_field(spec: FeatureSpec) -> None:
    with pytest.raises(SpecError, match="resolution"):
        parse_spec(spec.model_dump_json().replace('"resolution":32', '"resolution":-1'))


def test_an_unknown_block_lists_those_there_are(spec: FeatureSpec) -> None:
    with pytest.raises(SpecError, match="no block 'block_99' in this spec; it has block_0, block_2"):
        spec.block("block_99")


def test_entry_bytes_counts_every_number(spec: FeatureSpec) -> None:
    values = sum(b.channels * b.height * b.width for b in spec.blocks)
    assert spec.entry_bytes() == values * 3 * 2
    assert spec.float32_bytes() == values * 3 * 4
    assert spec.with_encoding(AffineEncoding()).entry_bytes() == values * 3
    compact = spec.with_encoding(TransformEncoding(codebook="1" * 64, bits=((8, 3), (4,))))
    pixels = [b.height * b.width * 3 for b in spec.blocks]
    assert compact.entry_bytes() == pixels[0] * 11 // 8 + pixels[1] * 4 // 8
    assert compact.stored_shape("block_0") == (3, 2, spec.blocks[0].height, spec.blocks[0].width)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("disc_cup", "105d91a8f6999ab4b2a13387a4400e72394433b73281c879f86cebbe6bb00c9c"),
        ("lesions", "105d91a8f6999ab4b2a13387a4400e72394433b73281c879f86cebbe6bb00c9c"),
        ("octa_vessels", "105d91a8f6999ab4b2a13387a4400e72394433b73281c879f86cebbe6bb00c9c"),
        ("vessels", "f1ac4aa6fd9249bdc7adb5d7139ae922c23d067f1b1b94eed7d8b632da6b23f5"),
    ],
)
def test_the_specs_of_shipped_interpreters_keep_their_digests(name: str, digest: str) -> None:
    """Stores that are out there are found by them."""
    assert load_interpreter(name)[1].spec.digest == digest


def test_a_changed_copy_has_a_digest_of_its_own_and_is_looked_at(spec: FeatureSpec) -> None:
    before = spec.digest
    assert spec.model_copy(update={"clip": not spec.clip}).digest != before
    assert spec.model_copy().digest == before
    with pytest.raises(ValidationError, match="strictly increasing"):
        spec.model_copy(update={"timesteps": ()})


def test_some_timesteps_of_a_spec_are_a_spec(spec: FeatureSpec) -> None:
    first = spec.with_timesteps(spec.timesteps[:1])
    assert (first.timesteps, first.grid[-1]) == (spec.timesteps[:1], spec.timesteps[0])
    assert first.digest != spec.digest
    assert spec.with_timesteps(spec.timesteps) == spec
    anchored = changed(spec, trajectory="anchored", grid=spec.timesteps)
    assert anchored.with_timesteps(spec.timesteps[1:]).grid == spec.timesteps[1:]


def test_differences_are_told_in_a_line_that_can_be_read(spec: FeatureSpec) -> None:
    assert spec.difference(spec.with_resolution(64)) == "  resolution: 32 expected, 64 found"
    coded = spec.with_encoding(TransformEncoding(codebook="ab" * 32, bits=((8, 3), (4,))))
    assert "compact with the codebook abababababab found" in spec.difference(coded)
