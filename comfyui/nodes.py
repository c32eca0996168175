"""Two nodes for ComfyUI: load DeDiM, and protect the faces of a batch of images.

Outside ComfyUI, without its modules `comfy.utils` and `comfy.model_management`, they work all the same: without a
progress bar, without a button that stops them, and on the processor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.errors import NoFaceError, NotProtectedError
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.device import fast_dtype
from diffusers_dedim.pipeline.presets import resolve_preset

try:
    import comfy.model_management as model_management
    import comfy.utils as comfy_utils
except ImportError:
    model_management = comfy_utils = None

CATEGORY = "image/DeDiM"
NOT_ANONYMOUS = (
    "It does not make anybody anonymous: people who know the person will recognise them, and other recognisers "
    "may too."
)
STOP, KEEP, BLUR, BLACK = "stop", "pass it on unchanged", "blur the face", "give a black image"
STRENGTHS = {
    "gentler": "gentle",
    "standard": "fast",
    "stronger": "strong",
}  # name -> preset, as on the demo page
_LARGEST_SEED = 2**64 - 1  # as ComfyUI's own samplers have it


class _StoppedError(BaseException):
    """ComfyUI's stop button; no `Exception`, so that it is not taken for something that an image provoked."""


class LoadDeDiM:
    """Load the weights inside the package, or those of a folder or a Hub repository."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Loads what Protect Faces (DeDiM) works with. " + NOT_ANONYMOUS
    RETURN_TYPES = ("DEDIM",)
    RETURN_NAMES = ("dedim",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's names
        """What the node shows."""
        weights = {"default": "", "tooltip": "A folder or Hub id; empty for the weights inside the package."}
        device = {"tooltip": "auto: the device that ComfyUI computes on."}
        return {"required": {"weights": ("STRING", weights), "device": (["auto", "cpu"], device)}}

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str) -> bool | str:  # noqa: N802
        """Say at once that a folder holds no pipeline; what is no folder may be a Hub id."""
        folder = Path(weights.strip())
        if weights.strip() and folder.exists() and not (folder / "model_index.json").is_file():
            return f"weights: {folder} holds no pipeline (no model_index.json); give its folder, or nothing."
        return True

    @classmethod
    def IS_CHANGED(cls, weights: str, device: str) -> str:  # noqa: N802
        """Load a folder anew when it was saved anew."""
        files = sorted(Path(weights.strip()).rglob("*.safetensors")) if weights.strip() else []
        stamps = [f"{path}:{path.stat().st_mtime_ns}" for path in files]
        return hashlib.sha256("\n".join([weights, device, *stamps]).encode()).hexdigest()

    def load(self, weights: str, device: str) -> tuple[DeDiMPipeline]:
        """Load a pipeline and bring it to the device."""
        chosen = torch.device("cpu")
        if device == "auto" and model_management is not None:
            chosen = model_management.get_torch_device()
        pipe = DeDiMPipeline.from_pretrained(weights.strip() or None, dtype=fast_dtype(chosen))
        pipe.set_progress_bar_config(disable=True)
        return (pipe.to(chosen),)


class ProtectFaces:
    """Change every face of a batch of images a little, so that face recognition matches it less."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Changes every face a little, so that face recognition matches it less. "
        + NOT_ANONYMOUS
        + " Look at the "
        "scores: a face that is not protected as asked stops the workflow, unless you say otherwise below."
    )
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("images", "changed", "scores")
    OUTPUT_TOOLTIPS = (
        "The images at their own size, those faces changed.",
        "1 where a pixel was changed.",
        "JSON: what became of each image and each face.",
    )
    FUNCTION = "protect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What the node shows."""
        seed = {"default": 0, "min": 0, "max": _LARGEST_SEED, "control_after_generate": True}
        strength = {"default": "standard", "tooltip": "Stronger hides more and changes the face more."}
        no_face = {
            "default": STOP,
            "tooltip": "An image in which no face is found. Covered or turned faces can be missed: look at it.",
        }
        missed = {
            "default": STOP,
            "tooltip": "An image with a face that still matches, or that cannot be protected.",
        }
        album = {
            "default": False,
            "tooltip": "Keep a person's images of this batch apart from one another, too. Takes longer.",
        }
        return {
            "required": {
                "dedim": ("DEDIM",),
                "images": ("IMAGE",),
                "strength": (list(STRENGTHS), strength),
                "seed": ("INT", seed),
                "without_a_face": ([STOP, KEEP], no_face),
                "not_protected": ([STOP, BLUR, BLACK], missed),
                "album": ("BOOLEAN", album),
            }
        }

    def protect(
        self,
        dedim: DeDiMPipeline,
        images: Tensor,
        strength: str,
        seed: int,
        without_a_face: str,
        not_protected: str,
        album: bool,
    ) -> tuple[Tensor, Tensor, str]:
        """Protect the batch.

        Args:
            dedim: of `LoadDeDiM`.
            images: ``[B, H, W, 3]`` in [0, 1], or with an alpha as the fourth channel, which is kept.
            strength: a name of `STRENGTHS`.
            seed: each image draws with its own, made of this one and its number.
            without_a_face, not_protected: what to do with such an image; a face under 40 px, or covered, is blurred.
            album: an image then depends on those before it.

        Returns:
            Images of the same shape, where nothing changed bit for bit those that came in; ``[B, H, W]``, 1 where a
            pixel changed; JSON.

        Raises:
            NoFaceError, NotProtectedError: an image is so and "stop" was chosen; the message says which.
            ValueError: the images are of another shape or range.
        """
        _check_images(images)
        rgb = images[..., :3].cpu().float()
        rows: dict[int, _Row] = {}
        for number, result in _results(dedim, rgb, strength, seed, not_protected, album):
            rows[number] = _judge(number, len(images), rgb[number], result, without_a_face, not_protected)
        ordered = [rows[number] for number in range(len(images))]
        out = torch.stack([row.image for row in ordered]).to(images)
        if images.shape[3] == 4:
            out = torch.cat([out, images[..., 3:]], dim=3)
        report = {"about": NOT_ANONYMOUS, "images": [row.report for row in ordered]}
        return out, torch.stack([row.changed for row in ordered]), json.dumps(report, indent=2)


