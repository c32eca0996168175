"""The methods of the experiment under one call: photos in, photos and a record of each changed face out.

A name says which: a method, its preset, and numbers that differ from it (``dedim:fast@h=0.3``).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusers_dedim.baselines import (
    TIP_IM_PRESETS,
    TipImPreset,
    apply_fgsm,
    apply_tip_im,
    blur_face,
    pixelate_face,
)
from diffusers_dedim.encoders.ensemble import FusedEncoder
from diffusers_dedim.faces import AlignedFace, Face, align_face, choose_faces, paste_back, warn_small
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.pipeline.inputs import child_generator, photo_generators, to_pixel_list
from diffusers_dedim.pipeline.output import DeDiMOutput, FaceResult, measure_faces
from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.presets import PRESETS

SYMBOLS = {"h": "threshold", "s": "guidance_scale", "L": "max_rounds"}
"""The paper's letters for settings of ``dedim``; every other setting goes by its own name."""

Preset = TypeVar("Preset")

Generators = torch.Generator | Sequence[torch.Generator] | None
Method = Callable[..., Any]  # photos, generator -> DeDiMOutput
FaceFilter = Callable[[PixelArray, Face], PixelArray]
CropAttack = Callable[[Tensor, list[torch.Generator]], Tensor]

METHOD_NAMES = ("original", "gaussian-blur", "pixelate", "ddpm", "fgsm", "tip-im", "tip-im-strong", "dedim")
"""Names for `make_method`; ``tip-im`` and ``dedim`` also take ``:PRESET``, and ``@SETTING=NUMBER`` after it."""

FGSM_EPSILON = 12.0
# The baselines and `ddpm` have no h of their own: their records say whether they got below the default preset's.
_THRESHOLD = PRESETS["fast"].threshold
_FACES_AT_A_TIME = 16  # TIP-IM holds ten candidates and ten gradients of each


def make_method(
    name: str, pipe: DeDiMPipeline, *, seed: int = 0, first: int = 0, targets: Tensor | None = None
) -> Callable[[list[PixelArray]], Any]:
    """Build a method of the experiment.

    Args:
        name: one of `METHOD_NAMES`, or ``dedim:PRESET``, ``tip-im:PRESET``. ``dedim`` is ``dedim:fast``, ``tip-im`` is
            ``tip-im:published``, ``tip-im-strong`` is ``tip-im:strong``. Numbers of the preset may be changed:
            ``dedim@h=0.5``, ``tip-im@epsilon=6`` (`split_strength`).
        pipe: detector, landmarks, denoiser and the white-box recogniser, for every method the same.
        seed: each photo gets its own generator from it and from its place among all photos, so
            that batches do not matter. (A face that is processed beside others may still differ in the last
            bits of float32.)
        first: place of the first photo that is given.
        targets: for TIP-IM, aligned crops ``[K, 3, 112, 112]`` in [-1, 1] of people who are neither probe nor
            in the gallery; the paper takes 10.

    Returns:
        Photos (uint8 ``[H, W, 3]`` each) -> `DeDiMOutput` with uint8 arrays and one `FaceResult` per changed
        face. ``original`` changes none. Faces under 40 px are left as they are, with a warning.

    Raises:
        ValueError: the name, its preset or a setting is unknown, or TIP-IM has no targets; when run, a photo shows
            no face (`NoFaceError`) or only small ones (`FaceTooSmallError`).

    Example:
        >>> method = make_method("dedim:fast", pipe, seed=0)  # doctest: +SKIP
        >>> method([photo]).images[0].shape  # doctest: +SKIP
        (250, 250, 3)
    """
    return seeded(_build(name, pipe, targets), seed, first)


def seeded(method: Callable[..., Any], seed: int, first: int = 0) -> Callable[[list[PixelArray]], Any]:
    """Give every photo its own generator, by its place: what a photo becomes does not depend on the batch size."""
    count = itertools.count(first)

    def call(photos: list[PixelArray]) -> Any:
        # not by name as in a run: the numbers in docs/results are of these draws
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + next(count)) for _ in photos]
        return method(photos, generator=generators)

    return call


def takes_targets(name: str) -> bool:
    """Whether the method needs photos of other people."""
    return name.startswith("tip-im")


def denoises(name: str) -> bool:
    """Whether the UNet and its schedule decide what the method makes of a photo."""
    return name.startswith(("dedim", "ddpm"))


def split_strength(name: str) -> tuple[str, dict[str, float]]:
    """Split a method's name into the method and the settings behind its ``@``.

    Args:
        name: ``METHOD`` or ``METHOD@SETTING=NUMBER``, further settings after ``+``.

    Raises:
        ValueError: what follows the ``@`` has another form.

    Example:
        >>> split_strength("dedim:fast@h=0.5+s=0.012")
        ('dedim:fast', {'threshold': 0.5, 'guidance_scale': 0.012})
    """
    method, at, text = name.partition("@")
    strength: dict[str, float] = {}
    for word in text.split("+") if at else ():
        setting, _, value = word.partition("=")
        number = _number(value)
        setting = SYMBOLS.get(setting, setting)
        if not setting or number is None or setting in strength:
            raise ValueError(
                f"method: expected METHOD@SETTING=NUMBER, each setting once, further ones after '+' "
                f"('dedim:fast@h=0.5+s=0.012'), got {name!r}."
            )
        strength[setting] = number
    return method, strength


