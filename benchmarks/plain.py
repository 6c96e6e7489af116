"""The baseline, a loop as research code has it: one photograph at a time, hooks, ``.npy`` files written in the loop.

Weights, schedule and preprocessing are the extractor's; float32, torch's default memory format; the whole network
runs at every timestep. Nothing of ``extractor.inversion`` or ``extractor.cpu`` is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from extractor.backbone_folder import load_backbone
from extractor.backbones import backbone_source
from extractor.images import decode_image
from extractor.preprocess import preprocess
from extractor.unet import decoder_blocks
from store import FeatureSpec


class PlainLoop:
    """The loop, with a backbone whose decoder blocks are recorded by forward hooks."""

    def __init__(self, backbone: str, spec: FeatureSpec, device: str = "cpu") -> None:
        loaded = load_backbone(backbone_source(backbone))
        assert loaded.diffusion.prediction == "v_prediction"
        self.unet = loaded.unet.to(memory_format=torch.contiguous_format).to(device)
        self.alphas, self.spec, self.device = loaded.schedule.alphas_cumprod, spec, device
        self.features: dict[str, torch.Tensor] = {}
        blocks = decoder_blocks(self.unet)
        for block in spec.blocks:
            blocks[block.name].register_forward_hook(self._hook(block.name))

    def _hook(self, name: str):
        def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
            self.features[name] = output

        return keep

    @torch.no_grad()
    def run(self, photographs: list[Path], folder: Path) -> None:
        """Write {photograph}_{block}_{t}.npy for every photograph, block and timestep."""
        for path in photographs:
            image = decode_image(path.read_bytes())
            x = preprocess(image, self.spec.resolution, self.spec.preprocessing).x0.to(self.device)
            grid = self.spec.grid
            for t, t_next in zip(grid, [*grid[1:], None], strict=True):
                v = self.unet(x, torch.full((1,), t, device=self.device)).sample
                for name, maps in self.features.items():
                    np.save(folder / f"{path.stem}_{name}_{t}.npy", maps[0].cpu().numpy())
                if t_next is not None:
                    a, a_next = float(self.alphas[t]), float(self.alphas[t_next])
                    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
                    noise = (1 - a) ** 0.5 * x + a**0.5 * v
                    x = a_next**0.5 * x0 + (1 - a_next) ** 0.5 * noise
