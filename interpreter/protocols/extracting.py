"""Extraction of a protocol's features by ``extractor run``, which skips what the store already has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interpreter.errors import ConfigurationError
from interpreter.extractor_command import parse_data, run_extraction
from interpreter.protocols.protocol import ProtocolSettings
from store.extraction_command import UNTRAINED, ExtractionCommand, as_options
from store.spec import Trajectory


@dataclass(frozen=True)
class DataSource:
    """A data set of a protocol.

    Attributes:
        name: its name in the store and in the table.
        reference: ADAPTER:PATH, as ``extractor run --dataset`` takes it.
        named: whether the name was given, so that it may replace a data set of that name.
    """

    name: str
    reference: str
    named: bool = True


def parse_source(text: str) -> DataSource:
    """Parse ``NAME=ADAPTER:PATH``, or ``ADAPTER:PATH``, which names the data set after its adapter.

    Raises:
        ConfigurationError: the text is neither, or names no folder or manifest, which have no name of their own.
    """
    name, reference = parse_data(text)
    adapter = reference.partition(":")[0]
    if name is None and adapter in ("folder", "manifest"):
        raise ConfigurationError(f"{text}: give the data set a name, as NAME={text}")
    return DataSource(name or adapter, reference, named=name is not None)


@dataclass(frozen=True)
class FeatureRequest:
    """The features of one split of a data set that experiments need, or its prepared photographs.

    Attributes:
        views: the renderings of each photograph.
        preprocessing: None leaves it to ``extractor run``, which takes the backbone's.
        untrained: extract with random weights in the backbone's architecture.
        resolution: None takes the settings'.
        photographs: store the prepared photographs themselves instead of features.
    """

    source: DataSource
    split: str
    trajectory: Trajectory
    views: tuple[str, ...]
    preprocessing: str | None
    untrained: bool = False
    resolution: int | None = None
    photographs: bool = False


Extract = Callable[[FeatureRequest], str]
"""Extracts what is requested and returns the digest of its spec."""


def extract_by_command(store: str, settings: ProtocolSettings) -> Extract:
    """Return a function that extracts into a store by ``extractor run``, in a separate process."""

    def extract(wanted: FeatureRequest) -> str:
        digest: str = run_extraction(command_of(wanted, store, settings))["spec"]
        return digest

    return extract


def command_of(wanted: FeatureRequest, store: str, settings: ProtocolSettings) -> ExtractionCommand:
    """The ``extractor run`` command for a request.

    Raises:
        ConfigurationError: the weights are to be random, but the settings name no backbone for the architecture.
    """
    if wanted.untrained and settings.backbone is None:
        raise ConfigurationError("the method untrained needs a backbone's architecture: name it in the settings")
    options = as_options(
        dataset=wanted.source.reference,
        name=wanted.source.name if wanted.source.named else None,
        split=wanted.split,
        store=store,
        preset=settings.preset,
        backbone=f"{UNTRAINED}{settings.backbone}" if wanted.untrained else settings.backbone,
        resolution=wanted.resolution or settings.resolution,
        preprocessing=wanted.preprocessing,
        views=wanted.views,
        photographs=wanted.photographs,
        json=True,
    )
    if wanted.photographs:  # no network is run
        return ExtractionCommand(options)
    network = as_options(
        timesteps=settings.timesteps,
        blocks=settings.blocks,
        trajectory=wanted.trajectory,
        encoding=settings.encoding,
        device=settings.device,
    )
    return ExtractionCommand(options | network)