def set_strength(name: str, preset: Preset, strength: dict[str, float]) -> Preset:
    """The preset with these settings put in.

    Args:
        name: the method's, for messages.
        preset: a frozen dataclass that checks itself, such as `DeDiMPreset`.
        strength: from `split_strength`.

    Raises:
        ValueError: the preset has no such number, or refuses the value.
    """
    known = {field.name: getattr(preset, field.name) for field in fields(preset)}  # type: ignore[arg-type]
    numbers = {key: value for key, value in known.items() if isinstance(value, (int, float))}
    unknown = sorted(set(strength) - set(numbers))
    if unknown:
        raise ValueError(f"method: {name!r} sets {unknown}; expected settings out of {sorted(numbers)}.")
    changes: dict[str, Any] = dict(strength)
    for key, value in strength.items():
        if isinstance(numbers[key], int):
            if value != int(value):
                raise ValueError(f"method: {name!r}: expected a whole number for {key}, got {value:g}.")
            changes[key] = int(value)
    if "threshold" in changes and "threshold_margin" in numbers:  # as `resolve_preset` does
        changes.setdefault("threshold_margin", min(numbers["threshold_margin"], changes["threshold"] / 2))
    return replace(preset, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class FilterMethod:
    """Change each face's box with a filter; no randomness.

    Attributes:
        pipe: finds the faces and judges the result.
        change: (photo, face) -> new photo, other pixels bit for bit the same.
    """

    pipe: DeDiMPipeline
    change: FaceFilter

    def __call__(self, photos: list[PixelArray], generator: Generators = None) -> DeDiMOutput:
        """Change every face of every photo; see `make_method`."""
        found, results = _find_all(self.pipe, photos), list(photos)
        for index, aligned in found:
            results[index] = self.change(results[index], aligned.face)
        return DeDiMOutput(results, _measure_all(self.pipe, results, found, rounds=0))


@dataclass(frozen=True)
class AttackMethod:
    """Change each aligned crop within an epsilon ball and carry the change back into the photo.

    Attributes:
        pipe: finds the faces and judges the result; its recogniser is the white box.
        attack: (crops ``[N, 3, 112, 112]``, one generator per face) -> changed crops.
        epsilon: no value of the photo changes by more, grey levels; resampling alone could exceed it a little.
        rounds: for the records.
    """

    pipe: DeDiMPipeline
    attack: CropAttack
    epsilon: float
    rounds: int

    def __call__(self, photos: list[PixelArray], generator: Generators = None) -> DeDiMOutput:
        """Change every face of every photo; see `make_method`."""
        parents = photo_generators(generator, len(photos))
        found, results = _find_all(self.pipe, photos), list(photos)
        for batch in _batches(found):
            crops = _stack_crops(self.pipe, batch)
            changed = self.attack(crops, [child_generator(parents[index]) for index, _ in batch])
            for (index, aligned), crop in zip(batch, changed.cpu(), strict=True):
                results[index] = paste_back(results[index], aligned, crop, torch.ones_like(crop[:1]))
        results = [
            _clip_change(original, result, self.epsilon)
            for original, result in zip(photos, results, strict=True)
        ]
        return DeDiMOutput(results, _measure_all(self.pipe, results, found, rounds=self.rounds))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _build(name: str, pipe: DeDiMPipeline, targets: Tensor | None) -> Method:
    method, strength = split_strength(name)
    base, _, preset = method.partition(":")
    if base == "tip-im-strong" and not preset:
        base, preset = "tip-im", "strong"
    plain: dict[str, Callable[[], Method]] = {
        "original": lambda: _keep,
        "gaussian-blur": lambda: FilterMethod(pipe, blur_face),
        "pixelate": lambda: FilterMethod(pipe, pixelate_face),
        "ddpm": lambda: partial(_ddpm, pipe),
        "fgsm": lambda: AttackMethod(pipe, partial(_fgsm, pipe), epsilon=FGSM_EPSILON, rounds=1),
    }
    if base in plain and not preset and not strength:
        return plain[base]()
    if base == "tip-im":
        settings = _settings(name, preset or "published", TIP_IM_PRESETS, strength)
        return _build_tip_im(name, settings, pipe, targets)
    if base == "dedim":
        chosen = _settings(name, preset or "fast", PRESETS, strength)
        if (
            strength and "retries" not in strength
        ):  # of settings that are compared, not those of a last attempt
            chosen = replace(chosen, retries=0)
        return partial(_dedim, pipe, preset=chosen if strength else preset or "fast")
    raise ValueError(
        f"method: expected one of {list(METHOD_NAMES)}, 'dedim:PRESET' or 'tip-im:PRESET' (these two also with "
        f"'@SETTING=NUMBER'), got {name!r}."
    )


def _build_tip_im(name: str, settings: TipImPreset, pipe: DeDiMPipeline, targets: Tensor | None) -> Method:
    if targets is None or len(targets) == 0:
        raise ValueError(
            f"targets: {name!r} needs photos of other people (10 in the paper) as aligned crops "
            "[K, 3, 112, 112] in [-1, 1], got none; take people who are neither probe nor in the gallery."
        )
    if targets.ndim != 4 or targets.shape[1:] != (3, CROP_SIZE, CROP_SIZE):
        raise ValueError(
            f"targets: expected aligned crops [K, 3, {CROP_SIZE}, {CROP_SIZE}], got {list(targets.shape)}; use "
            "diffusers_dedim.faces.align_face."
        )
    if not ((targets >= -1) & (targets <= 1)).all():  # also refuses nan
        raise ValueError(
            f"targets: expected values in [-1, 1], got {float(targets.min()):.3g} to {float(targets.max()):.3g}."
        )
    encoder = FusedEncoder(pipe.face_encoder)
    with torch.no_grad():
        embeddings = encoder(targets.to(pipe.device))

    def attack(x_org: Tensor, generators: list[torch.Generator]) -> Tensor:
        return apply_tip_im(
            x_org, face_encoder=encoder, targets=embeddings, settings=settings, generators=generators
        ).crops

    return AttackMethod(pipe, attack, epsilon=settings.epsilon, rounds=settings.iterations)


def _settings(name: str, preset: str, presets: dict[str, Preset], strength: dict[str, float]) -> Preset:
    if preset not in presets:
        raise ValueError(f"method: expected a preset out of {sorted(presets)}, got {name!r}.")
    return set_strength(name, presets[preset], strength)


def _keep(photos: list[PixelArray], generator: Generators = None) -> DeDiMOutput:
    """The photos as they are."""
    return DeDiMOutput(list(photos), [])


def _dedim(
    pipe: DeDiMPipeline, photos: list[PixelArray], generator: Generators = None, **settings: Any
) -> Any:
    out: Any = pipe(photos, small_faces="skip", generator=generator, **settings)
    return DeDiMOutput(to_pixel_list(out.images), out.faces)


def _ddpm(pipe: DeDiMPipeline, photos: list[PixelArray], generator: Generators = None) -> Any:
    """Algorithm 2 with s = 0 and L = 1: what the denoiser alone does to the masked face."""
    with warnings.catch_warnings():
        # nothing pushes these faces below h: that they stay above it is the finding, not a fault
        warnings.filterwarnings("ignore", message=".* stayed above the threshold")
        return _dedim(
            pipe, photos, generator, preset="paper", guidance_scale=0, max_rounds=1, threshold=_THRESHOLD
        )


def _fgsm(pipe: DeDiMPipeline, x_org: Tensor, generators: list[torch.Generator]) -> Tensor:
    encoder = FusedEncoder(pipe.face_encoder)
    return apply_fgsm(x_org, face_encoder=encoder, generators=generators, epsilon=FGSM_EPSILON)


def _clip_change(original: PixelArray, changed: PixelArray, epsilon: float) -> PixelArray:
    limit, start = int(epsilon), original.astype(np.int16)
    return np.clip(changed.astype(np.int16), start - limit, start + limit).astype(np.uint8)


def _find_all(pipe: DeDiMPipeline, photos: Sequence[PixelArray]) -> list[tuple[int, AlignedFace]]:
    found: list[tuple[int, AlignedFace]] = []
    for index, photo in enumerate(photos):
        large, small = choose_faces(pipe.face_detector(photo), index, "skip")
        # stacklevel 4: past this function and the method, the line that called it
        warn_small(len(small), len(large) + len(small), index, stacklevel=4)
        found += [(index, align_face(photo, face)) for face in large]
    return found


def _batches(found: list[tuple[int, AlignedFace]]) -> list[list[tuple[int, AlignedFace]]]:
    return [found[start : start + _FACES_AT_A_TIME] for start in range(0, len(found), _FACES_AT_A_TIME)]


def _stack_crops(pipe: DeDiMPipeline, batch: Sequence[tuple[int, AlignedFace]]) -> Tensor:
    return torch.stack([aligned.crop for _, aligned in batch]).to(pipe.device)


def _measure_all(
    pipe: DeDiMPipeline, photos: Sequence[PixelArray], found: list[tuple[int, AlignedFace]], rounds: int
) -> list[FaceResult]:
    results: list[FaceResult] = []
    for batch in _batches(found):
        crops, count = _stack_crops(pipe, batch), len(batch)
        with torch.no_grad():
            landmarks = pipe.landmarker(crops)
        results += measure_faces(
            photos,
            batch,
            crops,
            landmarks,
            pipe.face_encoder,
            rounds=[rounds] * count,
            unet_calls=[0] * count,
            threshold=_THRESHOLD,
        )
    return results
