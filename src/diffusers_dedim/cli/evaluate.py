"""The command ``dedim evaluate``."""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_dedim.cli import common
from diffusers_dedim.cli.common import STOPPED_EVALUATION, DeviceOption, WeightsOption, plain_errors
from diffusers_dedim.encoders.recogniser import Recogniser, load_recogniser
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.adaptive import read_adaptive
from diffusers_dedim.evaluation.data import Experiment, Record, read_experiment, read_photos, reserve_people
from diffusers_dedim.evaluation.experiment import TARGETS, Session, check_folder
from diffusers_dedim.evaluation.measure import EvaluationSettings
from diffusers_dedim.evaluation.methods import METHOD_NAMES, make_method, takes_targets
from diffusers_dedim.evaluation.report import REPORT, RESULTS
from diffusers_dedim.evaluation.results import MethodEntry
from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.metrics.quality import Lpips
from diffusers_dedim.pipeline.guides import guided_by

app: typer.Typer = typer.Typer(
    help="Measure methods against face recognisers, as in section 4 of the paper and beyond.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class GalleryKind(str, Enum):
    """What is searched."""

    unprotected = "unprotected"
    protected = "protected"
    both = "both"


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Parquet or folder: docs/evaluation.md. Or the folder of LFW.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")],
    methods: Annotated[
        str, typer.Option(help="Names with commas: " + ", ".join(METHOD_NAMES) + "; dedim@h=0.5.")
    ] = ("original,tip-im,dedim"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="First N probes; the gallery stays whole.", show_default="all")
    ] = None,
    black_box: Annotated[
        list[str] | None,
        typer.Option(
            "--black-box", help="NAME=FILE.onnx, NAME=FILE.pt, dlib, facenet or ours. May be repeated."
        ),
    ] = None,
    white_box: Annotated[
        list[str] | None,
        typer.Option(
            "--white-box",
            help="Guides the methods: own, NAME=FILE.onnx, NAME=FILE.pt, facenet-vggface2. May be repeated.",
            show_default="own",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the methods, and of the draw from an LFW folder.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped evaluation in DIR.")] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Search again after JPEG, blur and the like.")
    ] = False,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="What --robustness does, names with commas: jpeg-75, purify-100 and the like.",
            show_default="all",
        ),
    ] = None,
    purifier: Annotated[
        Path | None, typer.Option(help="Folder of dedim train purifier: one more attacker for --robustness.")
    ] = None,
    adaptive: Annotated[
        list[Path] | None,
        typer.Option(
            "--adaptive", help="JSON of python -m benchmarks.adaptive, for the page. May be repeated."
        ),
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(
            help="Photos of other people for TIP-IM: folder or parquet.",
            show_default="people taken out of the gallery",
        ),
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="torchvision's AlexNet weights, for LPIPS.")] = None,
    panel: Annotated[
        list[Path] | None,
        typer.Option(
            "--panel", help="Photo that may be shown, for the panel. May be repeated.", show_default="probes"
        ),
    ] = None,
    gallery: Annotated[
        GalleryKind,
        typer.Option(help="Whether the probes' people have protected their photos in the gallery too."),
    ] = GalleryKind.unprotected,
    chunk: Annotated[int, typer.Option(min=1, help="Probes at a time: what a kill may lose.")] = 8,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what is measured.", show_default="DIR/cache")
    ] = None,
) -> None:
    """Protect probes, search for them with recognisers, and write results.json, table.md and report.html to DIR.

    DIR/panel.png shows faces of the data unless --panel gives others: keep it, and DIR/cache, to yourself.
    """
    with plain_errors(STOPPED_EVALUATION):  # typer itself would say nothing of Ctrl-C
        names = [name.strip() for name in methods.split(",") if name.strip()]
        settings = EvaluationSettings(tuple(names), seed, chunk, gallery.value)
        for option, given in (("--purifier", purifier), ("--attacks", attacks)):
            if given is not None and not robustness:
                raise DeDiMError(f"{option}: it is for --robustness; give that too.")
        check_folder(out, resume=resume)
        experiment = _read(data, seed, limit, reserve=targets is None and any(map(takes_targets, names)))
        boxes = load_black_boxes(black_box or [])
        learnt = [entry for file in adaptive or [] for entry in read_adaptive(file)]
        pipe = _load_pipeline(weights, device, white_box)
        session = Session(
            pipe,
            experiment,
            str(data),
            settings,
            make_method,
            FaceDetector(device=str(pipe.device)),
            boxes,
            _read_targets(targets, seed),
            _load_transforms(pipe, seed, purifier, attacks) if robustness else None,
            Lpips(lpips) if lpips else None,
            [Record(str(file), file.stem, "panel", file) for file in panel or []],
            cache,
            shlex.join(["dedim", "evaluate", *sys.argv[2:]]),
            learnt,
        )
    with plain_errors(f"Stopped. What was measured is in {out}; go on with --resume."):
        session.run(out, _tell)
    typer.echo(f"{out / REPORT}\n{out / RESULTS}")


