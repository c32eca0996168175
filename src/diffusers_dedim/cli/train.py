"""`dedim train unet|encoder|landmarks|visibility|discriminator|purifier`: options are the fields of settings classes.

PyTorch is imported inside the commands, so that help and usage errors are quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from diffusers_dedim.cli.common import EXIT_INTERRUPTED, STOPPED_TRAINING
from diffusers_dedim.training.config import (
    DiscriminatorConfig,
    EncoderConfig,
    LandmarkConfig,
    LoopConfig,
    PairConfig,
    PurifierConfig,
    TrainConfig,
    UNetConfig,
    VisibilityConfig,
    read_config,
)

app: typer.Typer = typer.Typer(
    help="Train the bundled networks, or your own, on aligned 112x112 face crops.",
    rich_markup_mode=None,  # its table cuts long names, and takes [N,3,112,112] for markup
    pretty_exceptions_enable=False,
)

_C = TypeVar("_C", bound=LoopConfig)
_Run = Callable[[_C, bool], dict[str, float]]


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults, so that options on the command line override them."""
    if path is not None:
        known = {str(p.name) for p in context.command.params} - {"config", "resume", "help"}
        context.default_map = {**(context.default_map or {}), **read_config(path, known)}
    return path


_EXTRA_OPTIONS = {
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config",
            is_eager=True,
            callback=_take_config,
            help="TOML or JSON file of settings, or an earlier run's config.json; options override it.",
        ),
    ],
    "resume": Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")],
}


def _option(config: type[LoopConfig], item: Field[Any], kind: Any) -> inspect.Parameter:
    """The option of a field; a field that a subclass gives another default keeps its description."""
    described = [
        inherited.metadata["help"]
        for base in config.__mro__
        if is_dataclass(base)
        for inherited in fields(base)
        if inherited.name == item.name and "help" in inherited.metadata
    ]
    names = ("--output-dir", "-o") if item.name == "output_dir" else ()
    default = inspect.Parameter.empty if item.default is MISSING else item.default
    annotation = Annotated[kind, typer.Option(*names, help=described[0])]
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _command(config: type[_C]) -> Callable[[_Run[_C]], _Run[_C]]:
    """Register a function of settings and ``resume`` as a command whose options are the settings' fields."""

    def register(run: _Run[_C]) -> _Run[_C]:
        def command(**values: Any) -> None:
            resume = values.pop("resume")
            values.pop("config")
            settings = config(**values)
            try:
                figures = run(settings, resume)
            except KeyboardInterrupt as error:  # typer itself would say nothing
                typer.echo(STOPPED_TRAINING, err=True)
                raise typer.Exit(EXIT_INTERRUPTED) from error
            for name, value in figures.items():
                typer.echo(f"{name}: {value:.4f}")
            typer.echo(f"model: {Path(settings.output_dir) / 'model'}")

        hints = get_type_hints(config)
        options = [_option(config, item, hints[item.name]) for item in fields(config)]
        options.sort(key=lambda option: option.default is not inspect.Parameter.empty)  # required ones first
        extra = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for (name, annotation), default in zip(_EXTRA_OPTIONS.items(), (None, False), strict=True)
        ]
        command.__signature__ = inspect.Signature([*options, *extra])  # type: ignore[attr-defined]
        command.__doc__ = run.__doc__
        app.command(run.__name__)(command)
        return run

    return register


def _crops(config: TrainConfig, **options: Any) -> tuple[Any, Any]:
    """Training and validation faces; the seed is set, so that the weights made next depend on it alone."""
    import torch

    from diffusers_dedim.training.accelerator import check_precision
    from diffusers_dedim.training.data import FaceCrops

    check_precision(config.precision)  # before the data is read
    train = FaceCrops(config.data, keep_in_memory=config.keep_in_memory, **options)
    validation = FaceCrops(config.data, "val", **options)
    torch.manual_seed(config.seed)
    return train, validation


@_command(UNetConfig)
def unet(config: UNetConfig, resume: bool) -> dict[str, float]:
    """Train the face DDPM; validation: PSNR of the x_0 estimate by timestep."""
    from diffusers import UNet2DModel

    from diffusers_dedim.training.loop import train
    from diffusers_dedim.training.unet import UNetTask

    crops = _crops(config)
    return train(UNetTask(*crops, config, model=_initial(config, UNet2DModel)), config, resume=resume)


@_command(EncoderConfig)
def encoder(config: EncoderConfig, resume: bool) -> dict[str, float]:
    """Train MobileFaceNet: distilled from a teacher, at once or block by block, or with ArcFace on labelled faces.

    Validation: cosine to, and score correlation with, the teacher; or similarities within and between identities.
    """
    from diffusers_dedim.models.mobilefacenet import MobileFaceNet
    from diffusers_dedim.training.arcface import ArcFaceTask
    from diffusers_dedim.training.blockwise import BlockwiseTask
    from diffusers_dedim.training.encoder import make_encoder_task
    from diffusers_dedim.training.loop import train
    from diffusers_dedim.training.plan import BlockTeacher

    task: Any
    if config.method == "blockwise":
        teacher = BlockTeacher(str(config.teacher))  # refused, if it is, before the data is read
        crops = _crops(config)
        student = _initial(config, MobileFaceNet) or MobileFaceNet(**teacher.settings)
        task = BlockwiseTask(*crops, teacher, config, student=student)
        return train(task, config, resume=resume)
    arcface = config.method == "arcface"
    crops = _crops(config, label_column=config.labels if arcface else None)
    student = _initial(config, MobileFaceNet) or MobileFaceNet()
    if arcface:
        task = ArcFaceTask(*crops, config, student=student)
    else:
        task = make_encoder_task(*crops, config, student, resume=resume)
    return train(task, config, resume=resume)


