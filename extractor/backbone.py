"""A pre-trained diffusion U-Net as one call: noisy image and timestep in, clean image and features out.

b  batch size   t  timestep index 0..T-1 of the schedule the network was trained with
x  noisy image, float32 (b, 3, R, R)
x0_hat  the network's estimate of the clean image, same shape
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel

from extractor.cuda.precision import without_tf32
from extractor.cuda.recording import GraphCache
from extractor.diffusion import Diffusion
from extractor.errors import BackboneError, NonFiniteActivation
from extractor.schedule import NoiseSchedule
from extractor.unet import build_unet, compile_blocks, decoder_blocks, stride, unet_config
from store.codecs import is_finite
from store.spec import Block, Precision, Preprocessing

OUTPUT = "output"

# The keys of the configuration that change the output and are not evident from the weights' shapes. They are listed
# because a newer diffusers may add keys, which must not change the fingerprints of existing backbones.
_FINGERPRINTED = (
    "act_fn", "add_attention", "attention_head_dim", "attention_heads", "attn_norm_num_groups", "base_width",
    "block_out_channels", "center_input_sample", "class_embed_type", "down_block_types", "downsample_padding",
    "downsample_type", "flip_sin_to_cos", "freq_shift", "layers_per_block", "mid_block_scale_factor",
    "mid_block_type", "norm_eps", "norm_num_groups", "num_class_embeds", "resnet_time_scale_shift",
    "time_embedding_type", "up_block_types", "upsample_type",
)  # fmt: skip


class Estimate(NamedTuple):
    """The result of one forward: x0_hat (b, 3, R, R) float32, None if the forward was cut short, and
    the feature maps {block: (b, c, h, w)}."""

    x0: torch.Tensor | None
    features: dict[str, torch.Tensor]


class _LastBlockReached(Exception):
    """Raised to end a forward early, after the last block that was asked for."""


class Backbone:
    """A diffusion U-Net, frozen, on one device. ``extractor.backbone_folder`` reads and writes it.

    Args:
        unet: the network.
        diffusion: how it was trained.
        config: the configuration that ``build_unet`` makes the network from.
        precision: number format of the network's arithmetic; states stay float32.
        memory_format: memory format on CPUs, where channels-last is faster; on CUDA devices maps are contiguous
            (``to``).
        preprocessing: preprocessing of the photographs it was trained on; None if it is not recorded.
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
                f"this network has {unet.config.in_channels} input and {unet.config.out_channels} output channels; "
                "expected a network for colour photographs, with 3 input and 3 output channels (6 if it learned the "
                "variance)"
            )
        self.unet = unet.eval().requires_grad_(False).to(memory_format=memory_format)
        self.memory_format = self._format_on_cpus = memory_format
        self.preprocessing = preprocessing
        self.diffusion = diffusion
        self.precision: Precision = precision
        self.config = unet_config(unet, config or {})
        self._modules = decoder_blocks(unet)
        self._graphs: GraphCache | None = None
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
        """Names of the decoder blocks, block_0 (deepest) to block_n: guided-diffusion's ``output_blocks``."""
        return tuple(self._modules)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.unet.parameters())

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights to another device and return this backbone; recorded CUDA graphs are dropped."""
        on_cuda = torch.device(device).type == "cuda"  # there, norms would first copy channels-last maps
        memory_format = torch.contiguous_format if on_cuda else self._format_on_cpus
        self.unet.to(device, memory_format=memory_format)
        self.memory_format = memory_format
        self._graphs = GraphCache() if on_cuda and not self._is_compiled else None
        return self

    def untrained_copy(self) -> Backbone:
        """The same architecture with random weights from seed 1: the control that shows what pre-training is worth."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = build_unet(self.config)
        return Backbone(unet, self.diffusion, self.config, self.precision, self._format_on_cpus, self.preprocessing)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of configuration, training (``Diffusion``) and float32 weights; the same on every device."""
        config = {key: self.config.get(key) for key in _FINGERPRINTED}
        sha = hashlib.sha256(json.dumps([config, self.diffusion.identity()], sort_keys=True).encode())
        for name, tensor in sorted(self.unet.state_dict().items()):
            sha.update(f"{name}{tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    @property
    def stride(self) -> int:
        """Number that the sides of an image must be multiples of, in pixels."""
        return stride(self.config)

    def require_resolution(self, resolution: int) -> None:
        """Raise BackboneError unless the resolution is a multiple of the network's stride."""
        if resolution % self.stride:
            raise BackboneError(f"resolution {resolution} is not a multiple of the network's stride {self.stride}")

    def blocks(self, names: Sequence[str | int], resolution: int) -> tuple[Block, ...]:
        """Look up decoder blocks, with the shapes of their feature maps at resolution R, from the deepest on.

        Args:
            names: the blocks' names or guided-diffusion's indices.
            resolution: R.

        Raises:
            BackboneError: no such block, or R is not a multiple of the network's stride.
        """
        wanted = [f"block_{name}" if isinstance(name, int) else name for name in names]
        self._require_blocks(wanted)
        self.require_resolution(resolution)
        # Shapes scale with R, so a small image is enough to learn them. It is not the smallest: that would leave a
        # single pixel in the deepest maps, which torch refuses to normalise with one channel per group.
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
        """Compute the feature maps {block: (b, c, h, w)} of x (b, 3, h, w), each image at its own timestep.

        Raises:
            NonFiniteActivation: a feature map holds NaN or infinity.
            BackboneError: no such block.
        """
        return self._forward(x, timesteps, blocks, features_only=True)[1]

    @torch.inference_mode()
    def estimate(self, x: torch.Tensor, t: int, blocks: Sequence[str] = (), *, features_only: bool = False) -> Estimate:
        """Run the network once and convert its output to x0_hat, whatever it was trained to predict.

        Args:
            x: float32 (b, 3, h, w); h and w multiples of the network's stride.
            t: the timestep index of the original schedule, 0..T-1, before any rescaling.
            blocks: blocks whose feature maps are returned.
            features_only: stop after the last of ``blocks``, one at least; x0 is then None.

        Raises:
            NonFiniteActivation: a feature map or the output holds NaN or infinity.
            BackboneError: no such block.
        """
        output, features = self._forward(x, t, blocks, features_only=features_only)
        return Estimate(None if output is None else self.to_x0(x, output, t), features)

    def _forward(
        self, x: torch.Tensor, t: int | Sequence[int], blocks: Sequence[str], *, features_only: bool
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Return the network's output, None if the forward ended after the last of the blocks, and the blocks' maps."""
        self._require_blocks(blocks)
        wanted = tuple(name for name in self.block_names if name in blocks)
        compute = partial(self._run, wanted, features_only)
        inputs = self._inputs(x, t)
        if self._graphs is None:
            made = compute(*inputs)
        else:
            made = self._graphs.run((wanted, features_only, self.precision), compute, inputs)
        _require_finite(made, t)
        return made.pop(OUTPUT, None), made

    def _run(self, blocks: Sequence[str], features_only: bool, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the blocks' maps and, unless the forward ended after the last of them, the network's ``OUTPUT``."""
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
        """Convert the network's output at x_t to x0_hat, float32; a learned variance is dropped."""
        return self.diffusion.to_x0(x, output[:, :3].float(), t)

    @torch.inference_mode()
    def raw_output(self, x: torch.Tensor, t: int | Sequence[int]) -> torch.Tensor:
        """Return the network's unconverted output at x_t, (b, 3 or 6, h, w); ``t`` for all images, or for each."""
        return self._network(*self._inputs(x, t))

    def _inputs(self, x: torch.Tensor, t: int | Sequence[int]) -> tuple[torch.Tensor, ...]:
        """The network's inputs: images, their timesteps as rescaled in its training, and labels if it has classes."""
        steps = [t] * len(x) if isinstance(t, int) else t
        factor = 1000 / self.schedule.steps if self.diffusion.rescale_timesteps else 1
        timesteps = torch.tensor([step * factor for step in steps], device=x.device, dtype=torch.float32)
        label = self.diffusion.class_label
        labels = () if label is None else (torch.full((len(x),), label, device=x.device),)
        return x.to(memory_format=self.memory_format), timesteps, *labels

    def _network(self, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with self._autocast(), without_tf32(x.device):
            output: torch.Tensor = self.unet(x, timesteps, class_labels=labels).sample
        return output

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run the network in float32 within this context, whatever its precision."""
        precision, self.precision = self.precision, "float32"
        try:
            yield
        finally:
            self.precision = precision

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def use_fast_kernels(self) -> None:
        """Use the fast kernels for the current device (``extractor.cpu``, ``extractor.cuda``) from now on.

        Features change by up to 1e-5 of their largest value.
        """
        if self.device.type == "cuda":
            from extractor.cuda.network import use_fast_kernels
        else:
            from extractor.cpu.network import use_fast_kernels  # imported late: loading Numba takes a second

        use_fast_kernels(self.unet)

    def forget_graphs(self) -> bool:
        """Free the memory of recorded CUDA graphs and record no more; False, and no change, if there are none."""
        return self._graphs is not None and self._graphs.forget()

    def compile(self) -> None:
        """Have torch compile each block when it is first run, which takes minutes."""
        compile_blocks(self.unet)
        self._is_compiled, self._graphs = True, None


def _require_finite(made: Mapping[str, torch.Tensor], t: int | Sequence[int]) -> None:
    """Raise NonFiniteActivation for NaN or infinity. All maps are tested at once: reading from a GPU waits for it."""
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
