"""The command ``dedim run``: its options, and what it prints before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusers_dedim.cli import common
from diffusers_dedim.cli.common import STOPPED_RUN, DeviceOption, GuideOption, WeightsOption, plain_errors
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.images.files import MAX_PIXELS
from diffusers_dedim.runs.jobs import PhotoJob, display_name, one_line
from diffusers_dedim.runs.records import PhotoRecord, RunResult, RunSettings
from diffusers_dedim.video.writing import DEFAULT_CRF

if TYPE_CHECKING:
    from diffusers_dedim.runs.run import FolderRun

EXIT_NOT_ALL_PROTECTED = 1


class SmallFaces(str, Enum):
    """What becomes of a face too small to be changed."""

    blur = "blur"
    pixelate = "pixelate"
    skip = "skip"
    error = "error"


class Fallback(str, Enum):
    """What becomes of a face that cannot be changed, or still matches after all that was tried."""

    leave_out = "leave-out"
    blur = "blur"
    pixelate = "pixelate"


def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Photos and videos, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results.")],
    preset: Annotated[str, typer.Option(help="gentle, fast, strong or paper.")] = "fast",
    weights: WeightsOption = None,
    guide: GuideOption = None,
    detector: Annotated[
        str, typer.Option(metavar="NAME", help="What finds faces: mtcnn, centerface, scrfd or MODULE:NAME.")
    ] = "mtcnn",
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
    keep_times: Annotated[
        bool, typer.Option("--keep-times", help="Give results the dates of the photos' files.")
    ] = False,
    quality: Annotated[
        str,
        typer.Option(metavar="same|best|1..100", help="How finely to pack: same as each photo's own file."),
    ] = "same",
    max_megapixels: Annotated[float, typer.Option(help="Largest photo that is read.")] = MAX_PIXELS / 1e6,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html with before and after. Keep it private.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in OUT.")] = False,
    small_faces: Annotated[
        SmallFaces,
        typer.Option(
            help="A face under 40 px, covered or turned away: cover it; or leave one under 40 px UNPROTECTED "
            "(skip), or fail its photo (error)."
        ),
    ] = SmallFaces.blur,
    fallback: Annotated[
        Fallback,
        typer.Option(help="A face that still matches after all attempts: leave its photo out, or cover it."),
    ] = Fallback.leave_out,
    only: Annotated[
        list[Path] | None,
        typer.Option(metavar="PHOTO", help="Protect only the person in this photo; may be repeated."),
    ] = None,
    all_but: Annotated[
        list[Path] | None,
        typer.Option("--except", metavar="PHOTO", help="Protect all but the person in it; may be repeated."),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Write photos that still match too, as NAME.not-protected.EXT."),
    ] = False,
    crf: Annotated[
        int, typer.Option(min=0, max=51, help="H.264 quality of written videos; lower is better and larger.")
    ] = DEFAULT_CRF,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Faces at a time.", show_default="4, or 64 on an accelerator")
    ] = None,
    no_album: Annotated[
        bool, typer.Option("--no-album", help="Protect each photo by itself: a person's may find each other.")
    ] = False,
    keep_album: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep what later runs need to go on with the album: BIOMETRIC DATA."
        ),
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
    with plain_errors(STOPPED_RUN):
        settings = RunSettings(
            preset, threshold, max_rounds, small_faces.value, fallback.value, seed, weights or "bundled",
            ", ".join(guide or ["own"]), tuple(map(str, only or ())), tuple(map(str, all_but or ())), keep_metadata,
            allow_partial, album=not no_album,
            quality=int(quality) if quality.isdecimal() else quality,  # type: ignore[arg-type]  # checked there
            keep_times=keep_times, max_megapixels=max_megapixels, crf=crf, detector=detector,
        )  # fmt: skip
        if (parquet and ray is None) or (ray is not None and (report or dry_run or keep_album)):
            raise DeDiMError(
                "--parquet needs --ray WORKERS, which has no --report, --dry-run or --keep-album"
            )
        _check_preset(settings)
        load = partial(_load, weights, device, guide, detector)
        if ray is not None:
            result = _run_on_ray(
                paths, out, settings, load, device, workers=ray, output="parquet" if parquet else "files",
                batch_size=batch_size, resume=resume, overwrite=overwrite,
            )  # fmt: skip
        else:
            from diffusers_dedim.runs.run import FolderRun  # imports PyTorch

            folder_run = FolderRun(
                paths, out, settings, resume=resume, overwrite=overwrite, keep_album=keep_album
            )
            if report:
                check_report(folder_run.out)
            if dry_run:
                list_jobs(folder_run)
                return
            result = _execute(folder_run, load() if folder_run.pending else None, batch_size)
        summarise(result)
        complete = report_after(result) if report else True
    if result.failures or not complete:
        raise typer.Exit(EXIT_NOT_ALL_PROTECTED)


def _check_preset(settings: RunSettings) -> None:
    """A wrong preset is an error here, not one in every photo or worker."""
    from diffusers_dedim.pipeline.presets import resolve_preset  # imports PyTorch

    resolve_preset(settings.preset, threshold=settings.threshold, max_rounds=settings.max_rounds)


def _load(
    weights: str | None, device: str | None, guides: Sequence[str] | None, detector: str = "mtcnn"
) -> Any:
    """The pipeline of a run, here or in a worker of Ray; the run has a progress bar of its own."""
    from diffusers_dedim.faces import named_detector  # imports PyTorch

    finder = None if detector == "mtcnn" else named_detector(detector)
    pipe = common.load_pipeline(weights, device, guides)
    pipe.face_detector = finder or pipe.face_detector
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _execute(folder_run: FolderRun, pipe: Any, batch_size: int | None) -> RunResult:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]},"),
        TimeElapsedColumn(), TextColumn("spent,"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Protecting", total=len(folder_run.pending), what="photos, 0 faces")
        videos: dict[str, TaskID] = {}
        faces = 0

        def advance(record: PhotoRecord) -> None:
            nonlocal faces
            faces += len(record.faces)
            progress.update(task, advance=1, what=f"photos, {faces} faces")
            if record.name in videos:
                progress.remove_task(videos.pop(record.name))

        def show_frame(job: PhotoJob, done: int, total: int | None) -> None:
            if job.name not in videos:
                videos[job.name] = progress.add_task(display_name(job.name), total=total, what="frames")
            progress.update(videos[job.name], completed=done)

        return folder_run.execute(pipe, batch_size=batch_size, on_done=advance, on_frame=show_frame)


def list_jobs(folder_run: FolderRun) -> None:
    """Print what a run would do."""
    for job in folder_run.pending:
        typer.echo(f"{display_name(str(job.source))} -> {display_name(str(job.target))}")
    done = f", {len(folder_run.finished)} done before" if folder_run.finished else ""
    typer.echo(f"{len(folder_run.pending)} photos to protect{done}. Nothing was written.")
    _say_others(folder_run.plan.other_files, "would be")


def summarise(result: RunResult) -> None:
    """Print the counts and notes of a run, and each photo that is not protected with the reason."""
    treatments = Counter(face.treatment for record in result.protected for face in record.faces)
    covered = [f"{treatments[word]} {word}" for word in ("blurred", "pixelated") if treatments[word]]
    faces = ", ".join([f"{treatments.total()} faces", *covered])
    earlier = f", {result.resumed} of all settled by an earlier run" if result.resumed else ""
    typer.echo(
        f"{len(result.protected)} of {len(result.records)} photos protected ({faces}) "
        f"in {result.seconds:.0f} s{earlier}: {display_name(str(result.out))}"
    )
    _say_others(result.other_files, "were")
    for note in result.notes:
        typer.echo(f"Note: {note}.")
    for record in result.protected:
        for note in record.notes:
            typer.echo(f"Note: {display_name(record.name)}: {note}.")
    if result.failures:
        typer.echo(f"{len(result.failures)} not protected:", err=True)
    for record in result.failures:
        written = f"; written as {display_name(record.output)}" if record.output else "; not written"
        typer.echo(f"  {display_name(record.name)}: {one_line(record.reason)}{written}", err=True)


def _say_others(count: int, were: str) -> None:
    if count:
        typer.echo(f"{count} other files (no photos, or links to folders) {were} passed over.")


def check_report(out: Path) -> None:
    """Refuse a run whose report would replace somebody's own page: better now than after hours.

    Raises:
        RunError: another ``report.html`` lies in the output folder.
        OSError: it cannot be read.
    """
    from diffusers_dedim.runs.report import REPORT_NAME, refuse_foreign_page  # Jinja is only needed here

    refuse_foreign_page(out / REPORT_NAME)


def report_after(result: RunResult) -> bool:
    """Write the report of a run that is over; say so, or why it could not be. Returns whether it was written."""
    from diffusers_dedim.runs.report import write_report  # Jinja is only needed here

    try:
        path = write_report(result)
    except (OSError, ValueError, MemoryError) as error:  # the photos are done, and their summary is printed
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        typer.echo(
            f"The report was not written ({one_line(why)}); write it with --resume --report.", err=True
        )
        return False
    typer.echo(f"Report, to be kept private: {display_name(str(path))}")
    return True


def _run_on_ray(
    paths: Sequence[Path],
    out: Path,
    settings: RunSettings,
    load: Callable[[], Any],
    device: str | None,
    **options: Any,
) -> RunResult:
    """`run_ray` with a GPU for each actor where the device is one, and a missing package as a plain error.

    Raises:
        DeDiMError: Ray is not installed, or as `run_ray`.
    """
    import torch

    from diffusers_dedim.runs.ray.driver import run_ray

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(chosen)  # whether it is there is the workers' business
    except RuntimeError as error:
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    try:
        return run_ray(paths, out, settings, load, accelerators=int(chosen.startswith("cuda")), **options)
    except ImportError as error:
        raise DeDiMError(str(error)) from error