def load_black_boxes(specs: Sequence[str]) -> list[Recogniser]:
    """Load every recogniser before anything is measured, and tell all that fail at once.

    Raises:
        DeDiMError: a file is missing, has another signature, or a package is not installed.
    """
    tried = [_try_recogniser(spec) for spec in specs]
    problems = [each for each in tried if isinstance(each, str)]
    if problems:
        raise DeDiMError("--black-box: " + "; ".join(problems))
    return [each for each in tried if isinstance(each, Recogniser)]


def _try_recogniser(spec: str) -> Recogniser | str:
    """The recogniser, or why it cannot be loaded."""
    try:
        return load_recogniser(spec)
    except (ValueError, OSError, ImportError) as error:
        return f"{spec}: {error}"


def _read(data: Path, seed: int, limit: int | None, *, reserve: bool) -> Experiment:
    experiment = read_experiment(data, seed)
    if reserve and not experiment.spare:  # before the cut: targets and gallery are the same for every limit
        experiment = reserve_people(experiment, TARGETS, seed)
        typer.echo(
            f"TIP-IM needs {TARGETS} people as targets: {len(experiment.spare)} without a probe were taken out of the "
            "gallery. Give --targets with photos of others to keep it whole.",
            err=True,
        )
    if limit is None or limit >= len(experiment.protocol.probes):
        return experiment
    return Experiment(experiment.protocol.take_probes(limit), experiment.spare)


def _read_targets(path: Path | None, seed: int) -> list[Record]:
    """One photo a person, in an order drawn from the seed."""
    if path is None:
        return []
    records = read_photos(path)
    random.Random(seed).shuffle(records)
    return list({record.person: record for record in records}.values())


def _load_pipeline(weights: str | None, device: str | None, white_box: Sequence[str] | None) -> Any:
    pipe = common.load_pipeline(weights, device)
    pipe.set_progress_bar_config(disable=True)
    return guided_by(pipe, white_box) if white_box else pipe


def _load_transforms(pipe: Any, seed: int, purifier: Path | None, names: str | None) -> dict[str, Any]:
    """What is done to photos: of all attacks those that are named."""
    module = import_extra("diffusers_dedim.evaluation.purification", "--robustness")
    transforms: dict[str, Any] = module.make_attacks(pipe, seed=seed, purifier=purifier)
    chosen = list(transforms) if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in transforms:
            known = ", ".join(transforms)
            raise DeDiMError(f"--attacks: expected some of {known}, got {name!r}.")
    return {name: transforms[name] for name in chosen}


def _tell(entry: MethodEntry) -> None:
    def shown(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    typer.echo(
        f"{entry.method}: {entry.probes} probes{shown(entry.ssim.value, ', SSIM {:.3f}')}"
        f"{shown(entry.seconds_per_face, ', {:.2f} s a face')}"
        f"{f', no face found in {len(entry.undetected)}' if entry.undetected else ''}",
        err=True,
    )
