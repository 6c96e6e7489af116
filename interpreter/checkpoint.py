"""An interpreter on disk: weights as safetensors and everything else as one readable JSON file."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file

from interpreter.config import InterpreterConfig
from interpreter.errors import CheckpointError, ConfigurationError
from interpreter.network import Interpreter
from interpreter.settings import TrainingRecord
from interpreter.task import Task
from store.codebook import load_codebook
from store.errors import StoreError
from store.files import replaced
from store.manifest import require_intact
from store.pixels import holds_pixels
from store.spec import FeatureSpec, TransformEncoding
from store.validation import first_problem

CARD_FILE = "interpreter.json"
WEIGHTS_FILE = "interpreter.safetensors"
CODEBOOK_FILE = "codebook.safetensors"
MODELS = Path(__file__).parent / "models"
UNLICENSED = "not stated"


class Validation(BaseModel):
    """Scores of the weights that were kept, on the validation images that they were selected on.

    Attributes:
        validation_dice: ``Scores.mean_dice`` on them, 0..1; None without validation images.
        epoch: number of epochs after which the weights were kept.
        calibrated: whether the temperature was fitted to these images.
        finished: whether the training ran to its end, after which temperature and domain are fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_dice: float | None = Field(default=None, ge=0, le=1)
    epoch: int | None = Field(default=None, ge=0)
    calibrated: bool = False
    finished: bool = True


class Card(BaseModel):
    """What an interpreter is and where it comes from.

    Attributes:
        spec: spec of the features it reads.
        backbone: name or location of the backbone those features come from.
        task: classes and colours.
        config: configuration of the network.
        training_ids: image ids it was trained on.
        validation_ids: image ids its weights were selected on.
        training: settings of its training, and what else decided it.
        metrics: scores on the validation images.
        licence: licence of the weights.
        temperature: logits are divided by it before they become probabilities; fitted on source validation.
        learnt_at: side of the square it was trained at, if ``spec`` has another one (``interpreter.adapting``);
            the network's levels are built for this side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: FeatureSpec
    backbone: str
    task: Task
    config: InterpreterConfig
    training_ids: tuple[str, ...] = ()
    validation_ids: tuple[str, ...] = ()
    training: TrainingRecord = TrainingRecord()
    metrics: Validation = Validation()
    licence: str = UNLICENSED
    temperature: float = Field(default=1.0, gt=0)
    learnt_at: int | None = Field(default=None, gt=0)

    @property
    def seen_ids(self) -> frozenset[str]:
        """Ids of all images that it, or the teacher of its pseudo-labels, was trained or selected on."""
        taught = self.training.pseudo_labels
        return frozenset((*self.training_ids, *self.validation_ids, *(taught.teacher_images if taught else ())))


def save_interpreter(folder: Path, interpreter: Interpreter, card: Card) -> None:
    """Write weights (float16), codebook and card; the card last, and each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: _half(v.detach().cpu()) for k, v in interpreter.state_dict().items()}
    with replaced(folder / WEIGHTS_FILE) as partial:
        save_file(weights, partial)
    if interpreter.codebook is not None:
        with replaced(folder / CODEBOOK_FILE) as partial:
            interpreter.codebook.save(partial)
    write_card(folder, card)


def write_card(folder: Path, card: Card) -> None:
    """Replace the card of an interpreter, and leave its weights as they are."""
    with replaced(folder / CARD_FILE) as partial:
        partial.write_text(card.model_dump_json(indent=2) + "\n")


def _half(values: torch.Tensor) -> torch.Tensor:
    """Values as float16; as they are if they are integers, or not finite as float16."""
    half = values.half() if values.is_floating_point() else values
    return (half if bool(half.isfinite().all()) else values).contiguous()


def load_interpreter(name: str | Path) -> tuple[Interpreter, Card]:
    """Load a shipped interpreter by name, or one from a folder; in evaluation mode, on the CPU.

    Only JSON and safetensors files are read. If the folder has a manifest, the files must match their sha256 in it.

    Raises:
        CheckpointError: it is not found or damaged, or its weights and card do not fit together.
    """
    folder, card = folder_of(name), read_card(name)
    require_intact(folder, WEIGHTS_FILE, otherwise=CheckpointError)
    codebook = None
    if isinstance(card.spec.encoding, TransformEncoding):
        try:
            codebook = load_codebook(folder / CODEBOOK_FILE)
        except StoreError as error:
            raise CheckpointError(f"{name}: {error}") from error
    try:
        interpreter = Interpreter(card.spec.with_resolution(card.learnt_at), card.config, codebook)
    except (StoreError, ConfigurationError) as error:
        raise CheckpointError(f"{folder / CARD_FILE}: {error}") from error
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        if "head.weight" in weights:  # saved when there was only one head
            weights = {f"head.{name}": value for name, value in weights.items()}
        interpreter.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except Exception as error:  # safetensors and torch raise different types for damaged and foreign files
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: cannot be loaded ({error})") from error
    interpreter.temperature = card.temperature
    return interpreter.eval(), card


def read_card(name: str | Path) -> Card:
    """The card of a shipped interpreter by name, or of one in a folder.

    Raises:
        CheckpointError: it is not found, cannot be read, or is not the one whose sha256 the manifest has.
    """
    path = folder_of(name) / CARD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{name}: no {CARD_FILE} in it, and no shipped interpreter of that name (shipped: {', '.join(shipped())})"
        )
    require_intact(path.parent, CARD_FILE, otherwise=CheckpointError)
    try:
        return Card.model_validate_json(path.read_text())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_problem(error)}") from error


def how_to_try(folder: Path, spec: FeatureSpec) -> str:
    """A command that uses an interpreter; the service has no photographs for those that read no features."""
    return f"interpreter segment --model {folder}" if holds_pixels(spec) else f"service --model {folder}"


def folder_of(name: str | Path) -> Path:
    """The folder of an interpreter; the name of a shipped one takes precedence over a folder called the same."""
    return MODELS / name if str(name) in shipped() else Path(name)


def shipped() -> list[str]:
    """Names of the interpreters that this package ships, sorted."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CARD_FILE}"))
