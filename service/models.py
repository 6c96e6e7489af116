"""The models of the service: interpreters, and one extractor for all of them that read features of the same spec."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from extractor.backbones import open_backbone
from extractor.extraction import Extractor
from interpreter.checkpoint import Card, folder_of, load_interpreter
from interpreter.domain import Domain, load_domain
from interpreter.network import Interpreter
from service.errors import NotFound, WrongSettings
from store.pixels import holds_pixels


@dataclass(frozen=True)
class Model:
    """An interpreter and the extractor of the features that it reads.

    Attributes:
        name: name of the model in requests.
        version: 12 hexadecimal digits that change with the files of the model (``version_of``).
        domain: statistics of the features of its training images; None if it has none.
    """

    name: str
    interpreter: Interpreter
    card: Card
    extractor: Extractor
    version: str = "0"
    domain: Domain | None = None

    def __post_init__(self) -> None:
        self.interpreter.require(self.extractor.spec)


class Models:
    """Models by name; the first is the default."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.by_name: Mapping[str, Model] = {model.name: model for model in models}

    @property
    def default(self) -> Model:
        return next(iter(self.by_name.values()))

    def get(self, name: str | None) -> Model:
        """Return the model of that name; the default model for None.

        Raises:
            NotFound: there is no such model; the message lists those there are.
        """
        if name is None:
            return self.default
        if name not in self.by_name:
            raise NotFound(f"no model {name!r} here; there are {', '.join(self.by_name)}")
        return self.by_name[name]

    def readers(self, key: str) -> tuple[list[Model], str]:
        """Return the models that read the features of a key (``feature_key``), and the sha256 of its photograph.

        Raises:
            NotFound: there is no such model.
        """
        digest, _, image_id = key.partition(".")
        readers = [model for model in self.by_name.values() if model.card.spec.digest.startswith(digest)]
        if not readers:
            raise NotFound(f"no model here reads features of the spec {digest}; see /v1/models")
        return readers, image_id

    def extractors(self) -> dict[str, Extractor]:
        """Return {spec digest: extractor of its features}."""
        return {model.card.spec.digest: model.extractor for model in self.by_name.values()}


def load_models(
    names: Iterable[str], backbone: str | None = None, device: str = "cpu", known: Mapping[str, Extractor] | None = None
) -> Models:
    """Load interpreters and backbones.

    Args:
        names: shipped names or folders of interpreters.
        backbone: shipped name, folder or hub id of a backbone to use instead of those that the interpreters name.
        device: cpu, cuda or cuda:N.
        known: {spec digest: extractor} of those loaded before, which are used again: a digest identifies the weights.

    Raises:
        InterpreterError: an interpreter cannot be loaded.
        BackboneError: a backbone cannot be loaded.
        WrongSettings: an interpreter reads photographs, as the controls of protocols do.
    """
    extractors = dict(known or {})
    models: list[Model] = []
    for source in dict.fromkeys(names):
        interpreter, card = load_servable(source)
        digest = card.spec.digest
        if digest not in extractors:
            network = open_backbone(backbone or card.backbone, card.spec.precision, device)
            extractors[digest] = Extractor(network, card.spec, interpreter.codebook)
        folder = folder_of(source)
        name = _free_name(folder.name, card.task.name, [model.name for model in models])
        domain = load_domain(folder, card.spec)
        models.append(Model(name, interpreter.to(device), card, extractors[digest], version_of(folder), domain))
    return Models(models)


def load_servable(source: str) -> tuple[Interpreter, Card]:
    """Load an interpreter by shipped name or folder.

    Raises:
        InterpreterError: it cannot be loaded.
        WrongSettings: it reads photographs.
    """
    interpreter, card = load_interpreter(source)
    if holds_pixels(card.spec):
        raise WrongSettings(
            f"{source} reads photographs, and the service serves models of features; use `interpreter segment`"
        )
    return interpreter, card


def feature_key(spec: str, image_id: str) -> str:
    """Return the key of a photograph's features: 16 digits of the spec's digest, a dot, the image's sha256."""
    return f"{spec[:16]}.{image_id}"


def version_of(folder: Path) -> str:
    """Return the first 12 hexadecimal digits of the sha256 over an interpreter's files: their names and contents."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def _free_name(folder: str, task: str, taken: list[str]) -> str:
    """Return a free name for a model: its task, else its folder, else the task with a number."""
    for name in (task, folder, *(f"{task}-{i}" for i in range(2, len(taken) + 3))):
        if name not in taken:
            return name
    raise AssertionError("unreachable: there are more names than models")
