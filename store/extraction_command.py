"""The command ``extractor run``, for code that cannot import the extractor: to run it, or to show it to a user."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from store.console import Exit
from store.interrupts import Stop
from store.pixels import holds_pixels
from store.spec import FeatureSpec, preprocessing_name

REPEATABLE = frozenset(
    {
        "dataset", "name", "split", "limit", "images", "labelled", "views", "preset", "backbone", "class-label",
        "preprocessing",
        "resolution", "photographs", "trajectory", "seed", "timesteps", "grid", "blocks", "clip", "encoding",
        "codebook", "precision",
    }
)  # fmt: skip
"""Options that determine what is made, by name; run records hold these and no others. The rest say how and on which
machines it is made, which is up to whoever runs it: a record in a store from elsewhere must not name machines."""

UNTRAINED = "untrained:"
"""Prefix of a backbone's name that stands for its architecture with random weights."""


@dataclass(frozen=True)
class ExtractionCommand:
    """One call of ``extractor run``.

    Attributes:
        options: values by their names on the command line, such as {"dataset": "stare:/data/STARE", "clip": True};
            True for an option without a value. The value ``...`` stands for what the user has to fill in.
    """

    options: Mapping[str, str | bool]

    def __str__(self) -> str:
        """The command line, quoted for a shell."""
        words = ["extractor", "run"]
        for name, value in self.options.items():
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return shlex.join(words)

    @property
    def arguments(self) -> list[str]:
        """The arguments of a new process, its program first."""
        options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in self.options.items()]
        return [sys.executable, "-m", "extractor.cli", "run", *options]

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command to its end in a new process, whose stdout is returned and whose stderr is inherited.

        Ctrl-C, SIGTERM and SIGHUP are passed on: it finishes what is in flight, then KeyboardInterrupt is raised here.
        """
        stop, running = Stop(), list[subprocess.Popen[str]]()

        def hand_on() -> None:
            for process in running:
                process.terminate()

        with (
            stop.on_interrupt(hand_on),
            # In a process group of its own, it gets a terminal's Ctrl-C only once, through this process.
            subprocess.Popen(self.arguments, stdout=subprocess.PIPE, text=True, process_group=0) as process,
        ):
            running.append(process)
            if stop.requested:
                hand_on()
            try:
                printed, _ = process.communicate()
            except KeyboardInterrupt:  # at the second signal
                hand_on()
                raise
        if stop.requested:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(self.arguments, process.returncode, printed)


def reached_its_end(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a run was carried out; it may have left out photographs, which its report lists."""
    return done.returncode in (Exit.OK, Exit.PARTIAL)


def as_options(**values: object) -> dict[str, str | bool]:
    """Options by their names on the command line, in which ``-`` takes the place of ``_``.

    Args:
        values: True stands for an option without a value, None and False for one that is not given; the items of a
            tuple or list are joined by commas.
    """
    given = {
        name.replace("_", "-"): value for name, value in values.items() if value is not None and value is not False
    }
    return {name: True if value is True else _written(value) for name, value in given.items()}


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def options_of_spec(spec: FeatureSpec, backbone: str | None) -> dict[str, str | bool]:
    """The options of ``extractor run`` that make features of this spec.

    A preprocessing that has no name is left out: it is then taken from the backbone.

    Args:
        backbone: name or location of the backbone; the option is ``...`` if it is None.
    """
    preprocessing = preprocessing_name(spec.preprocessing)
    if holds_pixels(spec):
        prepared_by = (backbone or "...") if preprocessing is None else None
        return as_options(
            photographs=True, backbone=prepared_by, preprocessing=preprocessing, resolution=spec.resolution
        )
    return as_options(
        backbone=backbone or "...",
        preprocessing=preprocessing,
        trajectory=spec.trajectory,
        seed=spec.seed,
        timesteps=spec.timesteps,
        grid=spec.grid if spec.grid != spec.timesteps else None,
        blocks=[block.name.removeprefix("block_") for block in spec.blocks],
        resolution=spec.resolution,
        encoding=spec.encoding.kind,
        precision=spec.precision if spec.precision != "float32" else None,
        clip=spec.clip,
    )
