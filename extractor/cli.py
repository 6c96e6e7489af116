"""The ``extractor`` command: photographs in, cached diffusion features out."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.table import Table

from extractor import run_options as option
from extractor.backbone_cli import app as backbone_commands
from extractor.backbones import encoding_of, open_backbone
from extractor.datasets import DataSet, Selection
from extractor.errors import ExtractorError, ScheduleError
from extractor.options import (
    AsJson,
    BackboneOption,
    BlocksOption,
    ClassLabelOption,
    ClipOption,
    DeviceOption,
    GridOption,
    PrecisionOption,
    PreprocessingOption,
    PresetOption,
    ResolutionOption,
    SeedOption,
    TimestepsOption,
    TrajectoryOption,
    preprocessing_for,
    recipe_of,
)
from extractor.pretrain_cli import app as pretraining_commands
from extractor.request import Request, require_own_name
from store import console
from store.errors import SpecError, SpecMismatch, StoreError
from store.feature_store import FeatureStore
from store.interrupts import Stop
from store.pixels import spec_of_pixels
from store.spec import FeatureSpec
from store.views import parse_views

if TYPE_CHECKING:
    from extractor.run_report import RunReport
    from extractor.runs import SizePlan

app = typer.Typer(
    help="Run a diffusion U-Net once over each photograph and cache its decoder's feature maps.",
    epilog="Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 some images could not be used (they are listed), "
    "130 interrupted (run again to continue).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
console.add_version_option(app)


@app.command(
    epilog="Examples: extractor run --dataset folder:photos --store features.zarr · "
    "extractor run --dataset stare:/data/STARE --split train --store features.zarr --dry-run"
)
def run(
    context: typer.Context,
    dataset: option.Dataset,
    store: option.Store,
    name: option.Name = None,
    split: option.Split = None,
    labelled: option.LabelledOnly = False,
    images: option.Images = None,
    limit: option.Limit = None,
    views: option.Views = "identity",
    photographs: option.PhotographsOnly = False,
    preset: PresetOption = "small",
    backbone: BackboneOption = None,
    class_label: ClassLabelOption = None,
    preprocessing: PreprocessingOption = None,
    resolution: ResolutionOption = None,
    trajectory: TrajectoryOption = "ddim",
    timesteps: TimestepsOption = None,
    grid: GridOption = None,
    blocks: BlocksOption = None,
    clip: ClipOption = False,
    seed: SeedOption = 0,
    encoding: option.EncodingOption = None,
    codebook: option.CodebookOption = None,
    precision: PrecisionOption = "float32",
    expect_spec: option.ExpectSpec = None,
    device: DeviceOption = "cpu",
    batch: option.Batch = None,
    workers: option.Workers = None,
    scheduler: option.Scheduler = None,
    compiled: option.Compiled = False,
    overwrite: option.Overwrite = False,
    profile: option.Profile = False,
    dry_run: option.DryRun = False,
    ignore_space: option.IgnoreSpace = False,
    as_json: AsJson = False,
) -> None:
    """Extract the features of a data set into a store; what the store holds already is left as it is."""
    from extractor.execution import Execution, extract_recorded  # imported late: loading diffusers takes seconds
    from extractor.runs import plan_size, require_room

    if workers is not None and scheduler is not None:
        raise typer.BadParameter("--workers starts a cluster, --scheduler names one; give one of them")
    if codebook is not None and encoding != "compact":
        raise typer.BadParameter("--codebook belongs to the compact encoding; give --encoding compact with it")
    if photographs and (given := console.options_given(context, _OF_A_NETWORK)):
        raise typer.BadParameter(f"--photographs runs no network: leave out {', '.join(given)}")
    if trajectory != "stochastic" and console.options_given(context, ("seed",)):
        raise typer.BadParameter("--seed draws the noise of --trajectory stochastic; the others have none")
    if expect_spec is not None and not re.fullmatch("[0-9a-f]{8,64}", expect_spec):
        raise typer.BadParameter(f"--expect-spec: expected a digest, or 8 of its digits at least, got {expect_spec!r}")
    renderings = parse_views(views)
    recipe = recipe_of(preset, clip, trajectory, seed, (timesteps, grid, blocks), resolution)
    selection = Selection(dataset, name, split, labelled, images, limit)
    data, features = selection.load(), FeatureStore(store)
    for line in data.notes:
        console.note(line)
    require_own_name(features, selection, data.name)
    source = backbone or recipe.backbone
    how = encoding_of(encoding, source, codebook) if encoding else recipe.encoding
    execution = Execution(device, batch, workers, scheduler, overwrite, compiled)
    # A cluster's workers load the network themselves: here it only names the spec, on a machine that may have no GPU.
    network = open_backbone(source, precision, "cpu" if execution.spread else device, class_label)
    prepared = preprocessing_for(network, preprocessing)
    if photographs:
        spec = spec_of_pixels(recipe.resolution, prepared)
    else:
        spec = dataclasses.replace(recipe, encoding=how, preprocessing=prepared).spec(network)
    if expect_spec is not None and not spec.digest.startswith(expect_spec):
        raise SpecMismatch(
            f"these options lead to features of spec {spec.digest[:12]}, not of {expect_spec[:12]}"
            + _difference(features, expect_spec, spec)
        )
    request = Request(selection, spec, source, renderings, codebook, class_label)
    entries = len(data.photographs) * len(request.views)
    if not as_json:
        _print_masks(data)
    if dry_run or not ignore_space:
        with console.progress("looking for features", len(data.photographs), as_json=as_json) as advance:
            size = plan_size(data, features, spec, request.views, overwrite=overwrite, advance=advance)
        _print_size(size, entries, spec, as_json and dry_run)
        if dry_run:
            return
        require_room(size)
    with _interruptible(data.name, entries, as_json) as (stop, done):
        report = extract_recorded(
            request, features, network, execution, dataset=data, advance=done, stop=stop,
            say=console.say,
        )  # fmt: skip
    _print_report(report, data.name, spec.digest, as_json)
    if profile:
        _print_profile(report.seconds)
    if report.interrupted:
        raise KeyboardInterrupt
    console.exit_after(report.failed)


_OF_A_NETWORK = (
    "trajectory", "seed", "class_label", "timesteps", "grid", "blocks", "clip", "encoding", "codebook", "precision",
    "batch", "workers", "scheduler", "compiled",
)  # fmt: skip
"""Options of ``run`` that say how the network is run and what is kept of its features."""


def _difference(store: FeatureStore, expected: str, spec: FeatureSpec) -> str:
    """What differs, as far as it is known: the store may hold the spec that is expected."""
    try:
        return f"; they differ in\n{store.spec(expected).difference(spec)}"
    except StoreError:
        return ": an option, the backbone, its class label or the codebook differs from what was expected"


@contextmanager
def _interruptible(name: str, entries: int, as_json: bool) -> Iterator[tuple[Stop, Callable[[str], None]]]:
    """Yield what Ctrl-C asks to stop, and the callback that advances a progress bar by one view of a photograph."""
    stop = Stop()
    with (
        stop.on_interrupt(lambda: console.say("finishing what is in flight; Ctrl-C again interrupts at once")),
        console.progress(f"extracting {name}", entries, as_json=as_json) as advance,
    ):
        yield stop, lambda photograph: advance(1, photograph)


def _print_size(size: SizePlan, asked: int, spec: FeatureSpec, as_json: bool) -> None:
    if as_json:
        console.print_json(size._asdict() | {"bytes_total": size.bytes_total, "spec": spec.digest})
        return
    if not size.entries:
        console.say(f"0 of {asked} entries to do")
        return
    free = "unknown" if size.free is None else console.human_bytes(size.free)
    console.say(
        f"{size.entries} of {asked} entries to do, "
        f"about {console.human_bytes(sum(size.bytes_by_block.values()))} each, "
        f"{console.human_bytes(size.bytes_total)} in all, {free} free"
    )
    blocks = ", ".join(
        f"{name} {console.human_bytes(count)} ({console.human_bytes(count * size.entries)} in all)"
        for name, count in size.bytes_by_block.items()
    )
    console.say(f"by block: {blocks}")


def _print_masks(data: DataSet) -> None:
    """Print how many photographs have a mask of each target, so that masks which were not found are noticed early."""
    counts = Counter(target for photograph in data.photographs for target in photograph.masks)
    counted = ", ".join(f"{target} of {count}" for target, count in sorted(counts.items())) or "none"
    console.say(f"masks of {len(data.photographs)} photographs: {counted}")


def _print_report(report: RunReport, name: str, digest: str, as_json: bool) -> None:
    if as_json:
        console.print_json(dataclasses.asdict(report) | {"dataset": name, "spec": digest})
        return
    console.print_line(
        f"{name}: {report.extracted} extracted, {report.present} there already, {len(report.failed)} left out; "
        f"{report.forwards} forwards, {console.human_bytes(report.bytes_stored)} written; spec {digest[:12]}"
    )
    if report.fallbacks:
        console.say(f"computed in float32, as values overflowed half precision: {', '.join(report.fallbacks)}")
    for _, reason in report.failed:
        console.say(f"left out: {reason}")


def _print_profile(seconds: dict[str, float]) -> None:
    table = Table("stage", "seconds", title="summed over threads; stages run in parallel")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.2f}")
    console.err.print(table)


app.add_typer(pretraining_commands)
app.add_typer(backbone_commands)


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, ExtractorError, StoreError, usage=(ScheduleError, SpecError))


if __name__ == "__main__":
    main()
