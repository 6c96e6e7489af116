"""The command ``extractor run``, for code that cannot import the extractor: to run it, or to show it to a user."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

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


def options_of_spec(spec: FeatureSpec, backbone: str | None) -> dict[str, str | bool]:
    """The options of ``extractor run`` that make features of this spec.

    Args:
        backbone: name or location of the backbone; the option is ``...`` if it is None.
    """
    if holds_pixels(spec):
        return _options_of_pixels(spec)
    chosen = {
        "backbone": backbone or "...",
        "preprocessing": preprocessing_name(spec.preprocessing) or "...",
        "trajectory": spec.trajectory,
        "seed": spec.seed,
        "timesteps": ",".join(map(str, spec.timesteps)),
        "grid": ",".join(map(str, spec.grid)) if spec.grid != spec.timesteps else None,
        "blocks": ",".join(block.name.removeprefix("block_") for block in spec.blocks),
        "resolution": spec.resolution,
        "encoding": spec.encoding.kind,
        "precision": spec.precision if spec.precision != "float32" else None,
    }
    given: dict[str, str | bool] = {name: str(value) for name, value in chosen.items() if value is not None}
    return given | ({"clip": True} if spec.clip else {})


def _options_of_pixels(spec: FeatureSpec) -> dict[str, str | bool]:
    prepared = preprocessing_name(spec.preprocessing) or "..."
    return {"photographs": True, "preprocessing": prepared, "resolution": str(spec.resolution)}
