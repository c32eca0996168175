"""The command ``dedim``. PyTorch is imported inside its commands, so that help and usage errors are quick."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import Enum
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusers_dedim import __version__
from diffusers_dedim.cli_errors import plain_errors, print_any_name
from diffusers_dedim.cli_options import DeviceOption, WeightsOption
from diffusers_dedim.demo.cli import demo_command
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.cli import publish, publish_space
from diffusers_dedim.image_io import write_atomic
from diffusers_dedim.manifest import PhotoRecord
from diffusers_dedim.run import FolderRun, RunResult
from diffusers_dedim.run_batch import RunSettings
from diffusers_dedim.run_summary import check_report, list_jobs, report_after, summarise
from diffusers_dedim.samples import draw_faces, face_grid
from diffusers_dedim.threads import wait_briefly

EXIT_NOT_ALL_PROTECTED = 1
_MOUNTED: dict[str, Any] = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}

app = typer.Typer(
    help="Change the faces in photos so that face recognition matches them less. Not anonymity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(publish)
app.command()(publish_space)


class SmallFaces(str, Enum):
    """What a face too small to be protected does."""

    error = "error"
    skip = "skip"


def main() -> None:
    """Run the command line; the entry point of the ``dedim`` script."""
    print_any_name()
    wait_briefly()
    app(prog_name="dedim")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"dedim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Change the faces in photos so that face recognition matches them less. Not anonymity."""


@app.command()
def run(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Photos, or folders of photos.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results.")],
    preset: Annotated[str, typer.Option(help="fast, strong or paper.")] = "fast",
    weights: WeightsOption = None,
    seed: Annotated[int | None, typer.Option(help="Makes a run repeatable.", show_default="random")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Match probability that is low enough, in (0, 1).", show_default="the preset's"),
    ] = None,
    max_rounds: Annotated[
        int | None, typer.Option(help="Most rounds for a face.", show_default="the preset's")
    ] = None,
    device: DeviceOption = None,
    keep_metadata: Annotated[
        bool, typer.Option("--keep-metadata", help="Keep EXIF: camera, date, GPS position.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html with before and after. Keep it private.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in OUT.")] = False,
    small_faces: Annotated[
        SmallFaces, typer.Option(help="A face under 40 px: fail its photo, or leave that face as it is.")
    ] = SmallFaces.error,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Write photos that still match too, as NAME.not-protected.EXT."),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Faces at a time.", show_default="4, or 64 on an accelerator")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and stop.")] = False,
    ray: Annotated[
        int | None,
        typer.Option(min=1, metavar="WORKERS", help="Use Ray Data; PATH may be parquet or .tar files too."),
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="With --ray: write parquet, not files.")] = False,
) -> None:
    """Protect every face of the photos and write them to OUT, same name, format and size.

    A photo that cannot be protected is not written; it is listed at the end with the reason.
    Exit status: 0 all photos protected; 1 some not, or no report; 2 an error ended the run, most often before it
    began; 130 Ctrl-C.
    """
    with _plain_errors():
        settings = RunSettings(
            preset, threshold, max_rounds, small_faces.value, seed, weights or "bundled", keep_metadata,
            allow_partial,
        )  # fmt: skip
        if (parquet and ray is None) or (ray is not None and (report or dry_run)):
            raise DeDiMError("--parquet needs --ray WORKERS, and --ray has neither --report nor --dry-run")
        if ray is not None:
            from diffusers_dedim.ray.command import run_on_ray

            load = partial(_load_for, settings, weights, device)
            result = run_on_ray(
                paths, out, settings, load, device, workers=ray, output="parquet" if parquet else "files",
                batch_size=batch_size, resume=resume, overwrite=overwrite,
            )  # fmt: skip
        else:
            folder_run = FolderRun(paths, out, settings, resume=resume, overwrite=overwrite)
            if report:
                check_report(folder_run.out)
            if dry_run:
                _check_preset(settings)
                list_jobs(folder_run)
                return
            pipe = _load_for(settings, weights, device) if folder_run.pending else None
            result = _execute(folder_run, pipe, batch_size)
        summarise(result)
        complete = report_after(result) if report else True
    if result.failures or not complete:
        raise typer.Exit(EXIT_NOT_ALL_PROTECTED)