@dataclass(frozen=True, eq=False)
class _Row:
    """One image as it goes out."""

    image: Tensor  # [H, W, 3]
    changed: Tensor  # [H, W]
    report: dict[str, Any]


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[3] not in (3, 4) or not len(images):
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected a batch [B, H, W, 3] of colour images, got {shape}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # refuses nan too
        raise ValueError(
            f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; put a node before this one that brings "
            "them there."
        )


def _results(
    pipe: DeDiMPipeline, rgb: Tensor, strength: str, seed: int, not_protected: str, album: bool
) -> Iterator[tuple[int, Any]]:
    """Protect the images; each with its number, in the order in which they are done."""
    from diffusers_dedim.pipeline.inputs import generators, to_pixel_list
    from diffusers_dedim.pipeline.photos import StreamPhoto

    preset = resolve_preset(STRENGTHS[strength])
    pixels = to_pixel_list(rgb.permute(0, 3, 1, 2))
    draws = generators(seed, [str(number) for number in range(len(rgb))]) or []
    photos = (StreamPhoto(number, each, draws[number]) for number, each in enumerate(pixels))
    progress = _Progress(len(rgb), preset.max_rounds * preset.num_inference_steps)
    stream = pipe.stream(
        photos,
        preset=preset,
        callback_on_step_end=progress.step,
        fallback="blur" if not_protected == BLUR else "leave-out",
        album=Album() if album else None,
    )
    try:
        for result in stream:
            progress.photo_done()
            yield result.photo.owner, result
    except _StoppedError:
        model_management.throw_exception_if_processing_interrupted()
        raise RuntimeError("Stopped.") from None


class _Progress:
    """ComfyUI's bar and stop button, asked after each step."""

    def __init__(self, images: int, steps: int) -> None:
        self.done, self.steps, self.most = 0, 0, steps
        self.images = images
        self.bar = comfy_utils.ProgressBar(images * steps) if comfy_utils is not None else None

    def step(self, pipeline: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]) -> Any:
        """Move on by a step; most faces need fewer than the most there can be, and the bar jumps then."""
        if model_management is not None and model_management.processing_interrupted():
            raise _StoppedError
        self.steps = min(self.steps + 1, (self.images - self.done) * self.most - 1)
        self._show()
        return tensors

    def photo_done(self) -> None:
        """Move to the end of an image."""
        self.done, self.steps = self.done + 1, 0
        self._show()

    def _show(self) -> None:
        if self.bar is not None:
            self.bar.update_absolute(self.done * self.most + self.steps, self.images * self.most)


def _judge(number: int, count: int, image: Tensor, result: Any, no_face: str, missed: str) -> _Row:
    """What goes out for an image, and what is said of it."""
    where = f"image {number + 1} of {count}"
    faces = [_face_report(face) for face in result.faces]
    unchanged = torch.zeros(image.shape[:2])
    if isinstance(result.error, NoFaceError):
        if no_face == STOP:
            raise NoFaceError(
                f"{where}: no face was found, so nothing was protected. If you see a face, the image is NOT "
                f"protected; if there is none, set without_a_face to “{KEEP}”."
            )
        return _Row(image, unchanged, {"image": number, "status": "no face found: unchanged", "faces": []})
    if result.error is not None and not isinstance(result.error, ValueError):
        raise result.error  # a lack of memory, a wrong weight: no property of the image
    reason = _reason(result)
    if reason:
        if missed != BLACK:
            raise NotProtectedError(
                f"{where} is NOT protected: {reason} Try another seed, or set not_protected to “{BLUR}” or "
                f"“{BLACK}”."
            )
        status = f"NOT protected, given as a black image: {reason}"
        report = {"image": number, "status": status, "faces": faces}
        return _Row(torch.zeros_like(image), torch.ones_like(unchanged), report)
    before, after = (torch.from_numpy(each) for each in (result.photo.pixels, result.pixels))
    changed = (before != after).any(2)
    out = torch.where(changed[..., None], after.to(image) / 255, image)
    return _Row(out, changed.float(), {"image": number, "status": "protected", "faces": faces})


def _reason(result: Any) -> str:
    """Why an image must not be called protected; empty where it may."""
    if result.error is not None:
        return str(result.error).partition(": ")[2] or str(result.error)
    above = [face for face in result.faces if not face.is_protected]
    if above:
        worst = max(face.similarity for face in above)
        reasons = ", ".join(dict.fromkeys(face.reason for face in above if face.reason))
        why = f"; {reasons}" if reasons else ""
        return f"{len(above)} of {len(result.faces)} faces still match (similarity {worst:.2f}{why})."
    return ""


def _face_report(face: Any) -> dict[str, Any]:
    return {
        "box": [round(float(value), 1) for value in face.box],
        "treatment": face.treatment,  # changed, blurred or left
        "reason": face.reason,
        "similarity": round(face.similarity, 3),
        "protected": face.is_protected,
        "rounds": face.rounds,
    }


Node = Callable[..., Any]
NODE_CLASS_MAPPINGS: dict[str, Node] = {"DeDiMLoad": LoadDeDiM, "DeDiMProtectFaces": ProtectFaces}
NODE_DISPLAY_NAME_MAPPINGS = {"DeDiMLoad": "Load DeDiM", "DeDiMProtectFaces": "Protect Faces (DeDiM)"}
