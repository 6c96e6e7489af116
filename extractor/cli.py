"""The ``extractor`` command: photographs in, cached diffusion features out."""

from __future__ import annotations

import dataclasses
import json
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.table import Table

from extractor.architectures import small_unet
from extractor.datasets import ADAPTERS, DataSet, load_dataset, of_split
from extractor.diffusion import Diffusion, Prediction
from extractor.errors import DatasetError, ExtractorError
from extractor.presets import PRESETS, Preset, encoding_of, is_shipped, open_backbone
from extractor.schedule import noise_schedule
from store import console
from store.codebook import DISTORTION, FINEST_DISTORTION
from store.console import Exit
from store.errors import StoreError
from store.feature_store import FeatureStore
from store.records import RunRecord
from store.spec import EncodingName, Precision, Preprocessing, Trajectory
from store.views import parse_views

if TYPE_CHECKING:
    from extractor.pipeline import RunReport
    from extractor.runs import SizePlan

app = typer.Typer(
    help="Run a diffusion U-Net once over each photograph and cache its decoder's feature maps.",
    epilog="Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 some images could not be used (they are listed).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@app.command(
    epilog="Examples: extractor run --dataset folder:photos --store features.zarr · "
    "extractor run --dataset stare:/data/STARE --split train --store features.zarr --dry-run"
)
def run(
    context: typer.Context,
    dataset: Annotated[str, typer.Option(help=f"ADAPTER:PATH; adapters: {', '.join(ADAPTERS)}.", show_default=False)],
    store: Annotated[str, typer.Option(help="Folder of the feature store.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What the data set is called in the store.")] = None,
    preset: Annotated[str, typer.Option(help=f"Recipe: {', '.join(PRESETS)}.")] = "small",
    backbone: Annotated[
        str | None, typer.Option(help="Shipped name, folder or hub id; the preset's if not given.")
    ] = None,
    trajectory: Annotated[Trajectory, typer.Option(help="How the noise grid is walked.")] = "ddim",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; stochastic only.")] = 0,
    class_label: Annotated[int | None, typer.Option(min=0, help="For class-conditional backbones.")] = None,
    timesteps: Annotated[str | None, typer.Option(help="Timesteps to keep, such as 1,10,100; the preset's.")] = None,
    grid: Annotated[str | None, typer.Option(help="Timesteps to run the network at; the kept ones.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Decoder blocks by index, such as 4,6,8; the preset's.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Clip x0_hat to [-1, 1] at every step.")] = False,
    encoding: Annotated[EncodingName, typer.Option(help="How features are stored; compact is smallest.")] = "float16",
    codebook: Annotated[
        Path | None, typer.Option(help="Of the compact encoding (fit-codebook); the backbone's own if not given.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    views: Annotated[
        str, typer.Option(help="Renderings of each image, such as identity,flips,photometric:8.")
    ] = "identity",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Only images whose file names match, such as '*_left.jpg'.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in one forward. [default: 1; on CUDA 4]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Compute again what is there.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much would be written, and stop.")] = False,
    ignore_space: Annotated[bool, typer.Option("--ignore-space", help="Start even if it may not fit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Extract a data set into a store; what is there already is left as it is."""
    from extractor.extraction import Extractor  # imported late: loading diffusers takes seconds
    from extractor.pipeline import Stop
    from extractor.runs import extract_dataset, plan_size, require_room

    recipe = dataclasses.replace(_preset(preset), clip=clip).along(trajectory, seed)
    recipe = recipe.reading(_integers(timesteps), _integers(grid), _integers(blocks))
    data = _selected(load_dataset(dataset, name), split, limit, images)
    source = backbone or recipe.backbone
    how, code = encoding_of(encoding, source, codebook)
    network = open_backbone(source, precision, device, class_label)
    spec = dataclasses.replace(recipe, encoding=how).spec(network)
    features = FeatureStore(store)
    extractor = Extractor(network, spec, code)
    renderings = parse_views(views)
    entries = len(data.photographs) * len(renderings)
    with console.progress("looking for features", len(data.photographs), quiet=as_json) as advance:
        size = plan_size(data, features, spec, renderings, overwrite=overwrite, advance=advance)
    _say_size(size, entries, as_json and dry_run)
    if dry_run:
        return
    if not ignore_space:
        require_room(size)
    features.register(spec, _lasting(source), code)
    record = RunRecord(spec=spec.digest, dataset=data.name, options=_options(context), device=device)
    features.records.write(record)
    stop, started = Stop(), time.perf_counter()
    with (
        stop.on_interrupt(lambda: console.err.print("finishing what is in flight; Ctrl-C again interrupts at once")),
        console.progress(f"extracting {data.name}", entries, quiet=as_json) as advance,
    ):
        report = extract_dataset(
            data,
            features,
            extractor,
            views=renderings,
            batch=batch or (1 if device == "cpu" else 4),
            overwrite=overwrite,
            part_of_a_set=any(choice is not None for choice in (split, limit, images)),
            advance=lambda photograph: advance(1, photograph),
            stop=stop,
            say=lambda message: console.err.print(message, highlight=False),
        )
    seconds = {"all": time.perf_counter() - started} | report.seconds
    features.records.write(record.done(report.counts(), {stage: round(s, 3) for stage, s in seconds.items()}))
    _say_report(report, data.name, spec.digest, as_json)
    if profile:
        _say_profile(seconds)
    if report.interrupted:
        raise KeyboardInterrupt
    if report.failed:
        raise typer.Exit(Exit.PARTIAL)


@app.command(
    "fit-codebook",
    epilog="Example: extractor fit-codebook --dataset folder:photos --out codebook.safetensors && "
    "extractor run --dataset folder:photos --store features.zarr --encoding compact --codebook codebook.safetensors",
)
def fit_codebook_command(
    dataset: Annotated[
        list[str],
        typer.Option(help="Photographs to fit to, ADAPTER:PATH; may be given again.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The codebook's file.", show_default=False)],
    photographs: Annotated[int, typer.Option(min=1, help="How many of each data set, evenly spread.")] = 16,
    distortion: Annotated[
        float, typer.Option(min=0.0005, max=0.999, help="Share of the maps' variance that may be lost.")
    ] = DISTORTION,
    finest_distortion: Annotated[
        float, typer.Option(min=0.0005, max=0.999, help="The same for blocks whose maps have full resolution.")
    ] = FINEST_DISTORTION,
    preset: Annotated[str, typer.Option(help=f"Recipe: {', '.join(PRESETS)}.")] = "small",
    backbone: Annotated[
        str | None, typer.Option(help="Shipped name, folder or hub id; the preset's if not given.")
    ] = None,
    trajectory: Annotated[Trajectory, typer.Option(help="How the noise grid is walked.")] = "ddim",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; stochastic only.")] = 0,
    timesteps: Annotated[str | None, typer.Option(help="Timesteps to keep; the preset's.")] = None,
    grid: Annotated[str | None, typer.Option(help="Timesteps to run the network at; the kept ones.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Decoder blocks by index; the preset's.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Clip x0_hat to [-1, 1] at every step.")] = False,
    class_label: Annotated[int | None, typer.Option(min=0, help="For class-conditional backbones.")] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Fit the codebook of the compact encoding to some photographs; they need no labels."""
    from extractor.calibration import evenly_spread, fit_codebook

    recipe = dataclasses.replace(_preset(preset), clip=clip).along(trajectory, seed)
    recipe = recipe.reading(_integers(timesteps), _integers(grid), _integers(blocks))
    chosen = [one for source in dataset for one in evenly_spread(load_dataset(source).photographs, photographs)]
    network = open_backbone(backbone or recipe.backbone, precision, device, class_label)
    with console.progress("fitting", len(chosen), quiet=as_json) as advance:
        code = fit_codebook(network, recipe, chosen, distortion, finest_distortion, lambda name: advance(1, name))
    spec = recipe.spec(network).encoded_as(code.encoding)
    code.save(out)
    report = {
        "codebook": code.digest,
        "file": str(out),
        "components": {name: len(one.bits) for name, one in code.blocks.items()},
        "float32_over_compact_before_the_lossless_codec": spec.float32_bytes() / spec.entry_bytes(),
    }
    if as_json:
        console.print_json(report)
        return
    kept = ", ".join(f"{name} {len(one.bits)} of {len(one.mean)}" for name, one in code.blocks.items())
    console.out.print(f"{out}: codebook {code.digest[:12]}; components kept: {kept}", soft_wrap=True)


@app.command(epilog="Example: extractor pretrain --images photos --images more --out runs/backbone --steps 20000")
def pretrain(
    images: Annotated[list[Path], typer.Option(help="Folder of photographs; may be given again.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="JSON configuration of a UNet2DModel; the small one if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a batch, on each device.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches summed before a step.")] = 1,
    crop: Annotated[int, typer.Option(min=8, help="Side of the crops; the resolution for whole images.")] = 128,
    resolution: Annotated[int, typer.Option(min=8, help="Side of the prepared photographs.")] = 512,
    learning_rate: Annotated[float, typer.Option(min=1e-9)] = 5e-4,
    schedule: Annotated[str, typer.Option(help="Noise schedule, such as cosine-4000.")] = "cosine-4000",
    prediction: Annotated[Prediction, typer.Option(help="What the network learns to predict.")] = "v_prediction",
    level_power: Annotated[float, typer.Option(min=1.0, help="t = T u^p; 1 is uniform.")] = 3.0,
    photometric: Annotated[float, typer.Option(min=0.0, help="Strength of brightness and colour changes.")] = 1.0,
    clahe: Annotated[bool, typer.Option(help="Equalise contrast as the presets do.")] = True,
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], typer.Option()] = "no",
    checkpoint_every: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Pre-train a backbone on unlabelled photographs."""
    from extractor.photographs import PreparedPhotographs, find_images
    from extractor.pretraining import Pretraining, PretrainingSettings

    how = Preprocessing() if clahe else Preprocessing(clahe=None)
    settings = PretrainingSettings.model_validate(
        {
            "unet": json.loads(config.read_text()) if config else small_unet(),
            "schedule": schedule,
            "prediction": prediction,
            "level_power": level_power,
            "resolution": resolution,
            "preprocessing": how,
            "crop": crop,
            "photometric": photometric,
            "batch": batch,
            "accumulate": accumulate,
            "steps": steps,
            "learning_rate": learning_rate,
            "mixed_precision": mixed_precision,
            "checkpoint_every": checkpoint_every,
            "seed": seed,
        }
    )
    paths = find_images(images)
    with console.progress("preparing photographs", len(paths)) as advance:
        photographs = PreparedPhotographs(paths, out / "prepared", resolution, how, lambda _: advance())
    for reason in photographs.rejected:
        console.err.print(f"left out: {reason}", highlight=False, markup=False, soft_wrap=True)
    training = Pretraining(settings, photographs, out)
    with console.progress("pre-training", steps - training.step) as advance:
        training.run(lambda _, loss: advance(1, f"loss {loss:.3f}"))
    console.out.print(f"backbone: {out / 'backbone'}  (pictures and TensorBoard beside it)")


@app.command(
    "import-checkpoint",
    epilog="Example: extractor import-checkpoint ema_0.9999_120000.pt backbone_512 --schedule cosine-4000 "
    "--prediction sample --head-channels 64",
)
def import_command(
    checkpoint: Annotated[Path, typer.Argument(help="guided-diffusion's .pt, or .safetensors.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the backbone.", show_default=False)],
    schedule: Annotated[str, typer.Option(help="Noise schedule, such as linear-1000.")] = "linear-1000",
    prediction: Annotated[Prediction, typer.Option(help="'sample' if it was trained with predict_xstart.")] = "epsilon",
    head_channels: Annotated[int | None, typer.Option(min=1, help="num_head_channels.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="num_heads, where num_head_channels was -1.")] = None,
    new_attention_order: Annotated[bool, typer.Option("--new-attention-order")] = False,
    rescale_timesteps: Annotated[bool, typer.Option("--rescale-timesteps")] = False,
    class_label: Annotated[int | None, typer.Option(min=0, help="Class to run a class-conditional model with.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store float16 weights.")] = False,
) -> None:
    """Import a guided-diffusion checkpoint: widths, blocks and classes are read off the weights."""
    from extractor.guided_diffusion import Unrecorded, import_checkpoint, read_checkpoint

    if head_channels is None and heads is None:
        head_channels = 64
    unrecorded = Unrecorded(None if heads else head_channels, heads, new_attention_order)
    diffusion = Diffusion(noise_schedule(schedule), prediction, rescale_timesteps, class_label)
    backbone = import_checkpoint(read_checkpoint(checkpoint), unrecorded, diffusion)
    backbone.save(out, half=half)
    console.out.print(
        f"{out}: {backbone.parameters / 1e6:.1f} M weights, blocks {backbone.block_names[0]} .. "
        f"{backbone.block_names[-1]}, {schedule}, predicts {prediction}, fingerprint {backbone.fingerprint[:12]}"
    )


@app.command(epilog="Example: extractor presets --json")
def presets(as_json: AsJson = False) -> None:
    """Print the recipes."""
    values = {name: _preset_json(build()) for name, build in PRESETS.items()}
    if as_json:
        console.print_json(values)
        return
    for name, value in values.items():
        console.out.print(f"[bold]{name}[/]  {(PRESETS[name].__doc__ or '').splitlines()[0]}")
        for field, setting in value.items():
            console.out.print(f"  {field:14} {setting}", highlight=False)


@app.command(epilog="Example: extractor reconstruct photo.jpg --out both.png")
def reconstruct(
    image: Annotated[Path, typer.Argument(help="A photograph.", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG: what went in on the left, what came back on the right.")],
    backbone: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "small",
    grid: Annotated[str, typer.Option(help="Timesteps to walk up and down again.")] = "1,10,100,500",
    resolution: Annotated[int, typer.Option(min=8)] = 512,
    as_json: AsJson = False,
) -> None:
    """Invert a photograph, walk back down (Eq. 4) and say how much was lost: does this backbone know such images?"""
    from extractor.images import decode_image, read_bytes
    from extractor.inversion import round_trip
    from extractor.preprocess import preprocess, save_side_by_side

    pixels = decode_image(read_bytes(image), str(image))
    network = open_backbone(backbone)
    network.require_resolution(resolution)
    x0 = preprocess(pixels, resolution, Preprocessing(), str(image)).x0
    back, psnr = round_trip(network, x0, _integers(grid) or ())
    save_side_by_side(x0, back, out)
    if as_json:
        console.print_json({"psnr_db": psnr, "picture": str(out)})
    else:
        console.out.print(f"{out}: PSNR {psnr:.2f} dB after walking up to t = {grid.split(',')[-1]} and back")


def _integers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers separated by commas, got {text!r}") from error


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise typer.BadParameter(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def _preset_json(preset: Preset) -> dict[str, Any]:
    plain = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    return plain | {k: plain[k].model_dump(mode="json") for k in ("preprocessing", "encoding")}


def _selected(data: DataSet, split: str | None, limit: int | None, images: str | None) -> DataSet:
    photographs = data.photographs if split is None else tuple(of_split(data.photographs, split))
    if images is not None:
        photographs = tuple(p for p in photographs if fnmatch(p.image.name, images))
        if not photographs:
            raise DatasetError(f"no image of {data.name} has a name like {images!r}")
    return DataSet(data.name, photographs[:limit])


_NOT_REPEATED = ("store", "overwrite", "dry_run", "ignore_space", "profile", "as_json")


def _lasting(backbone: str) -> str:
    """The backbone's name or place as it can be found again from another folder."""
    return str(Path(backbone).resolve()) if not is_shipped(backbone) and Path(backbone).is_dir() else backbone


def _options(context: typer.Context) -> dict[str, str | bool]:
    """The options of ``run`` that make the same entries again, by name on the command line; paths absolute."""
    options = {name: value for name, value in context.params.items() if value is not None and name not in _NOT_REPEATED}
    adapter, _, folder = str(options["dataset"]).partition(":")
    options["dataset"] = f"{adapter}:{Path(folder).expanduser().resolve()}"
    if "codebook" in options:
        options["codebook"] = str(Path(options["codebook"]).resolve())
    if "backbone" in options:
        options["backbone"] = _lasting(options["backbone"])
    said = {name: value for name, value in options.items() if value is not False}
    return {name.replace("_", "-"): value if value is True else str(value) for name, value in said.items()}


def _say_size(size: SizePlan, images: int, as_json: bool) -> None:
    if as_json:
        console.print_json(size._asdict() | {"bytes_total": size.bytes_total})
        return
    free = "unknown" if size.free is None else console.human_bytes(size.free)
    console.err.print(
        f"{size.images} of {images} entries to do, "
        f"at most {console.human_bytes(sum(size.bytes_by_block.values()))} each, "
        f"{console.human_bytes(size.bytes_total)} in all, {free} free"
    )
    blocks = ", ".join(
        f"{name} {console.human_bytes(count)} ({console.human_bytes(count * size.images)} in all)"
        for name, count in size.bytes_by_block.items()
    )
    console.err.print(f"by block: {blocks}", highlight=False)


def _say_report(report: RunReport, name: str, digest: str, as_json: bool) -> None:
    if as_json:
        console.print_json(dataclasses.asdict(report) | {"dataset": name, "spec": digest})
        return
    console.out.print(
        f"{name}: {report.extracted} extracted, {report.present} there already, {len(report.failed)} left out; "
        f"{report.forwards} forwards, {console.human_bytes(report.bytes_stored)} written; spec {digest[:12]}"
    )
    if report.fallbacks:
        console.err.print(f"done in float32, too large for half precision: {', '.join(report.fallbacks)}")
    for _, reason in report.failed:
        console.err.print(f"left out: {reason}", highlight=False, markup=False, soft_wrap=True)


def _say_profile(seconds: dict[str, float]) -> None:
    table = Table("stage", "seconds", title="sums over threads; stages run beside each other")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.2f}")
    console.err.print(table)


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, ExtractorError, StoreError)


if __name__ == "__main__":
    main()
