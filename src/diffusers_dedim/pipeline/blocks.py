"""DeDiM as blocks of diffusers' modular pipelines: find faces, sample them, paste them back.

`DeDiMPipeline` is the short way. Blocks are for who wants to put something else between the steps, or these steps
between those of others (docs/composition.md).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.errors import NoFaceError
from diffusers_dedim.faces import AlignedFace, FaceDetector, align_face, cover_face, paste_back
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS
from diffusers_dedim.pipeline.components import OWN_COMPONENTS, class_named
from diffusers_dedim.pipeline.inputs import from_pixels, take_photos
from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.presets import resolve_preset
from diffusers_dedim.pipeline.rescue import FacePolicy, cover_of, find_faces, treatment_of

# A repository of a custom block holds its code in a file named as its module (here: this one).
_HUB_CODE = '''"""For diffusers' `ModularPipelineBlocks.from_pretrained(..., trust_remote_code=True)`."""

from diffusers_dedim.pipeline.blocks import DeDiMBlocks

__all__ = ["DeDiMBlocks"]
'''
_PARTS = ("unet", "scheduler", "face_encoder", "landmarker", "visibility", "discriminator")
_PRESET = InputParam("preset", default="fast", description="Name of a preset, or a DeDiMPreset.")
_FALLBACK = InputParam(
    "fallback", default="leave-out", description="A face that still matches, as the pipeline."
)
_THRESHOLD = InputParam(
    "threshold", description="Match probability (Eq. 4) below which a face counts as done."
)


def part(name: str) -> Any:
    """The `ComponentSpec` of a part of the pipeline: the bundled one, unless a repository or the user gives another.

    Args:
        name: "unet", "scheduler", "face_encoder", "landmarker", "visibility" or "discriminator".

    Example:
        >>> part("unet").type_hint.__name__
        'UNet2DModel'
    """
    made: dict[str, Any] = {"unet": UNet2DModel, "scheduler": DDPMScheduler}
    if name in OWN_COMPONENTS:
        folder = BUNDLED_WEIGHTS / name
        made[name] = class_named(json.loads((folder / "config.json").read_text()), name, folder)
    return ComponentSpec(name, made[name], pretrained_model_name_or_path=str(BUNDLED_WEIGHTS), subfolder=name)


class FindFaces(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers ships no types
    """Find the faces of photos and cut them out, aligned.

    Inputs: ``image``, ``small_faces`` and ``fallback`` as for `DeDiMPipeline`; ``select_faces``, ``face -> bool``.

    Outputs: ``photos``, uint8 RGB ``[H, W, 3]`` each; ``beside``, what each photo has beside its pixels;
    ``aligned_faces``, pairs of a photo's index and an `AlignedFace`; ``crops``, float32 ``[N, 3, 112, 112]`` in [0, 1],
    in steps of 1/255; ``covered_faces``, (photo index, `Face`, "blur" or "pixelate") of each that `PasteFaces` is to
    cover; ``left_faces``, (photo index, `Face`, reason) of each that stays as it is: **unprotected**, and warned of.

    Raises:
        NoFaceError, FaceTooSmallError: as the pipeline, or no face of a photo is changed or covered.
        ValueError: ``small_faces`` or ``fallback`` is another word.

    Example:
        >>> FindFaces().init_pipeline()(image=photo, output="crops").shape  # doctest: +SKIP
        torch.Size([1, 3, 112, 112])
    """

    model_name = "dedim"

    @property
    def description(self) -> str:
        """What the block does, for diffusers."""
        return "Find the faces of photos and cut them out, aligned to 112 x 112 pixels."

    @property
    def expected_components(self) -> list[Any]:
        """The face detector, which needs no weights but those of its package."""
        return [ComponentSpec("face_detector", FaceDetector, default_creation_method="from_config")]

    @property
    def inputs(self) -> list[Any]:
        """What it reads from the state."""
        return [
            InputParam("image", required=True, description="Photos as for DeDiMPipeline."),
            InputParam(
                "small_faces",
                default="blur",
                description="A face under 40 px or turned away, as the pipeline.",
            ),
            _FALLBACK,
            InputParam("select_faces", description="face -> bool; None for every face."),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What it adds to the state."""
        return [
            OutputParam("photos", list, "uint8 RGB [H, W, 3] each."),
            OutputParam("beside", list, "What each photo has beside its pixels."),
            OutputParam("aligned_faces", list, "(photo index, AlignedFace) of each face."),
            OutputParam("crops", Tensor, "[N, 3, 112, 112] in [0, 1]."),
            OutputParam("covered_faces", list, "(photo index, Face, how) of each that is to be covered."),
            OutputParam("left_faces", list, "(photo index, Face, reason) of each that stays UNPROTECTED."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the block."""
        block = self.get_block_state(state)
        policy = FacePolicy(block.small_faces, block.fallback, block.select_faces)
        block.photos, block.beside = take_photos(block.image)
        block.aligned_faces, block.covered_faces, block.left_faces = [], [], []
        for index, photo in enumerate(block.photos):
            found = find_faces(photo, None, components.face_detector, policy, index)
            changed = [each.aligned for each in found.subjects if each.treatment == "changed"]
            others = [each for each in found.subjects if each.treatment != "changed"]
            covers = [(index, each.aligned.face, cover_of(each.treatment)) for each in others]
            covers = [each for each in covers if each[2] is not None]
            left = [(each.aligned.face, each.reason) for each in others if each.treatment == "left"]
            left += [(face, "is under 40 px") for face in found.small]
            block.aligned_faces += [(index, aligned) for aligned in changed]
            block.covered_faces += covers
            block.left_faces += [(index, *each) for each in left]
            _warn_left(index, [reason for _, reason in left], len(changed) + len(covers))
        crops = _stack([aligned.crop for _, aligned in block.aligned_faces])
        # in the steps of a photo: what the sampler leaves as it is comes back to the bit
        block.crops = ((crops + 1) * 127.5).round().clamp(0, 255) / 255
        self.set_block_state(state, block)
        return components, state


def _stack(crops: Sequence[Tensor]) -> Tensor:
    """``[N, 3, 112, 112]``; all faces of the photos may be to be covered."""
    return torch.stack(list(crops)) if crops else torch.zeros(0, 3, CROP_SIZE, CROP_SIZE)


def _warn_left(index: int, reasons: Sequence[str], changed: int) -> None:
    """Say aloud which faces of a photo stay as they are; raise where nothing is done with any."""
    said = f"image {index}: {len(reasons)} faces are left UNPROTECTED ({', '.join(dict.fromkeys(reasons))})"
    if not changed:
        raise NoFaceError(f"{said}, and no other was found.")
    if reasons:
        warnings.warn(f"{said}.", stacklevel=2)


class SampleFaces(ModularPipelineBlocks):  # type: ignore[misc]
    """Change aligned crops by Algorithm 2 so that the recogniser no longer matches them.

    Inputs: ``crops``, ``[N, 3, 112, 112]`` in [0, 1], N may be 0; ``preset``, ``max_rounds``, ``threshold``,
    ``generator``, ``batch_size`` as for `DeDiMPipeline`, which does the work. Output: ``protected_crops``, of the same
    kind.

    Example:
        >>> pipe = SampleFaces().init_pipeline()  # doctest: +SKIP
        >>> pipe.load_components()  # doctest: +SKIP
        >>> pipe(crops=crops, output="protected_crops").shape  # doctest: +SKIP
        torch.Size([1, 3, 112, 112])
    """

    model_name = "dedim"

    @property
    def description(self) -> str:
        """What the block does, for diffusers."""
        return "Change aligned faces by a diffusion model so that face recognition matches them less."

    @property
    def expected_components(self) -> list[Any]:
        """The parts of `DeDiMPipeline`."""
        return [part(name) for name in _PARTS]

    @property
    def inputs(self) -> list[Any]:
        """What it reads from the state."""
        return [
            InputParam("crops", type_hint=Tensor, required=True, description="[N, 3, 112, 112] in [0, 1]."),
            _PRESET,
            InputParam("max_rounds", type_hint=int, description="The most rounds a face gets."),
            _THRESHOLD,
            InputParam("generator", type_hint=torch.Generator, description="One, or one a face."),
            InputParam("batch_size", type_hint=int, default=16, description="Faces sampled together."),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What it adds to the state."""
        return [OutputParam("protected_crops", Tensor, "[N, 3, 112, 112] in [0, 1].")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the block."""
        block = self.get_block_state(state)
        block.protected_crops = block.crops
        if not len(block.crops):
            self.set_block_state(state, block)
            return components, state
        pipe = DeDiMPipeline(**{name: getattr(components, name) for name in _PARTS})
        pipe.set_progress_bar_config(disable=True)
        images: Any = pipe(
            block.crops.float(),
            preset=block.preset,
            max_rounds=block.max_rounds,
            threshold=block.threshold,
            generator=block.generator,
            batch_size=block.batch_size,
            aligned=True,
            output_type="pt",
            return_dict=False,
        )[0]
        block.protected_crops = torch.stack(images)
        self.set_block_state(state, block)
        return components, state


class PasteFaces(ModularPipelineBlocks):  # type: ignore[misc]
    """Carry the change of each crop back into its photo, at the photo's own resolution, and measure what is left.

    Inputs: ``photos``, ``beside``, ``aligned_faces``, ``crops`` and ``covered_faces`` of `FindFaces`;
    ``protected_crops``; ``preset`` and ``threshold`` for the verdict; ``fallback``; ``output_type``. Outputs:
    ``images``; ``similarities``, the cosine in [-1, 1] of each face of the pasted photo with the original by the
    recogniser; ``reached_threshold``, for each face whether that is enough; ``is_protected``, whether it is, or the
    face was covered. **A face for which that is False is not protected.**

    Example:
        >>> DeDiMBlocks().sub_blocks["paste"]  # doctest: +SKIP
    """

    model_name = "dedim"

    @property
    def description(self) -> str:
        """What the block does, for diffusers."""
        return "Carry the change of aligned faces back into their photos, and measure what still matches."

    @property
    def expected_components(self) -> list[Any]:
        """The recogniser, which judges."""
        return [part("face_encoder")]

    @property
    def inputs(self) -> list[Any]:
        """What it reads from the state."""
        found = ("photos", "beside", "aligned_faces", "crops", "protected_crops")
        output = InputParam("output_type", type_hint=str, default="pil", description="'pil', 'np' or 'pt'.")
        covered = InputParam("covered_faces", default=(), description="What `FindFaces` left to be covered.")
        needed = [InputParam(name, required=True) for name in found]
        return [*needed, covered, _PRESET, _THRESHOLD, _FALLBACK, output]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What it adds to the state."""
        return [
            OutputParam("images", list, "One per photo, of `output_type`."),
            OutputParam("similarities", list, "Cosine of each face with its original, in [-1, 1]."),
            OutputParam("reached_threshold", list, "For each face whether it was changed far enough."),
            OutputParam("is_protected", list, "For each face whether it was, or is covered."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the block."""
        block = self.get_block_state(state)
        threshold = resolve_preset(block.preset, threshold=block.threshold).threshold
        pixels = paste_changes(block.photos, block.aligned_faces, block.crops, block.protected_crops)
        for index, face, how in block.covered_faces:
            beside = [aligned.face for place, aligned in block.aligned_faces if place == index]
            pixels[index] = cover_face(pixels[index], face, how, beside)
        probability = _probabilities(components.face_encoder, pixels, block.aligned_faces)
        block.similarities = (2 * probability - 1).tolist()
        block.reached_threshold = (probability < threshold).tolist()
        cover = cover_of(treatment_of(FacePolicy(fallback=block.fallback).fallback))
        for (index, aligned), reached in zip(block.aligned_faces, block.reached_threshold, strict=True):
            if cover is not None and not reached:
                pixels[index] = cover_face(pixels[index], aligned.face, cover)
        block.is_protected = [reached or cover is not None for reached in block.reached_threshold]
        block.images = [
            from_pixels(photo, block.output_type, beside)
            for photo, beside in zip(pixels, block.beside, strict=True)
        ]
        self.set_block_state(state, block)
        return components, state


def paste_changes(
    photos: Sequence[NDArray[np.uint8]],
    aligned_faces: Sequence[tuple[int, AlignedFace]],
    crops: Tensor,
    protected_crops: Tensor,
) -> list[NDArray[np.uint8]]:
    """Add to each photo what changed in the crops of its faces; where nothing did, it keeps its bits.

    Args:
        photos: uint8 RGB ``[H, W, 3]`` each; not modified.
        aligned_faces: photo index and face, N of them.
        crops: ``[N, 3, 112, 112]`` in [0, 1], before.
        protected_crops: after.

    Raises:
        ValueError: there is another number of crops than of faces, or their shapes differ.
    """
    if not len(aligned_faces) == len(crops) == len(protected_crops) or crops.shape != protected_crops.shape:
        raise ValueError(
            f"protected_crops: expected {list(crops.shape)}, one for each of {len(aligned_faces)} faces, got "
            f"{list(protected_crops.shape)}; a block between `FindFaces` and `PasteFaces` must keep all."
        )
    pasted = list(photos)
    for (index, aligned), before, after in zip(
        aligned_faces, crops.cpu(), protected_crops.cpu(), strict=True
    ):
        before, after = before.float(), after.float()
        changed = (before != after).any(0, keepdim=True).float()
        start = replace(aligned, crop=2 * before - 1)
        pasted[index] = paste_back(pasted[index], start, 2 * after - 1, changed)
    return pasted


def _probabilities(
    face_encoder: nn.Module,
    pixels: Sequence[NDArray[np.uint8]],
    aligned_faces: Sequence[tuple[int, AlignedFace]],
) -> Tensor:
    """Match probability of each face in the finished photos with itself before, ``[N]``."""
    if not aligned_faces:
        return torch.zeros(0)
    finished = [align_face(pixels[index], aligned.face).crop for index, aligned in aligned_faces]
    original = [aligned.crop for _, aligned in aligned_faces]
    device = getattr(face_encoder, "device", "cpu")
    return match_probability(*(face_encoder(_stack(each).to(device)).cpu() for each in (finished, original)))


class DeDiMBlocks(SequentialPipelineBlocks):  # type: ignore[misc]
    """The three steps in their order: "find", "sample", "paste" of ``sub_blocks``.

    Saved with `save_pretrained` or `push_to_hub`, it is a custom block of the Hub: a few lines of code that import
    this package. The networks are the bundled ones, or those of the pipeline's folder or repository that
    `init_pipeline` is given.

    Example:
        >>> pipe = DeDiMBlocks().init_pipeline()  # doctest: +SKIP
        >>> pipe.load_components()  # doctest: +SKIP
        >>> state = pipe(image=photo)  # doctest: +SKIP
        >>> state.get("images"), state.get("is_protected")  # doctest: +SKIP
    """

    model_name = "dedim"
    block_classes: ClassVar[list[Any]] = [FindFaces, SampleFaces, PasteFaces]
    block_names: ClassVar[list[str]] = ["find", "sample", "paste"]

    @property
    def description(self) -> str:
        """What the blocks do, for diffusers."""
        return "Change every face of a photo so that face recognition matches it less. Not anonymity."

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write what makes a folder a custom block: its configuration, and the code that finds this class.

        `save_pretrained` and `push_to_hub` call it.

        Args:
            save_directory: is made where it is missing.
            push_to_hub: upload it too; ``repo_id`` and others of ``kwargs`` as for `push_to_hub`.
            **kwargs: as diffusers takes them.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{Path(__file__).stem}.py").write_text(_HUB_CODE)
        super().save_config(str(folder), push_to_hub=push_to_hub, **kwargs)
