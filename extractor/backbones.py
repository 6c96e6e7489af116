"""Finding backbones and their codebooks, by shipped name, folder or hub id, and opening them on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import BackboneError
from store.codebook import Codebook, load_codebook
from store.extraction_command import UNTRAINED
from store.spec import AffineEncoding, Encoding, EncodingName, FeatureSpec, FloatEncoding, Precision, TransformEncoding

if TYPE_CHECKING:  # loading diffusers takes seconds; names are looked up without it
    from extractor.backbone import Backbone

MODELS = Path(__file__).parent / "models"
SOURCE_ONLY = "base"
"""A backbone that is shipped with the source only, as it is too large for the wheel."""
CODEBOOK_FILE = "codebook.safetensors"


def is_shipped(backbone: str) -> bool:
    """Return whether a name is that of a shipped backbone, which takes precedence over a folder of that name."""
    return backbone in shipped_backbones()


def shipped_backbones() -> list[str]:
    """Names of the backbones in this package, sorted."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def backbone_source(name: str) -> str:
    """The folder of a shipped backbone; any other name, which is a folder or a hub id, is returned unchanged.

    Raises:
        BackboneError: the backbone is shipped with the source only, and not present here.
    """
    if is_shipped(name):
        return str(MODELS / name)
    if name == SOURCE_ONLY and not Path(name).is_dir():
        raise BackboneError(
            f"the backbone {name} is too large for the wheel: name its folder, extractor/models/{name} in a checkout "
            "of the source"
        )
    return name


def stored_backbone(name: str, precision: Precision = "float32", class_label: int | None = None) -> Backbone:
    """Load a shipped backbone by name, or one from a folder or hub id, on the CPU and without the fast kernels.

    Raises:
        BackboneError: neither shipped nor found.
    """
    from extractor.backbone_folder import load_backbone

    try:
        return load_backbone(backbone_source(name), precision, class_label)
    except BackboneError as error:
        known = ", ".join(shipped_backbones()) or "none"
        raise BackboneError(f"{error} (shipped backbones: {known})") from error


def open_backbone(
    name: str,
    precision: Precision = "float32",
    device: str = "cpu",
    class_label: int | None = None,
) -> Backbone:
    """Load a shipped backbone by name, or one from a folder or hub id, onto a device, with the fast kernels for it.

    Args:
        name: the prefix ``untrained:`` asks for the architecture with random weights (``Backbone.untrained_copy``).

    Raises:
        BackboneError: the backbone is neither shipped nor found, or the device cannot be used.
    """
    loaded = stored_backbone(name.removeprefix(UNTRAINED), precision, class_label)
    if name.startswith(UNTRAINED):
        loaded = loaded.untrained_copy()
    try:
        loaded.to(device).use_fast_kernels()
    except (RuntimeError, AssertionError) as error:  # torch raises either if there is no such device
        raise BackboneError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return loaded


def encoding_of(name: EncodingName, backbone: str, codebook: Path | None = None) -> Encoding:
    """Look up an encoding by name.

    Args:
        backbone: the backbone whose codebook (``codebook.safetensors`` next to its weights) is used if none is given.
        codebook: a file that ``extractor fit-codebook`` made.

    Raises:
        MissingEntry: the encoding is compact and there is no codebook.
    """
    if name == "compact":
        return _codebook(backbone, codebook).encoding
    return AffineEncoding() if name == "int8" else FloatEncoding(kind=name)


def codebook_for(spec: FeatureSpec, backbone: str, codebook: Path | None = None) -> Codebook | None:
    """The codebook that a spec's encoding needs, found as in ``encoding_of``; None if it needs none."""
    return _codebook(backbone, codebook) if isinstance(spec.encoding, TransformEncoding) else None


def _codebook(backbone: str, codebook: Path | None) -> Codebook:
    return load_codebook(codebook or Path(backbone_source(backbone)) / CODEBOOK_FILE)