@app.command()
def sample(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Faces to draw.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps; 1000 in the paper.")] = 1000,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture.")] = False,
) -> None:
    """Draw faces of nobody from the diffusion model (Algorithm 1) into one picture."""
    with plain_errors("Stopped; no picture was written."):
        if out.suffix.lower() != ".png":
            raise DeDiMError(f"{out}: the picture is written as PNG; give a name that ends in .png")
        if out.exists() and not overwrite:
            raise DeDiMError(f"{out}: is there already; give --overwrite or another name")
        if not out.parent.is_dir():
            raise DeDiMError(f"{out}: its folder does not exist")
        pipe = _load_pipeline(weights, device)
        buffer = BytesIO()
        face_grid(draw_faces(pipe, number, seed, steps)).save(buffer, "PNG")
        write_atomic(out, buffer.getvalue())
    typer.echo(f"{number} faces in {out}")


@app.command(add_help_option=False, **_MOUNTED)
def train(context: typer.Context) -> None:
    """Train the networks: dedim train unet, encoder or landmarks; see dedim train --help."""
    from diffusers_dedim.training.cli import app as training

    with _plain_errors():
        training(args=context.args, prog_name="dedim train")


@app.command(add_help_option=False, **_MOUNTED)
def evaluate(context: typer.Context) -> None:
    """Measure methods against face recognisers; see dedim evaluate --help."""
    from diffusers_dedim.evaluation.command import app as evaluation  # imports PyTorch

    with _plain_errors():
        evaluation(args=context.args, prog_name="dedim evaluate", obj=_load_pipeline)


def _plain_errors() -> AbstractContextManager[None]:
    return plain_errors("Stopped. Photos written so far are complete; go on with --resume.")


def _load_pipeline(weights: str | None, device: str | None) -> Any:
    import torch
    from diffusers.utils import logging

    from diffusers_dedim.pipeline_dedim import DeDiMPipeline
    from diffusers_dedim.precision import fast_dtype

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        dtype = fast_dtype(chosen)
    except (RuntimeError, AssertionError) as error:  # what torch raises for such a device
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    try:
        pipe: Any = DeDiMPipeline.from_pretrained(weights, dtype=dtype)
    except Exception as error:  # diffusers raises almost any type on a folder that holds something else
        why = error if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise DeDiMError(f"weights {weights or 'in the package'} cannot be loaded: {why}") from error
    try:
        pipe.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    return pipe


def _check_preset(settings: RunSettings) -> None:
    from diffusers_dedim.presets import resolve_preset  # imports PyTorch

    resolve_preset(settings.preset, threshold=settings.threshold, max_rounds=settings.max_rounds)


def _load_for(settings: RunSettings, weights: str | None, device: str | None) -> Any:
    """Load the pipeline for a run; a wrong preset is an error here, not one in every photo."""
    _check_preset(settings)
    pipe = _load_pipeline(weights, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


app.command()(demo_command(lambda weights, device: _load_pipeline(weights, device)))


def _execute(folder_run: FolderRun, pipe: Any, batch_size: int | None) -> RunResult:
    columns = (
        TextColumn("Protecting"), BarColumn(), MofNCompleteColumn(),
        TextColumn("photos, {task.fields[faces]} faces,"), TimeElapsedColumn(), TextColumn("spent,"),
        TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, faces = progress.add_task("run", total=len(folder_run.pending), faces=0), 0

        def advance(record: PhotoRecord) -> None:
            nonlocal faces
            faces += len(record.faces)
            progress.update(task, advance=1, faces=faces)

        return folder_run.execute(pipe, batch_size=batch_size, on_done=advance)
