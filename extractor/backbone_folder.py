"""Backbones as files: folders in diffusers' layout, and hub ids.

config.json, diffusion_pytorch_model.safetensors   configuration and weights, as diffusers' ``UNet2DModel`` has them
scheduler_config.json                              how the network was trained
preprocessing.json                                 how its training photographs were prepared, if that is known
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from extractor.backbone import Backbone
from extractor.diffusion import Diffusion
from extractor.errors import BackboneError
from extractor.unet import build_unet
from store.files import replace_json, replaced
from store.manifest import require_intact
from store.spec import Precision, Preprocessing
from store.validation import first_problem

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSION_FILE = "scheduler_config.json"
PREPROCESSING_FILE = "preprocessing.json"


def save_backbone(backbone: Backbone, folder: Path, *, half: bool = True) -> None:
    """Write diffusers' three files, and the preprocessing if it is known.

    Each file is replaced atomically: a process that is killed meanwhile leaves either the former or the new file.

    Args:
        half: store the weights as float16, else as float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in backbone.unet.state_dict().items()}
    with replaced(folder / WEIGHTS_FILE) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    replace_json(folder / CONFIG_FILE, {"_class_name": "UNet2DModel"} | backbone.config)
    replace_json(folder / DIFFUSION_FILE, backbone.diffusion.to_json())
    if backbone.preprocessing is None:
        (folder / PREPROCESSING_FILE).unlink(missing_ok=True)
    else:
        replace_json(folder / PREPROCESSING_FILE, backbone.preprocessing.model_dump(mode="json"))


def load_backbone(source: str | Path, precision: Precision = "float32", class_label: int | None = None) -> Backbone:
    """Load a backbone from a folder in diffusers' layout or from a hub id.

    Args:
        source: a folder with config.json, scheduler_config.json, safetensors weights and, if ``save_backbone`` wrote
            it, preprocessing.json; or a hub id such as ``google/ddpm-celebahq-256`` (downloaded once by
            huggingface_hub).
        precision: number format of the network's arithmetic.
        class_label: the class that a class-conditional network is run with.

    Raises:
        BackboneError: files are missing or differ from the folder's manifest, or the weights do not fit the
            configuration.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source))
    sealed = (CONFIG_FILE, DIFFUSION_FILE, WEIGHTS_FILE, PREPROCESSING_FILE)
    require_intact(folder, *sealed, otherwise=BackboneError)
    pipeline = (folder / "unet" / CONFIG_FILE).is_file()  # a folder that a diffusers pipeline wrote
    unet_folder, scheduler_folder = (folder / "unet", folder / "scheduler") if pipeline else (folder, folder)
    config = _read_json(unet_folder / CONFIG_FILE)
    diffusion = Diffusion.from_json(_read_json(scheduler_folder / DIFFUSION_FILE))
    if class_label is not None:
        diffusion = replace(diffusion, class_label=class_label)
    unet = build_unet(config)
    weights_file = unet_folder / WEIGHTS_FILE
    if not weights_file.is_file():
        raise BackboneError(f"{weights_file}: no such file; weights are read from safetensors only")
    try:
        weights = {k: v.float() for k, v in load_file(weights_file).items()}
        unet.load_state_dict({_current_name(k): v for k, v in weights.items()})
    except Exception as error:  # safetensors and torch raise different types for damaged and foreign files
        raise BackboneError(f"{weights_file}: the weights do not fit {CONFIG_FILE}: {error}") from error
    return Backbone(unet, diffusion, config, precision, preprocessing=_preprocessing_in(folder))


def _preprocessing_in(folder: Path) -> Preprocessing | None:
    """The preprocessing that ``save_backbone`` recorded; None if there is none."""
    path = folder / PREPROCESSING_FILE
    if not path.is_file():
        return None
    try:
        return Preprocessing.model_validate(_read_json(path))
    except ValidationError as error:
        raise BackboneError(f"{path}: not a preprocessing that this version knows ({first_problem(error)})") from error


_FORMER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current_name(name: str) -> str:
    """Rename a weight of an attention layer from its name before diffusers 0.15 to today's."""
    head, _, kind = name.rpartition(".")
    stem, _, layer = head.rpartition(".")
    is_attention = ".attentions." in stem and layer in _FORMER_ATTENTION
    return f"{stem}.{_FORMER_ATTENTION[layer]}.{kind}" if is_attention else name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror}); a backbone folder needs it") from error
    except json.JSONDecodeError as error:
        raise BackboneError(f"{path}: not JSON ({error})") from error
    return loaded


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # imported late: only hub ids need it

    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise BackboneError(f"{hub_id}: no such folder, and not a hub id of the form owner/name")
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=[f"*{name}" for name in (CONFIG_FILE, DIFFUSION_FILE, WEIGHTS_FILE, PREPROCESSING_FILE)],
            )
        )
    except Exception as error:  # the hub client raises many types, all of which mean that it is unavailable
        raise BackboneError(f"{hub_id}: no such folder, and it cannot be downloaded from the hub ({error})") from error
