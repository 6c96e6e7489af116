"""Commands of ``extractor`` about backbones: import, list, try and calibrate them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from extractor.backbones import open_backbone
from extractor.datasets import evenly_spread, load_dataset, of_split
from extractor.diffusion import Diffusion, Prediction
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
    integers,
    preprocessing_for,
    recipe_of,
)
from extractor.presets import PRESETS, Preset
from extractor.schedule import noise_schedule
from store import console
from store.codebook import DISTORTION, FINEST_DISTORTION
from store.spec import PREPROCESSINGS, PreprocessingName

app = typer.Typer()


@app.command(
    "fit-codebook",
    epilog="Example: extractor fit-codebook --dataset folder:photos --out codebook.safetensors && "
    "extractor run --dataset folder:photos --store features.zarr --encoding compact --codebook codebook.safetensors",
)
def fit_codebook_command(
    dataset: Annotated[
        list[str],
        typer.Option(help="Photographs to fit to, ADAPTER:PATH. May be given again.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="File to write the codebook to.", show_default=False)],
    photographs: Annotated[int, typer.Option(min=1, help="Photographs of each data set, evenly spread.")] = 16,
    distortion: Annotated[
        float, typer.Option(min=0.0005, max=0.999, help="Share of the maps' variance that may be lost.")
    ] = DISTORTION,
    finest_distortion: Annotated[
        float, typer.Option(min=0.0005, max=0.999, help="The same for blocks at full resolution.")
    ] = FINEST_DISTORTION,
    preset: PresetOption = "small",
    preprocessing: PreprocessingOption = None,
    backbone: BackboneOption = None,
    trajectory: TrajectoryOption = "ddim",
    seed: SeedOption = 0,
    timesteps: TimestepsOption = None,
    grid: GridOption = None,
    blocks: BlocksOption = None,
    resolution: ResolutionOption = None,
    clip: ClipOption = False,
    class_label: ClassLabelOption = None,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Fit the codebook of the compact encoding to a few photographs; they need no labels."""
    from extractor.calibration import fit_codebook

    recipe = recipe_of(preset, clip, trajectory, seed, (timesteps, grid, blocks), resolution)
    chosen = [one for source in dataset for one in evenly_spread(load_dataset(source).photographs, photographs)]
    network = open_backbone(backbone or recipe.backbone, precision, device, class_label)
    recipe = dataclasses.replace(recipe, preprocessing=preprocessing_for(network, preprocessing))
    with console.progress("fitting", len(chosen), as_json=as_json) as advance:
        code = fit_codebook(network, recipe, chosen, distortion, finest_distortion, lambda name: advance(1, name))
    spec = recipe.spec(network).with_encoding(code.encoding)
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
    console.print_line(f"{out}: codebook {code.digest[:12]}; components kept: {kept}")


_USUAL_HEAD_CHANNELS = 64


