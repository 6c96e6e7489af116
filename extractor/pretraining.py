"""Pre-training of a diffusion U-Net on unlabelled photographs.

x0  clean crops (b, 3, s, s) in [-1, 1]      t  timestep      v  what the network predicts

The loss is the mean squared error of the network's own target (noise, image or velocity), so the target determines how
noise levels are weighted. How often each level is seen is determined by ``level_power`` p: t = T u^p with u uniform for
each crop, so p = 1 is uniform, and p = 3 shows half of the crops below T / 8, where features are read.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from extractor.backbone import Backbone
from extractor.backbone_folder import load_backbone, save_backbone
from extractor.diffusion import Diffusion, Prediction
from extractor.errors import PretrainingError
from extractor.inversion import reconstruct, round_trip
from extractor.photographs import CropDataset, PreparedPhotographs
from extractor.preprocess import to_pixels
from extractor.pretraining_folder import PretrainingFolder
from extractor.pretraining_settings import PretrainingSettings
from extractor.schedule import NoiseSchedule, noise_schedule
from extractor.unet import build_unet
from store.files import raising_store_full
from store.interrupts import Stop

if TYPE_CHECKING:  # loading it takes a second
    from torch.utils.tensorboard import SummaryWriter

_NOISE = 1
"""Last number of the seeds of noise. Without it they would be those of a crop: numpy pads seeds with zeros."""
RECONSTRUCTION_GRID = (1, 10, 100, 500)

Report = Callable[[int, float], None]


class Pretraining:
    """One pre-training run in one folder: ``run`` starts it, or resumes it where it stopped.

    Args:
        settings: settings of the run; on resume they must be those it was started with, except ``steps`` and
            ``checkpoint_every``.
        photographs: prepared photographs; on resume the same.
        folder: receives settings.json, photographs.json, state/, tensorboard/, pictures/ and, at every checkpoint,
            the averaged backbone in backbone/.
        start: the backbone whose weights a new run starts from, if its settings are ``going_on_from`` it.
        workers: processes that make crops while the network trains; the training process alone cannot keep a GPU busy.
            They import the main module again, so a script needs its ``if __name__ == "__main__"``.

    Raises:
        PretrainingError: the folder holds another run, or the settings do not fit the network or ``start``.
    """

    def __init__(
        self,
        settings: PretrainingSettings,
        photographs: PreparedPhotographs,
        folder: Path,
        start: Backbone | None = None,
        *,
        workers: int = 0,
    ) -> None:
        if settings.initial != (start and start.fingerprint):
            raise PretrainingError("the backbone to start from is not the one that the settings name")
        settings.require_fitting_sizes()
        self._files = PretrainingFolder(folder)
        self._files.require_same_settings(settings)
        self._files.require_same_photographs(photographs)
        self.settings, self._photographs, self._workers = settings, photographs, workers
        self.schedule: NoiseSchedule = noise_schedule(settings.schedule)
        self.accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulate,
            project_config=ProjectConfiguration(project_dir=str(folder)),
            log_with=None,
        )
        set_seed(settings.seed)
        unet = build_unet(settings.unet)
        if start is not None:
            unet.load_state_dict(start.unet.state_dict())
        optimizer = torch.optim.Adam(unet.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        # accelerate steps a prepared schedule once for each process.
        processes = self.accelerator.num_processes
        rate = get_cosine_schedule_with_warmup(optimizer, settings.warmup * processes, settings.steps * processes)
        self.ema = EMAModel(unet.parameters(), decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.unet: UNet2DModel
        self.unet, self.optimizer, self.rate = self.accelerator.prepare(unet, optimizer, rate)
        self.ema.to(self.accelerator.device)
        self.step = 0
        self.accelerator.register_for_checkpointing(self)
        if (state := self._files.complete_state()) is not None:
            self.accelerator.load_state(str(state))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "ema": self.ema.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)

    def run(self, report: Report | None = None, stop: Stop | None = None) -> Backbone:
        """Train up to ``settings.steps``; returns the averaged backbone as loaded from the folder ``backbone``.

        Args:
            report: called with the step and its loss, the mean over the crops that this process has seen in it.
            stop: checked after each step; a checkpoint is then written and KeyboardInterrupt raised. Runs of several
                processes ignore it, as these cannot agree on a step; they resume from the last regular checkpoint.
        """
        from torch.utils.tensorboard import SummaryWriter  # imported late: takes a second

        is_first = self.accelerator.is_main_process
        with SummaryWriter(str(self._files.tensorboard)) if is_first else nullcontext() as writer:
            self._train(writer, report, stop)
        if is_first:  # again: a run killed in its last checkpoint may have left it incomplete
            save_backbone(self.averaged(), self._files.backbone)
        self.accelerator.wait_for_everyone()
        return load_backbone(self._files.backbone)

    def _train(self, writer: SummaryWriter | None, report: Report | None, stop: Stop | None) -> None:
        """Train up to ``settings.steps``; raise KeyboardInterrupt after a checkpoint if a stop is requested."""
        batches = list[tuple[NDArray[np.float32], list[int]]]()
        for position, x0 in enumerate(self._batches()):
            batches.append(self._train_step(x0, position % self.settings.accumulate))
            if not self.accelerator.sync_gradients:
                continue  # the step ends with the last of its batches
            losses, levels = np.concatenate([of_each for of_each, _ in batches]), [t for _, ts in batches for t in ts]
            batches.clear()
            loss = float(losses.mean())
            self._require_finite(loss)
            if writer is not None:
                writer.add_scalar("loss", loss, self.step)
                for name, of_level in _by_level(losses, levels).items():
                    writer.add_scalar(f"loss_by_level/{name}", of_level, self.step)
            if report is not None:
                report(self.step, loss)
            stopped = stop is not None and stop.requested and self.accelerator.num_processes == 1
            regular = self.step % self.settings.checkpoint_every == 0 or self.step == self.settings.steps
            if regular or stopped:
                self._checkpoint()
            if stopped:
                raise KeyboardInterrupt
            if regular and writer is not None:
                self._draw(writer)

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise PretrainingError(
                f"the loss became {loss} at step {self.step}; start again from the last checkpoint with a "
                "lower learning rate or without mixed precision"
            )

    def averaged(self) -> Backbone:
        """The backbone with the exponential moving average of the weights."""
        unet = build_unet(self.settings.unet)
        unet.load_state_dict(self.accelerator.unwrap_model(self.unet).state_dict())
        self.ema.copy_to(unet.parameters())
        diffusion = Diffusion(self.schedule, self.settings.prediction)
        return Backbone(unet, diffusion, self.settings.unet, preprocessing=self.settings.preprocessing)

    def _batches(self) -> Iterator[torch.Tensor]:
        """Yield float32 (b, 3, s, s) from the first batch not yet seen; crop i depends on the seeds and i only."""
        settings = self.settings
        crops = CropDataset(
            self._photographs,
            settings.crop,
            settings.photometric,
            *settings.seeds,
            colourless=settings.colourless,
        )
        per_step = settings.batch * settings.accumulate * self.accelerator.num_processes
        first, last = self.step * per_step, max(self.step, settings.steps) * per_step
        loader = DataLoader(
            Subset(crops, range(first, last)),
            batch_size=settings.batch,
            num_workers=self._workers,
            worker_init_fn=_leave_signals,
            multiprocessing_context="spawn" if self._workers else None,  # a fork would copy locked thread pools
        )
        if last > first:
            yield from self.accelerator.prepare(loader)

    def _train_step(self, x0: torch.Tensor, part: int) -> tuple[NDArray[np.float32], list[int]]:
        """Train on one batch, number ``part`` of its step; returns the loss and the timestep of each crop."""
        rank = self.accelerator.process_index
        generator = np.random.default_rng([*self.settings.seeds, self.step, part, rank, _NOISE])
        drawn = self.schedule.steps * generator.random(len(x0)) ** self.settings.level_power
        t = [int(level) for level in drawn]
        draw = torch.Generator(x0.device).manual_seed(int(generator.integers(2**63)))
        noise = torch.randn(x0.shape, generator=draw, device=x0.device)
        with self.accelerator.accumulate(self.unet):
            x, target = noisy_pair(self.schedule, self.settings.prediction, x0, noise, t)
            output = self.unet(x, torch.tensor(t, device=x.device)).sample
            losses = functional.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3))
            self.accelerator.backward(losses.mean())
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.unet.parameters())
            self.step += 1
        return losses.detach().cpu().numpy(), t

    def _checkpoint(self) -> None:
        """Write the state and the averaged backbone."""
        with raising_store_full(self._files.new_state):
            self.accelerator.save_state(str(self._files.new_state))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._files.keep_new_state()
            save_backbone(self.averaged(), self._files.backbone)
        self.accelerator.wait_for_everyone()

    def _draw(self, writer: Any) -> None:
        """Save pictures of a reconstruction after inversion over the sparse grid, and of samples from noise."""
        device = self.accelerator.device
        backbone = self.averaged().to(device)
        x0 = self._photographs.network_input(0).to(device)
        grid = [t for t in RECONSTRUCTION_GRID if t < self.schedule.steps]
        back, psnr = round_trip(backbone, x0, grid, inside=to_pixels(x0)[0].any(axis=2))
        side = min(256, self.settings.resolution)
        noise = torch.from_numpy(
            np.random.default_rng(self.settings.seed).standard_normal((2, 3, side, side), dtype=np.float32)
        )
        grid = sorted({round(t) for t in np.linspace(1, 0.99 * self.schedule.steps, 20)})
        samples = reconstruct(backbone, noise.to(device), grid, clip=True)
        writer.add_scalar("reconstruction_psnr", psnr, self.step)
        for name, picture in (
            ("reconstruction", np.concatenate([to_pixels(x0)[0], to_pixels(back)[0]], axis=1)),
            ("samples", np.concatenate(list(to_pixels(samples)), axis=1)),
        ):
            writer.add_image(name, picture, self.step, dataformats="HWC")
            self._files.save_picture(picture, name, self.step)


def noisy_pair(
    schedule: NoiseSchedule,
    prediction: Prediction,
    x0: torch.Tensor,
    noise: torch.Tensor,
    t: int | Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t ~ q(x_t | x0), and the target that a network of this prediction type learns; both have the shape of x0.

    Args:
        t: one timestep for all images, or one for each.
    """
    x = schedule.noised(x0, noise, t)
    match prediction:
        case "epsilon":
            return x, noise
        case "sample":
            return x, x0
        case "v_prediction":
            image, noisy = schedule.shares(t, x0)
            return x, image * noise - noisy * x0


def _leave_signals(_worker: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM, sent to all processes of a group: the training process ends workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _by_level(losses: NDArray[np.float32], levels: Sequence[int]) -> dict[str, float]:
    """Mean loss of the crops at each order of magnitude of timesteps."""
    names = np.array([f"t_below_{10 ** len(str(max(t, 1)))}" for t in levels])
    return {str(name): float(losses[names == name].mean()) for name in np.unique(names)}
