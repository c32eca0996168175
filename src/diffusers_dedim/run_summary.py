"""What `dedim run` prints: before a run what it would do, after it what became of the photos."""

from __future__ import annotations

from pathlib import Path

import typer

from diffusers_dedim.photo_jobs import display_name
from diffusers_dedim.run import FolderRun, RunResult


def list_jobs(folder_run: FolderRun) -> None:
    """Print what a run would do."""
    for job in folder_run.pending:
        typer.echo(f"{display_name(str(job.source))} -> {display_name(str(job.target))}")
    done = f", {len(folder_run.finished)} done before" if folder_run.finished else ""
    typer.echo(f"{len(folder_run.pending)} photos to protect{done}. Nothing was written.")


def summarise(result: RunResult) -> None:
    """Print the counts and notes of a run, and each photo that is not protected with the reason."""
    faces = sum(len(record.faces) for record in result.protected)
    earlier = f", {result.resumed} of all settled by an earlier run" if result.resumed else ""
    typer.echo(
        f"{len(result.protected)} of {len(result.records)} photos protected ({faces} faces) "
        f"in {result.seconds:.0f} s{earlier}: {display_name(str(result.out))}"
    )
    if result.other_files:
        typer.echo(f"{result.other_files} other files (no photos, or links to folders) were passed over.")
    for note in result.notes:
        typer.echo(f"Note: {note}.")
    for record in result.protected:
        for note in record.notes:
            typer.echo(f"Note: {display_name(record.name)}: {note}.")
    if result.failures:
        typer.echo(f"{len(result.failures)} not protected:", err=True)
    for record in result.failures:
        written = f"; written as {display_name(record.output)}" if record.output else "; not written"
        typer.echo(f"  {display_name(record.name)}: {display_name(record.reason)}{written}", err=True)


def check_report(out: Path) -> None:
    """Refuse a run whose report would replace somebody's own page: better now than after hours.

    Raises:
        RunError: another ``report.html`` lies in the output folder.
        OSError: it cannot be read.
    """
    from diffusers_dedim.report import REPORT_NAME, refuse_foreign_page  # Jinja is only needed here

    refuse_foreign_page(out / REPORT_NAME)


def report_after(result: RunResult) -> bool:
    """Write the report of a run that is over; say so, or why it could not be. Returns whether it was written."""
    from diffusers_dedim.report import write_report  # Jinja is only needed here

    try:
        path = write_report(result)
    except (OSError, ValueError, MemoryError) as error:  # the photos are done, and their summary is printed
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        typer.echo(
            f"The report was not written ({display_name(why)}); write it with --resume --report.", err=True
        )
        return False
    typer.echo(f"Report, to be kept private: {display_name(str(path))}")
    return True
