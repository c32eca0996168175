"""Settings of the training commands: frozen dataclasses, filled from a file and the command line.

Every field is an option of `dedim train`, and its default is the option's. No PyTorch here: help stays quick.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra

# Not handed to a tracker, which may send what it gets elsewhere: paths can name people and projects.
PATH_SETTINGS = ("output_dir", "data", "teacher", "initial_weights", "weights")


def setting(default: Any, description: str) -> Any:
    """Make a dataclass field with a description for ``--help``."""
    return field(default=default, metadata={"help": description})


# What is expected, how it is told (NaN is in no range), and of which settings.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "a positive time budget": (lambda value: value > 0, "minutes"),
    "a positive number (inf: gradients of any norm)": (lambda value: value > 0, "grad_clip"),
    "a positive number": (lambda value: 0 < value < math.inf, "learning_rate min_snr_gamma scale width"),
    "at least 1": (
        lambda value: value >= 1,
        "max_steps batch_size gradient_accumulation_steps log_every val_images pairs",
    ),
    "at least 0": (
        lambda value: value >= 0,
        "num_workers seed warmup_steps validate_minutes checkpoint_minutes",
    ),
    "a number from 0 on": (
        lambda value: 0 <= value < math.inf,
        "weight_decay feature_weight relation_weight adversarial_radius max_noise identity_weight "
        "patch_weight penalty_weight",
    ),
    "a number from 0 to 1": (
        lambda value: 0 <= value <= 1,
        "full_size_share low_timestep_share blocks_share final_augmentation",
    ),
    "a number from 0 (no averaging) to below 1": (lambda value: 0 <= value < 1, "ema_decay"),
    "an angle from 0 to below pi": (lambda value: 0 <= value < math.pi, "margin"),
    "a timestep from 1 to 1000": (lambda value: 1 <= value <= 1000, "low_timestep_limit"),
    "a size such as 15MB (KB, MB, GB or TB)": (
        lambda value: bool(re.fullmatch(r"\s*\d*\.?\d+\s*[KMGT]B\s*", value, re.IGNORECASE)),
        "max_shard_size",
    ),
}


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know, whatever is trained.

    The learning rate warms up over ``warmup_steps`` and falls along a cosine to 1 % as the run nears
    ``minutes`` or ``max_steps``, whichever is nearer; minutes are counted over all resumed sessions.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    output_dir: str = field(metadata={"help": "Checkpoints, log and the model."})
    minutes: float = setting(30.0, "Time budget over all resumed sessions.")
    max_steps: int = setting(1_000_000, "Step budget.")
    batch_size: int = setting(32, "Images in memory at once.")
    gradient_accumulation_steps: int = setting(1, "Batches whose gradients are averaged into one step.")
    learning_rate: float = setting(1e-3, "Peak learning rate.")
    optimizer: str = setting("adamw", "adamw, or muon (needs timm).")
    weight_decay: float = setting(1e-4, "Weight decay.")
    warmup_steps: int = setting(100, "Steps until the peak.")
    ema_decay: float = setting(0.999, "Decay of the averaged weights, which are what is saved.")
    grad_clip: float = setting(1.0, "Largest norm of the gradient; inf: any.")
    precision: str = setting("bf16", "no, bf16, or fp16 (GPU only).")
    compile: bool = setting(False, "torch.compile the network.")
    num_workers: int = setting(0, "Processes that decode images.")
    seed: int = setting(0, "Seed of weights, order and augmentation.")
    log_every: int = setting(25, "Steps a line of log.jsonl.")
    validate_minutes: float = setting(10.0, "Time between validations.")
    validate_first: bool = setting(False, "Validate before the first step too.")
    checkpoint_minutes: float = setting(3.0, "Time between checkpoints.")
    max_shard_size: str = setting("15MB", "Largest weight file of the saved model.")
    tracker: str | None = setting(
        None, "tensorboard, wandb or another of accelerate's; none: nothing is sent."
    )

    def __post_init__(self) -> None:
        for words, (holds, names) in _RANGES.items():
            for name in names.split():
                value = getattr(self, name, None)  # not every command has every setting
                if value is not None and not holds(value):
                    raise ValueError(f"{name}: expected {words}, got {value}.")
        _one_of("precision", self.precision, ("no", "bf16", "fp16"))
        _one_of("optimizer", self.optimizer, ("adamw", "muon"))


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Settings of a training on face crops: those of the loop, and the data.

    Raises:
        ValueError: a setting is out of its range, or two do not go together; the message names them.
    """

    data: str = field(
        kw_only=True, metadata={"help": "Parquet file, folder of parquet files or images, or a Hub name."}
    )
    initial_weights: str | None = setting(None, "Model folder to start from.")
    keep_in_memory: bool = setting(
        False, "Keep decoded images: 50 KB of memory each; only with 0 worker processes."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_in_memory and self.num_workers:
            raise ValueError(
                f"keep_in_memory: expected num_workers 0 beside it, got {self.num_workers}; each worker process "
                "would keep a copy of its own and the training none. Leave out one of the two."
            )


@dataclass(frozen=True)
class UNetConfig(TrainConfig):
    """Settings of `dedim train unet`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    batch_size: int = 16
    learning_rate: float = 6e-4
    size: str = setting("small", "small (4.8 M parameters; CPU) or base (26 M; GPU).")
    crop_size: int = setting(64, "Side of the training crops, px; 112: whole faces only.")
    full_size_share: float = setting(0.1, "Share of the steps that see whole faces.")
    low_timestep_share: float = setting(0.6, "Share of the samples drawn below the limit.")
    low_timestep_limit: int = setting(200, "Timesteps below it are drawn more often.")
    loss_weighting: str = setting("none", "none, or min-snr (Hang et al. 2023).")
    min_snr_gamma: float = setting(5.0, "Where min-snr stops to weigh less noisy samples more.")
    val_images: int = setting(64, "Validation faces.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("size", self.size, ("small", "base"))
        _one_of("loss_weighting", self.loss_weighting, ("none", "min-snr"))
        if self.crop_size % 8 or not 16 <= self.crop_size <= 112:
            raise ValueError(f"crop_size: expected a multiple of 8 from 16 to 112, got {self.crop_size}.")


@dataclass(frozen=True)
class EncoderConfig(TrainConfig):
    """Settings of `dedim train encoder`.

    Raises:
        ValueError: a setting is out of its range, or there is no teacher to learn from; the message names it.
    """

    minutes: float = 60.0
    batch_size: int = 64
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    grad_clip: float = 5.0
    method: str = setting(
        "distill",
        "distill (from any teacher), blockwise (block by block, from a MobileFaceNet) or arcface (labelled faces).",
    )
    teacher: str | None = setting(
        None, "ONNX recogniser to learn from: face [N,3,112,112] in [-1,1] -> embedding."
    )
    blocks_share: float = setting(
        0.35,
        "blockwise: share of the budget that trains each block on its own, before all together; 0: none.",
    )
    final_augmentation: float = setting(
        0.5,
        "blockwise: what is left of the changes to the crops at the end, as a share of those at the start.",
    )
    feature_weight: float = setting(1.0, "distill: weight of the teacher's feature maps.")
    relation_weight: float = setting(1.0, "distill: weight of the batch's cosines.")
    labels: str = setting("label", "arcface: column of identities; in a folder of images, its subfolders.")
    margin: float = setting(0.5, "arcface: angle added to that of the right identity, radians.")
    scale: float = setting(64.0, "arcface: factor of the cosines.")
    adversarial_radius: float = setting(
        0.0,
        "blockwise, all together: how far (L2 norm, crops in [-1, 1]) each crop is moved against the student.",
    )
    max_noise: float = setting(0.1, "Largest std of the noise on half of the crops.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("method", self.method, ("distill", "blockwise", "arcface"))
        if self.method != "arcface" and not self.teacher:
            raise ValueError(
                f"teacher: --method {self.method} needs one; give --teacher FILE.onnx, "
                "or --method arcface with labelled faces."
            )


@dataclass(frozen=True)
class LandmarkConfig(TrainConfig):
    """Settings of `dedim train landmarks`."""

    minutes: float = 15.0
    batch_size: int = 64
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    precision: str = "no"
    val_images: int = setting(1500, "Validation faces.")


@dataclass(frozen=True)
class VisibilityConfig(TrainConfig):
    """Settings of `dedim train visibility`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    batch_size: int = 64
    learning_rate: float = 3e-3
    ema_decay: float = 0.998
    val_images: int = setting(500, "Validation faces.")


@dataclass(frozen=True)
class PairConfig(TrainConfig):
    """Settings of a training on pairs of protected and original faces, which are made first where there are none.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    ema_decay: float = 0.998
    precision: str = "no"
    pairs: int = setting(400, "Faces of strangers that are protected first, to learn from.")
    method: str = setting("dedim", "What protects them: dedim:PRESET, dedim@h=0.5, fgsm, ...")
    weights: str | None = setting(None, "Pipeline that protects; none: the bundled one.")
    val_images: int = setting(64, "Pairs of the held-out tenth that are measured.")


@dataclass(frozen=True)
class PurifierConfig(PairConfig):
    """Settings of `dedim train purifier`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    minutes: float = 10.0
    batch_size: int = 16
    weights: str | None = setting(
        None, "Pipeline that protects and whose guides judge; none: the bundled one."
    )
    identity_weight: float = setting(0.5, "Weight of 1 - cosine with the original by the guides.")
    width: float = setting(1.0, "Factor of a new network's channels; 2 has 2.0 M parameters.")


@dataclass(frozen=True)
class DiscriminatorConfig(PairConfig):
    """Settings of `dedim train discriminator`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    batch_size: int = 24
    weight_decay: float = 0.02
    warmup_steps: int = 50
    ema_decay: float = 0.99
    grad_clip: float = 5.0
    pairs: int = 1200
    method: str = "dedim@realism=0"  # what a discriminator has led already shows few traces
    val_images: int = 200
    patch_weight: float = setting(0.3, "Weight of the cross-entropy of every patch by itself.")
    penalty_weight: float = setting(
        0.1, "Weight of the squared gradient with respect to originals (R1), in every fourth step or so."
    )


def read_config(path: str | Path, known: Collection[str]) -> dict[str, Any]:
    """Read settings from a TOML or JSON file, or from the ``config.json`` that an earlier run wrote.

    Args:
        path: the file; names may be written with ``-`` or ``_``.
        known: the names that the command takes.

    Returns:
        The settings by name; those that are null are left out.

    Raises:
        ValueError: no such file, another kind of file, not well-formed, or an unknown name.
    """
    path = Path(path)
    readers = {".json": json, ".toml": None}
    if path.suffix not in readers or not path.is_file():
        raise ValueError(f"config: expected an existing .toml or .json file, got {path}.")
    parser = readers[path.suffix] or import_extra(
        "tomllib" if sys.version_info >= (3, 11) else "tomli",
        "--config",
        'pip install "diffusers-dedim[train]"',
    )
    try:
        content = parser.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # both parsers' errors are of this kind
        raise ValueError(f"config: {path} is not well-formed {path.suffix[1:].upper()} ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"config: {path} holds a {type(content).__name__}, expected names and values.")
    content = content.get("settings", content)
    values = {name.replace("-", "_"): value for name, value in content.items() if value is not None}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"config: {path} has unknown settings {unknown}; expected some of {sorted(known)}.")
    return values


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        *some, last = map(repr, allowed)
        raise ValueError(f"{name}: expected {', '.join(some)} or {last}, got {value!r}.")
