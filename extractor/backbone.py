"""A pre-trained diffusion U-Net as one call: noisy image and timestep in, clean image and features out.

b  batch        t  timestep index 0..T-1 of the schedule the network was trained with
x  noisy image, float32 (b, 3, R, R)
x0_hat  the network's estimate of the clean image, same shape
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from extractor.cuda.precision import whole_float32
from extractor.cuda.recording import Recordings
from extractor.diffusion import Diffusion
from extractor.errors import BackboneError, NonFiniteActivation
from extractor.schedule import NoiseSchedule
from extractor.unet import build_unet, compile_blocks, decoder_blocks, stride, unet_config
from store.codecs import is_finite
from store.manifest import require_intact
from store.spec import Block, Precision, Preprocessing

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSION_FILE = "scheduler_config.json"
PREPROCESSING_FILE = "preprocessing.json"

OUTPUT = "output"

# What of the configuration changes the output, and is not a shape of the weights already. A newer
# diffusers may know more keys; the fingerprints of today's backbones must not change with it.
_FINGERPRINTED = (
    "act_fn", "add_attention", "attention_head_dim", "attention_heads", "attn_norm_num_groups", "base_width",
    "block_out_channels", "center_input_sample", "class_embed_type", "down_block_types", "downsample_padding",
    "downsample_type", "flip_sin_to_cos", "freq_shift", "layers_per_block", "mid_block_scale_factor",
    "mid_block_type", "norm_eps", "norm_num_groups", "num_class_embeds", "resnet_time_scale_shift",
    "time_embedding_type", "up_block_types", "upsample_type",
)  # fmt: skip


class Estimate(NamedTuple):
    """What one forward gives: x0_hat (b, 3, R, R) float32, None if the forward was cut short, and
    the feature maps {block: (b, c, h, w)}."""

    x0: torch.Tensor | None
    features: dict[str, torch.Tensor]


class _LastBlockReached(Exception):
    """Leaves a forward whose remaining blocks nobody asked for."""


class Backbone:
    """A diffusion U-Net, frozen, on one device.

    Args:
        unet: the network.
        diffusion: how it was trained.
        config: the configuration that ``build_unet`` makes the network from.
        precision: number format of the network's arithmetic; states stay float32.
        memory_format: on CPUs, where channels-last is the faster one; a CUDA device is given contiguous maps (``to``).
        preprocessing: of the photographs it was trained on; None where nobody wrote it down.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        diffusion: Diffusion,
        config: Mapping[str, Any] | None = None,
        precision: Precision = "float32",
        memory_format: torch.memory_format = torch.channels_last,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if unet.config.in_channels != 3 or unet.config.out_channels not in (3, 6):
            raise BackboneError(
                f"this network reads {unet.config.in_channels} channels and gives {unet.config.out_channels}; "
                "expected one of colour photographs, with 3 in and 3 (or 6, with a learned variance) out"
            )
        self.unet = unet.eval().requires_grad_(False).to(memory_format=memory_format)
        self.memory_format = self._format_on_cpus = memory_format
        self.preprocessing = preprocessing
        self.diffusion = diffusion
        self.precision: Precision = precision
        self.config = unet_config(unet, config or {})
        self._modules = decoder_blocks(unet)
        self._recordings: Recordings | None = None
        self._is_compiled = False
        if unet.class_embedding is not None and diffusion.class_label is None:
            raise BackboneError(
                f"this network is conditioned on {self.config.get('num_class_embeds')} classes; "
                "say which one to run it with (class_label)"
            )
        classes = self.config.get("num_class_embeds")
        if diffusion.class_label is not None and not 0 <= diffusion.class_label < (classes or 0):
            raise BackboneError(
                f"class {diffusion.class_label} was asked for; this network has {classes or 'no'} classes"
            )

    @property
    def schedule(self) -> NoiseSchedule:
        return self.diffusion.schedule

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def block_names(self) -> tuple[str, ...]:
        """block_0 (deepest) to block_n, guided-diffusion's ``output_blocks``."""
        return tuple(self._modules)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.unet.parameters())

    def to(self, device: torch.device | str) -> Backbone:
        """The same backbone on another device (the weights move; what was recorded on the former one is dropped)."""
        on_cuda = torch.device(device).type == "cuda"  # where norms of channels-last maps are copied first
        memory_format = torch.contiguous_format if on_cuda else self._format_on_cpus
        self.unet.to(device, memory_format=memory_format)
        self.memory_format = memory_format
        self._recordings = Recordings() if on_cuda and not self._is_compiled else None
        return self

    def untrained(self) -> Backbone:
        """The same architecture with weights drawn from seed 1: the control that says what pre-training is worth."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = build_unet(self.config)
        return Backbone(unet, self.diffusion, self.config, self.precision, self._format_on_cpus, self.preprocessing)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of configuration and float32 weights; the same on every device."""
        config = {key: self.config.get(key) for key in _FINGERPRINTED}
        sha = hashlib.sha256(json.dumps([config, self.diffusion.to_json()], sort_keys=True).encode())
        for name, tensor in sorted(self.unet.state_dict().items()):
            sha.update(f"{name}{tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    @property
    def stride(self) -> int:
        """Sides of images must be multiples of this."""
        return stride(self.config)

    def require_resolution(self, resolution: int) -> None:
        """BackboneError unless images of this side fit."""
        if resolution % self.stride:
            raise BackboneError(f"resolution {resolution} is not a multiple of the network's stride {self.stride}")

    def blocks(self, names: Sequence[str | int], resolution: int) -> tuple[Block, ...]:
        """Names (or guided-diffusion's indices) and shapes of blocks at resolution R.

        Raises:
            BackboneError: no such block, or R is not a multiple of the network's stride.
        """
        wanted = [f"block_{name}" if isinstance(name, int) else name for name in names]
        self._require_blocks(wanted)
        self.require_resolution(resolution)
        # Shapes scale with R, so a small image is enough to learn them; of the smallest, a single pixel would be left,
        # which a norm of each channel by itself refuses.
        side = 2 * self.stride
        probe = torch.zeros(1, 3, side, side, device=self.device)
        shapes = self.estimate(probe, 0, wanted, features_only=True).features
        ordered = [name for name in self.block_names if name in set(wanted)]
        return tuple(
            Block(
                name=name,
                channels=f.shape[1],
                height=f.shape[2] * resolution // side,
                width=f.shape[3] * resolution // side,
            )
            for name, f in ((name, shapes[name]) for name in ordered)
        )

    def _require_blocks(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self._modules]:
            raise BackboneError(
                f"no block {', '.join(unknown)} here; this backbone has {self.block_names[0]} .. {self.block_names[-1]}"
            )

    @torch.inference_mode()
    def features(self, x: torch.Tensor, timesteps: Sequence[int], blocks: Sequence[str]) -> dict[str, torch.Tensor]:
        """Feature maps {block: (b, c, h, w)} of x (b, 3, h, w), each image at its own timestep.

        Raises:
            NonFiniteActivation: a feature map holds NaN or infinity.
            BackboneError: no such block.
        """
        return self._forward(x, timesteps, blocks, features_only=True)[1]

    @torch.inference_mode()
    def estimate(self, x: torch.Tensor, t: int, blocks: Sequence[str] = (), *, features_only: bool = False) -> Estimate:
        """One forward.

        Args:
            x: float32 (b, 3, h, w); h and w multiples of the network's stride.
            t: the ORIGINAL timestep index, 0..T-1.
            blocks: blocks whose feature maps are returned.
            features_only: stop behind the last of ``blocks``; x0 is then None.

        Raises:
            NonFiniteActivation: a feature map or the output holds NaN or infinity.
            BackboneError: no such block.
        """
        output, features = self._forward(x, t, blocks, features_only=features_only)
        return Estimate(None if output is None else self.to_x0(x, output, t), features)

    def _forward(
        self, x: torch.Tensor, t: int | Sequence[int], blocks: Sequence[str], *, features_only: bool
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """The network's output, None if it was left behind the last of the blocks, and the blocks' maps."""
        self._require_blocks(blocks)
        wanted = tuple(name for name in self.block_names if name in blocks)
        compute = partial(self._run, wanted, features_only)
        inputs = self._inputs(x, t)
        if self._recordings is None:
            made = compute(*inputs)
        else:
            made = self._recordings.run((wanted, features_only, self.precision), compute, inputs)
        _require_finite(made, t)
        return made.pop(OUTPUT, None), made

    def _run(self, blocks: Sequence[str], features_only: bool, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The blocks' maps and, if it was not left behind the last of them, the network's output."""
        made: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
                made[name] = output
                if features_only and name == blocks[-1]:
                    raise _LastBlockReached

            return hook

        handles = [self._modules[name].register_forward_hook(keep(name)) for name in blocks]
        try:
            made[OUTPUT] = self._network(*inputs)
        except _LastBlockReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return made

    def to_x0(self, x: torch.Tensor, output: torch.Tensor, t: int) -> torch.Tensor:
        """x0_hat from the network's output at x_t, float32."""
        return self.diffusion.to_x0(x, output[:, :3].float(), t)

    @torch.inference_mode()
    def raw_output(self, x: torch.Tensor, t: int | Sequence[int]) -> torch.Tensor:
        """The network's own output at x_t, (b, 3 or 6, h, w); ``t`` of all images, or of each."""
        return self._network(*self._inputs(x, t))

    def _inputs(self, x: torch.Tensor, t: int | Sequence[int]) -> tuple[torch.Tensor, ...]:
        """What the network is given: images, the time of each as in its training, and their class if it has any."""
        told = [t] * len(x) if isinstance(t, int) else t
        factor = 1000 / self.schedule.steps if self.diffusion.rescale_timesteps else 1
        timesteps = torch.tensor([step * factor for step in told], device=x.device, dtype=torch.float32)
        label = self.diffusion.class_label
        labels = () if label is None else (torch.full((len(x),), label, device=x.device),)
        return x.to(memory_format=self.memory_format), timesteps, *labels

    def _network(self, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with self._autocast(), whole_float32(x.device):
            output: torch.Tensor = self.unet(x, timesteps, class_labels=labels).sample
        return output

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Within this context the network runs in float32, whatever its precision."""
        precision, self.precision = self.precision, "float32"
        try:
            yield
        finally:
            self.precision = precision

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def quickened(self) -> Backbone:
        """The same backbone, computing faster where it is (``extractor.cpu``, ``extractor.cuda``).

        Features change by 1e-5 of their largest numbers.
        """
        if self.device.type == "cuda":
            from extractor.cuda.network import quicken
        else:
            from extractor.cpu.network import quicken  # imported late: loading Numba takes a second

        quicken(self.unet)
        return self

    def compiled(self) -> Backbone:
        """The same backbone with its blocks compiled by torch when they are first run, which takes minutes."""
        compile_blocks(self.unet)
        self._is_compiled, self._recordings = True, None
        return self

    def save(self, folder: Path, half: bool = True) -> None:
        """Write diffusers' three files, and the preprocessing where it is known; ``half``: weights as float16."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if half else torch.float32
        weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in self.unet.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps({"_class_name": "UNet2DModel"} | self.config, indent=2) + "\n")
        (folder / DIFFUSION_FILE).write_text(json.dumps(self.diffusion.to_json(), indent=2) + "\n")
        if self.preprocessing is None:
            (folder / PREPROCESSING_FILE).unlink(missing_ok=True)
        else:
            (folder / PREPROCESSING_FILE).write_text(self.preprocessing.model_dump_json(indent=2) + "\n")


def _require_finite(made: Mapping[str, torch.Tensor], t: int | Sequence[int]) -> None:
    """All maps are asked about at once: a GPU waits for every question."""
    sums = torch.stack([values.sum(dtype=torch.float32) for values in made.values()])
    if bool(sums.isfinite().all()):
        return
    for name, values in made.items():
        if not is_finite(values):
            at = t if isinstance(t, int) else ", ".join(map(str, sorted(set(t))))
            raise NonFiniteActivation(
                f"{name} at timestep {at} holds NaN or infinity; the weights are damaged, the image is not in [-1, 1], "
                "or the precision is too low for this backbone (use float32)"
            )


def load_backbone(source: str | Path, precision: Precision = "float32", class_label: int | None = None) -> Backbone:
    """A backbone from a folder in diffusers' layout or from a hub id.

    Args:
        source: a folder with config.json, scheduler_config.json and safetensors weights, or a hub
            id such as ``google/ddpm-celebahq-256`` (downloaded once by huggingface_hub); with preprocessing.json where
            ``Backbone.save`` wrote it.
        precision: number format of the network's arithmetic.
        class_label: for class-conditional networks.

    Raises:
        BackboneError: files are missing, are not those of the folder's manifest, or weights and configuration do
            not fit.
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
        unet.load_state_dict({_todays_name(k): v for k, v in weights.items()})
    except Exception as error:  # safetensors and torch raise different types for damaged and foreign files
        raise BackboneError(f"{weights_file}: the weights do not fit {CONFIG_FILE}: {error}") from error
    return Backbone(unet, diffusion, config, precision, preprocessing=_preprocessing_in(folder))


def _preprocessing_in(folder: Path) -> Preprocessing | None:
    """What ``Backbone.save`` wrote down of it; None where it was not known."""
    path = folder / PREPROCESSING_FILE
    if not path.is_file():
        return None
    try:
        return Preprocessing.model_validate(_read_json(path))
    except ValidationError as error:
        raise BackboneError(
            f"{path}: not a preprocessing that this version knows ({error.errors()[0]['msg']})"
        ) from error


_FORMER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _todays_name(name: str) -> str:
    """Names of attention layers as diffusers wrote them before its version 0.15."""
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
    except Exception as error:  # the hub client raises many types, all of which mean: not to be had
        raise BackboneError(f"{hub_id}: no such folder, and the hub did not give it ({error})") from error
