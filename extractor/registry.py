"""Which backbones there are: those of this package, and others by folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.errors import BackboneError
from extractor.presets import PRESETS, backbone_source, open_backbone, shipped_backbones
from store.console import human_bytes
from store.manifest import Manifest, read_intact

if TYPE_CHECKING:  # loading diffusers takes seconds
    from extractor.backbone import Backbone


@dataclass(frozen=True)
class ListedBackbone:
    """One backbone that was found whole.

    Attributes:
        name: shipped name, or folder.
        folder: where it is.
        backbone: the network.
        manifest: its data; None of a folder that nobody sealed.
        size: bytes of the weights' file.
    """

    name: str
    folder: Path
    backbone: Backbone
    manifest: Manifest | None
    size: int

    @property
    def presets(self) -> tuple[str, ...]:
        """Recipes that read it."""
        return tuple(name for name, build in PRESETS.items() if build().backbone == self.name)

    def facts(self) -> dict[str, str | list[str]]:
        """What a user chooses by, for the eye."""
        from extractor.backbone_folder import WEIGHTS_FILE

        manifest, network = self.manifest or Manifest(summary="", licence="licence unknown"), self.backbone
        return {
            "for": manifest.summary,
            "fingerprint": network.fingerprint[:12],
            "presets": [f"{name}, spec {PRESETS[name]().spec(network).digest[:12]}" for name in self.presets],
            "weights": f"{network.parameters / 1e6:.1f} M, {human_bytes(self.size)}, {manifest.licence}",
            "sha256": (manifest.sha256_of(WEIGHTS_FILE) or "not sealed")[:12],
            "learnt from": [str(one) for one in manifest.data],
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; what only a manifest knows is None without one."""
        from extractor.backbone_folder import WEIGHTS_FILE

        manifest, network = self.manifest or Manifest(summary=""), self.backbone
        return {
            "name": self.name,
            "folder": str(self.folder),
            "summary": manifest.summary or None,
            "fingerprint": network.fingerprint,
            "presets": {name: PRESETS[name]().spec(network).digest for name in self.presets},
            "schedule": network.schedule.name,
            "prediction": network.diffusion.prediction,
            "blocks": list(network.block_names),
            "weights": network.parameters,
            "bytes": self.size,
            "sha256": manifest.sha256_of(WEIGHTS_FILE),
            "data": [one.model_dump(mode="json") for one in manifest.data],
            "figures": [one.model_dump(mode="json") for one in manifest.figures],
            "licence": manifest.licence if self.manifest else None,
        }


def listed(folders: Iterable[Path] = ()) -> list[ListedBackbone]:
    """Every shipped backbone, then those of these folders, each loaded once so that it is known to be whole.

    Raises:
        BackboneError: one cannot be loaded, or is not what its manifest says.
    """
    return [_listed(name) for name in (*shipped_backbones(), *(str(folder.resolve()) for folder in folders))]


def _listed(name: str) -> ListedBackbone:
    from extractor.backbone_folder import WEIGHTS_FILE

    network, folder = open_backbone(name), Path(backbone_source(name))
    manifest = read_intact(folder, otherwise=BackboneError)
    weights = next(path for path in (folder / WEIGHTS_FILE, folder / "unet" / WEIGHTS_FILE) if path.is_file())
    return ListedBackbone(name, folder, network, manifest, weights.stat().st_size)