def _initial(config: TrainConfig, network: type[Any]) -> Any:
    """The network in the folder that the settings name, or None.

    Raises:
        ValueError: the folder holds another class, none, or not all of its weights.
    """
    from diffusers_dedim.training.checkpoint import load_network

    if config.initial_weights is None:
        return None
    return load_network("initial_weights", config.initial_weights, network)


@_command(LandmarkConfig)
def landmarks(config: LandmarkConfig, resume: bool) -> dict[str, float]:
    """Train the 51-landmark regressor; validation: error over the distance of the outer eye corners."""
    from diffusers_dedim.models.landmarks import LandmarkRegressor
    from diffusers_dedim.training.landmarks import LandmarkTask
    from diffusers_dedim.training.loop import train

    crops = _crops(config, require_landmarks=True)
    return train(
        LandmarkTask(*crops, config, model=_initial(config, LandmarkRegressor)), config, resume=resume
    )


@_command(VisibilityConfig)
def visibility(config: VisibilityConfig, resume: bool) -> dict[str, float]:
    """Train the network that tells a face from what covers it; validation: kinds of cover that were held back."""
    from diffusers_dedim.models.visibility import VisibilityNet
    from diffusers_dedim.training.loop import train
    from diffusers_dedim.training.visibility import VisibilityTask

    crops = _crops(config, require_landmarks=True)
    return train(VisibilityTask(*crops, config, model=_initial(config, VisibilityNet)), config, resume=resume)


def _pairs(config: PairConfig, load: Callable[[], Any]) -> tuple[Any, Any]:
    """Training and held-out pairs: those in the folder, or made of its faces; the seed is set as for `_crops`.

    Args:
        config: the settings.
        load: gives the pipeline that protects; called only where pairs are to be made.
    """
    import torch

    from diffusers_dedim.evaluation.crops import make_pairs
    from diffusers_dedim.training.accelerator import check_precision
    from diffusers_dedim.training.pairs import PAIR_PARTS, FacePairs

    check_precision(config.precision)  # before anything is protected
    pairs = Path(config.data)
    if not any(pairs.glob(f"{PAIR_PARTS[0]}*")):
        folder = Path(config.output_dir) / "pairs"
        pairs = make_pairs(
            load(), config.data, folder, count=config.pairs, method=config.method, seed=config.seed
        )
    train, held_out = (
        FacePairs(pairs, part, keep_in_memory=config.keep_in_memory) for part in ("train", "val")
    )
    torch.manual_seed(config.seed)
    return train, held_out


def _pipeline(config: PairConfig) -> Any:
    """The pipeline that protects, without bars of its own."""
    from diffusers_dedim.cli.common import load_pipeline

    pipe = load_pipeline(config.weights, None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@_command(DiscriminatorConfig)
def discriminator(config: DiscriminatorConfig, resume: bool) -> dict[str, float]:
    """Train the network that tells photos from protected ones, patch by patch and under noise.

    It protects strangers' faces first, or takes pairs from a folder with protected and original faces.
    Validation: how well it tells held-out faces apart, at three levels of noise.
    """
    from diffusers_dedim.models.discriminator import PatchDiscriminator
    from diffusers_dedim.training.discriminator import DiscriminatorTask
    from diffusers_dedim.training.loop import train

    model = _initial(config, PatchDiscriminator)  # refused, if it is, before anything is protected
    pairs = _pairs(config, lambda: _pipeline(config))
    return train(DiscriminatorTask(*pairs, config, model=model), config, resume=resume)


@_command(PurifierConfig)
def purifier(config: PurifierConfig, resume: bool) -> dict[str, float]:
    """Train an attacker's network that takes the protection off again, for dedim evaluate --robustness --purifier.

    It protects strangers' faces first, or takes pairs from a folder with protected and original faces.
    Validation: PSNR and the guides' cosine with the original, of held-out faces, before and after.
    """
    from diffusers_dedim.encoders.ensemble import FusedEncoder
    from diffusers_dedim.training.loop import train
    from diffusers_dedim.training.purifier import PurifierNet, PurifierTask

    pipe = _pipeline(config)
    pairs = _pairs(config, lambda: pipe)
    guides = FusedEncoder(pipe.face_encoder)
    task = PurifierTask(*pairs, config, guides, model=_initial(config, PurifierNet))
    return train(task, config, resume=resume)


if __name__ == "__main__":
    app()
