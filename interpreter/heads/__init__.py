"""Heads, the networks that read features or photographs, by name.

``adaptive``  the paper's interpreter
``joint``     the same levels, reading all timesteps at once, with a single vote (an ablation)
``mlp``       DDPM-Seg's ensemble of pixel classifiers (an ablation)
``unet``      a U-Net on the photograph itself (the control)
``pyramid``   the adaptive interpreter on the photograph itself, at four sizes (a control)
"""

from __future__ import annotations

from collections.abc import Callable

from interpreter.config import HeadName, InterpreterConfig
from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.head import Head
from interpreter.heads.joint import JointHead
from interpreter.heads.mlp import MlpEnsemble
from interpreter.heads.pyramid import PyramidHead
from interpreter.heads.unet import PixelUNet
from store.spec import FeatureSpec

HEADS: dict[HeadName, Callable[[FeatureSpec, InterpreterConfig], Head]] = {
    "adaptive": AdaptiveHead,
    "joint": JointHead,
    "mlp": MlpEnsemble,
    "unet": PixelUNet,
    "pyramid": PyramidHead,
}
