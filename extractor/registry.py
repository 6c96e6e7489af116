"""The list of available backbones: those of this package, and others by folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.backbones import backbone_source, shipped_backbones, stored_backbone
from extractor.errors import BackboneError
from extractor.presets import PRESETS
from store.console import human_bytes
from store.manifest import Manifest, read_intact

if TYPE_CHECKING:  # loading diffusers takes seconds
    from extractor.backbone import Backbone


@dataclass(frozen=True)
class ListedBackbone:
    """One backbone that was loaded and found intact.

    Attributes:
        name: shipped name, or folder.
        folder: where its files are.
        backbone: the network.
        manifest: its origin and checksums; None for a folder that was not sealed.
        size: size of the weights' file in bytes.
    """

    name: str
    folder: Path
    backbone: Backbone
    manifest: Manifest | None
    size: int

    @property
    def presets(self) -> tuple[str, ...]:
        """Names of the presets that read this backbone."""
        return tuple(name for name, build in PRESETS.items() if build().backbone == self.name)

    def facts(self) -> dict[str, str | list[str]]:
        """The facts by which a user chooses, formatted for display."""
        from extractor.backbone_folder import WEIGHTS_FILE

        manifest, network = self.manifest or Manifest(summary="", licence="licence unknown"), self.backbone
        return {
            "for": manifest.summary,
            "fingerprint": network.fingerprint[:12],
            "presets": [f"{name}, spec {PRESETS[name]().spec(network).digest[:12]}" for name in self.presets],
            "weights": f"{network.parameters / 1e6:.1f} M, {human_bytes(self.size)}, {manifest.licence}",
            "sha256": (manifest.sha256_of(WEIGHTS_FILE) or "not sealed")[:12],
            "figures": [str(one) for one in manifest.figures],
            "learnt from": [str(one) for one in manifest.data],
        }

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON values; those that only a manifest has are None, or empty lists, without one."""
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
    """List every shipped backbone, then those of these folders; each is loaded once to check that it is intact.

    Raises:
        BackboneError: one cannot be loaded, or differs from its manifest.
    """
    return [_listed(name) for name in (*shipped_backbones(), *(str(folder.resolve()) for folder in folders))]


def _listed(name: str) -> ListedBackbone:
    from extractor.backbone_folder import WEIGHTS_FILE

    network, folder = stored_backbone(name), Path(backbone_source(name))
    manifest = read_intact(folder, otherwise=BackboneError)
    weights = next(path for path in (folder / WEIGHTS_FILE, folder / "unet" / WEIGHTS_FILE) if path.is_file())
    return ListedBackbone(name, folder, network, manifest, weights.stat().st_size)