@app.command(
    "import-checkpoint",
    epilog="Example: extractor import-checkpoint ema_0.9999_120000.pt backbone_512 --schedule cosine-4000 "
    "--prediction sample --head-channels 64",
)
def import_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint of guided-diffusion, .pt or .safetensors.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write the backbone to.", show_default=False)],
    schedule: Annotated[
        str, typer.Option(help="Noise schedule it was trained with, such as linear-1000.")
    ] = "linear-1000",
    prediction: Annotated[Prediction, typer.Option(help="'sample' if it was trained with predict_xstart.")] = "epsilon",
    head_channels: Annotated[int | None, typer.Option(min=1, help="num_head_channels.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="num_heads, where num_head_channels was -1.")] = None,
    new_attention_order: Annotated[
        bool, typer.Option("--new-attention-order", help="It was trained with use_new_attention_order.")
    ] = False,
    rescale_timesteps: Annotated[
        bool, typer.Option("--rescale-timesteps", help="It was trained with rescale_timesteps.")
    ] = False,
    class_label: Annotated[
        int | None, typer.Option(min=0, help="Class that a class-conditional model is run with.")
    ] = None,
    preprocessing: Annotated[
        PreprocessingName | None,
        typer.Option(
            help="How the photographs that it was trained on were prepared.",
            show_default="not recorded",
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store float16 weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import a checkpoint of guided-diffusion; widths, blocks and classes are read off the weights."""
    from extractor.backbone_folder import load_backbone, save_backbone
    from extractor.guided_diffusion import UnrecordedOptions, import_checkpoint, read_checkpoint

    prepared = None if preprocessing is None else PREPROCESSINGS[preprocessing]()
    if head_channels is not None and heads is not None:
        raise typer.BadParameter("--heads is for networks whose num_head_channels was -1; give one of the two")
    console.require_unused(out, overwrite=overwrite)
    is_given = head_channels is not None or heads is not None
    if not is_given:
        head_channels = _USUAL_HEAD_CHANNELS
    unrecorded = UnrecordedOptions(None if heads else head_channels, heads, new_attention_order)
    diffusion = Diffusion(noise_schedule(schedule), prediction, rescale_timesteps, class_label)
    backbone = import_checkpoint(read_checkpoint(checkpoint), unrecorded, diffusion)
    backbone.preprocessing = prepared
    save_backbone(backbone, out, half=half)
    if not is_given and any("Attn" in kind for kind in backbone.config["down_block_types"]):
        console.note(
            f"a checkpoint does not record its attention heads: {_USUAL_HEAD_CHANNELS} channels a head are assumed, as "
            "in the released ADM networks; give --head-channels or --heads for others"
        )
    backbone = load_backbone(out, class_label=class_label)  # its fingerprint is that of the weights as they were saved
    if as_json:
        facts = {
            "weights": backbone.parameters,
            "blocks": list(backbone.block_names),
            "fingerprint": backbone.fingerprint,
        }
        console.print_json({"backbone": str(out), "schedule": schedule, "prediction": prediction} | facts)
        return
    console.print_line(
        f"{out}: {backbone.parameters / 1e6:.1f} M weights, blocks {backbone.block_names[0]} .. "
        f"{backbone.block_names[-1]}, {schedule}, predicts {prediction}, fingerprint {backbone.fingerprint[:12]}"
    )


@app.command(epilog="Example: extractor presets --json")
def presets(as_json: AsJson = False) -> None:
    """Print the presets of extractor run."""
    values = {name: _preset_json(build()) for name, build in PRESETS.items()}
    if as_json:
        console.print_json(values)
        return
    for name, value in values.items():
        summary = (PRESETS[name].__doc__ or "").splitlines()[0]
        console.print_line(Text.assemble((name, "bold"), f"  {summary}"))
        for field, setting in value.items():
            console.print_line(f"  {field:14} {setting}")


@app.command(epilog="Examples: extractor models --json · extractor models runs/backbone/backbone")
def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of further backbones to list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped backbones, with their data and sha256; each is loaded, which checks its files."""
    from extractor.registry import listed

    console.print_models(listed(folders or []), as_json=as_json)


@app.command(epilog="Example: extractor reconstruct photo.jpg --out both.png")
def reconstruct(
    image: Annotated[Path, typer.Argument(help="A photograph.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="PNG to write: the photograph on the left, its reconstruction on the right.")
    ],
    backbone: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "small",
    preprocessing: PreprocessingOption = None,
    grid: Annotated[str, typer.Option(help="Timesteps to walk up, and down again.")] = "1,10,100,500",
    resolution: Annotated[int, typer.Option(min=8, help="Side in pixels at which photographs are read.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Invert a photograph, reconstruct it (Eq. 4) and print the loss: does the backbone know such images?"""
    from extractor.errors import naming
    from extractor.images import decode_image, read_bytes
    from extractor.inversion import round_trip
    from extractor.preprocess import preprocess, save_side_by_side

    data = read_bytes(image)
    with naming(image):
        pixels = decode_image(data)
    network = open_backbone(backbone)
    network.require_resolution(resolution)
    with naming(image):
        prepared = preprocess(pixels, resolution, preprocessing_for(network, preprocessing))
    back, psnr = round_trip(network, prepared.x0, integers(grid) or (), prepared.fov)
    save_side_by_side(prepared.x0, back, out)
    if as_json:
        console.print_json({"psnr_db": psnr, "picture": str(out)})
    else:
        console.print_line(
            f"{out}: PSNR {psnr:.2f} dB inside the field of view after walking up to t = {grid.split(',')[-1]} and back"
        )


@app.command(
    "assess",
    epilog="Example: extractor assess --backbone runs/backbone/backbone --dataset folder:photos "
    "--dataset stare:/data/STARE",
)
def assess_command(
    dataset: Annotated[
        list[str],
        typer.Option(help="Photographs to assess it on, ADAPTER:PATH. May be given again.", show_default=False),
    ],
    backbone: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "small",
    photographs: Annotated[int, typer.Option(min=1, help="How many of each data set, evenly spread.")] = 8,
    split: Annotated[str | None, typer.Option(help="Read only this split.")] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="Noise levels, such as 1,10,100.", show_default="six of the schedule")
    ] = None,
    grid: Annotated[str, typer.Option(help="Timesteps to walk up and down again.")] = "1,10,100,500",
    preprocessing: PreprocessingOption = None,
    resolution: Annotated[int, typer.Option(min=8, help="Side in pixels at which photographs are read.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure how well a backbone knows some photographs: its denoising at each level, and inversion and back."""
    from extractor.assessing import LEVELS, assess, noisy_psnr

    network = open_backbone(backbone, device=device)
    network.require_resolution(resolution)
    levels = integers(timesteps) or tuple(t for t in LEVELS if t < network.schedule.steps)
    how = preprocessing_for(network, preprocessing)
    chosen = []
    for found in map(load_dataset, dataset):
        some = found.photographs if split is None else of_split(found.photographs, split)
        chosen.append((found.name, evenly_spread(some, photographs)))
    assessed = []
    with console.progress("assessing", sum(len(some) for _, some in chosen), as_json=as_json) as advance:
        for name, some in chosen:
            one = assess(
                network,
                some,
                resolution,
                how,
                levels=levels,
                grid=integers(grid) or (),
                seed=seed,
                advance=lambda photograph: advance(1, photograph),
            )
            assessed.append((name, one))
    if as_json:
        noise = {t: noisy_psnr(network.schedule, t) for t in levels}
        datasets = [{"dataset": name} | dataclasses.asdict(one) for name, one in assessed]
        console.print_json({"noisy": noise, "datasets": datasets})
        return
    columns = [f"{name} ({one.photographs})" for name, one in assessed]
    table = Table("t", "noisy", *columns, title="PSNR of denoised photographs, dB")
    for t in levels:
        table.add_row(
            str(t), f"{noisy_psnr(network.schedule, t):.1f}", *[f"{one.denoised[t]:.1f}" for _, one in assessed]
        )
    table.add_row(f"up to {grid.split(',')[-1]} and back", "", *[f"{one.walked:.1f}" for _, one in assessed])
    console.out.print(table)


def _preset_json(preset: Preset) -> dict[str, Any]:
    """Plain values; ``preprocessing`` is None where it is the backbone's own."""
    plain = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in plain.items()
    }
