"""What may happen to a protected photo before it is searched for: sharing, rescaling, and purification.

Every transform has one call shape: photos (uint8 RGB ``[H, W, 3]`` each) in, photos of the same sizes out. None
of them changes its input, and each gives the same result for the same photo whatever stands beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from diffusers_dedim.diffusion.sampling import sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.diffusion.solvers import prepare_scheduler
from diffusers_dedim.faces import Face, align_face, paste_back, whole_crop
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.pipeline.inputs import child_generator

Transform = Callable[[list[PixelArray]], list[PixelArray]]

BLUR_SIGMA = 1.0  # photo px
_PURIFY = "purify-"
PURIFY_TIMESTEPS = (50, 100, 200)  # half, once and twice the paper's t_0
_STEP_STRIDE = 10  # one denoiser call for each ten of the paper's t
_CROPS_AT_ONCE = 16


def make_transforms(
    pipe: Any, *, seed: int = 0, start_timesteps: Sequence[int] = PURIFY_TIMESTEPS
) -> dict[str, Transform]:
    """`TRANSFORMS` and ``purify-T`` for each T of ``start_timesteps``.

    Args:
        pipe: a `DeDiMPipeline`, see `make_purifier`.
        seed: of the purification's noise.
        start_timesteps: the paper's t_0, each in 1..T.

    Raises:
        ValueError: a timestep is out of range.

    Example:
        >>> transforms = make_transforms(pipe, seed=0)  # doctest: +SKIP
        >>> list(transforms)[-3:]  # doctest: +SKIP
        ['purify-50', 'purify-100', 'purify-200']
    """
    purifiers = {f"{_PURIFY}{start}": make_purifier(pipe, start, seed=seed) for start in start_timesteps}
    return {**TRANSFORMS, **purifiers}


def uses_denoiser(transform: str) -> bool:
    """Whether this one of `make_transforms` runs the pipeline's denoiser.

    Example:
        >>> uses_denoiser("purify-50"), uses_denoiser("jpeg-75")
        (True, False)
    """
    return transform.startswith(_PURIFY)


def make_purifier(
    pipe: Any,
    start_timestep: int,
    *,
    num_inference_steps: int | None = None,
    seed: int = 0,
    aligned: bool = False,
) -> Transform:
    """An attacker who hopes to wash the change away: `sdedit` of every face, put back into its photo.

    Faces are detected and aligned as the pipeline does. A photo without a face is returned as it is. The noise
    of a photo depends on ``seed`` and its pixels alone, not on its place in a list.

    Args:
        pipe: a `DeDiMPipeline`; what it was trained on is the attacker's prior.
        start_timestep: the paper's t_0, in 1..T: how much is washed away, of the person too.
        num_inference_steps: denoising steps; by default one for each ten of t_0.
        seed: of the noise.
        aligned: the photos are aligned 112x112 crops; nothing is detected.

    Returns:
        Photos -> purified photos.

    Source:
        Nie et al. 2022, "Diffusion Models for Adversarial Purification".

    Raises:
        TypeError, ValueError: the timesteps are out of range, or the pipeline's scheduler cannot serve.

    Example:
        >>> purify = make_purifier(pipe, 100)  # doctest: +SKIP
        >>> purified = purify(protected)  # doctest: +SKIP
    """
    steps = max(1, start_timestep // _STEP_STRIDE) if num_inference_steps is None else num_inference_steps
    # raises here, not in the middle of a measurement
    prepare_scheduler(pipe.scheduler, dedim_timesteps(start_timestep, steps))

    def purify(photos: list[PixelArray]) -> list[PixelArray]:
        return [_purify_photo(pipe, photo, start_timestep, steps, seed, aligned) for photo in photos]

    return purify


def sdedit(
    pipe: Any,
    crops: Tensor,
    start_timestep: int,
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Diffuse whole crops to t_0 and denoise them once, without guidance.

    One round of Algorithm 2 with nothing to push and the whole crop as mask.

    Args:
        pipe: a `DeDiMPipeline`; its denoiser, scheduler and recogniser are used, none is changed.
        crops: ``[N, 3, 112, 112]`` in [-1, 1].
        start_timestep: the paper's t_0, in 1..T.
        num_inference_steps: denoising steps, spaced over t_0..1.
        generators: one for each crop.

    Returns:
        ``[N, 3, 112, 112]``, clipped to [-1, 1] as a saved image is.

    Source:
        Meng et al. 2022, "SDEdit".

    Raises:
        TypeError, ValueError: the timesteps or the pipeline's scheduler do not fit, or there are not as many
            generators as crops.
    """
    if len(generators) != len(crops):
        raise ValueError(f"generators: expected one for each of {len(crops)} crops, got {len(generators)}.")
    scheduler = prepare_scheduler(pipe.scheduler, dedim_timesteps(start_timestep, num_inference_steps))

    def predict_noise(x_t: Tensor, timestep: int) -> Tensor:
        eps: Tensor = pipe.unet(x_t.to(pipe.unet.dtype), timestep).sample
        return eps.float()

    pieces = []
    for start in range(0, len(crops), _CROPS_AT_ONCE):
        x_org = crops[start : start + _CROPS_AT_ONCE].to(pipe.device)
        sample = sample_dedim(
            x_org,
            torch.ones_like(x_org[:, :1]),
            unet=predict_noise,
            scheduler=scheduler,
            face_encoder=pipe.face_encoder,
            threshold=0.0,
            max_rounds=1,
            generators=list(generators[start : start + _CROPS_AT_ONCE]),
        )
        pieces.append(sample.crops.clamp(-1, 1).to(crops.device))
    return torch.cat(pieces)


def _purify_photo(
    pipe: Any, photo: PixelArray, start_timestep: int, steps: int, seed: int, aligned: bool
) -> PixelArray:
    def wash(crops: Tensor) -> Tensor:
        parent = torch.Generator().manual_seed(_content_seed(photo, seed))
        return sdedit(pipe, crops, start_timestep, steps, [child_generator(parent) for _ in crops])

    return change_faces(None if aligned else pipe.face_detector, photo, wash)


def change_faces(
    detector: Callable[[PixelArray], list[Face]] | None, photo: PixelArray, change: Callable[[Tensor], Tensor]
) -> PixelArray:
    """Change the whole aligned crop of every face, and put it back into its photo.

    Args:
        detector: photo -> faces; None where the photo is an aligned crop.
        photo: uint8 RGB ``[H, W, 3]``.
        change: crops ``[N, 3, 112, 112]`` in [-1, 1] -> as many.

    Returns:
        A new photo; a copy where no face was found.
    """
    faces = [whole_crop(photo)] if detector is None else [align_face(photo, face) for face in detector(photo)]
    result: PixelArray = photo.copy()
    if not faces:
        return result
    crops = torch.stack([face.crop for face in faces])
    everything = torch.ones_like(crops[0, :1])
    for face, crop in zip(faces, change(crops), strict=True):
        result = paste_back(result, face, crop, everything)
    return result


def _content_seed(photo: PixelArray, seed: int) -> int:
    """A seed in 0..2^62 from the seed and the photo: the same in any order, batch or resumed run."""
    digest = hashlib.sha256(f"{seed} {photo.shape}".encode())
    digest.update(np.ascontiguousarray(photo).tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 2


def _each(change: Callable[[Image.Image], Image.Image]) -> Transform:
    def transform(photos: list[PixelArray]) -> list[PixelArray]:
        return [np.array(change(Image.fromarray(photo))) for photo in photos]

    return transform


def _encode(image: Image.Image, file_format: str, **options: Any) -> Image.Image:
    """Encode and decode again."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return Image.open(buffer).convert("RGB")


def _resize_half(image: Image.Image) -> Image.Image:
    """Bicubic to half the width and height (rounded up) and back, as a preview server does."""
    half = ((image.width + 1) // 2, (image.height + 1) // 2)
    return image.resize(half, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _blur(image: Image.Image) -> Image.Image:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    side = 2 * int(np.ceil(4 * BLUR_SIGMA)) + 1
    # "reflect" padding needs a photo larger than half the kernel
    side = min(side, 2 * (min(image.size) - 1) + 1)
    blurred = gaussian_blur(pixels.float(), [side, side], [BLUR_SIGMA, BLUR_SIGMA])
    return Image.fromarray(blurred.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def _jpeg(quality: int) -> Transform:
    """Chroma at half resolution, as phones and social networks write JPEG."""
    return _each(partial(_encode, file_format="JPEG", quality=quality, subsampling="4:2:0"))


TRANSFORMS: dict[str, Transform] = {
    "jpeg-95": _jpeg(95),
    "jpeg-75": _jpeg(75),
    "jpeg-50": _jpeg(50),
    "webp-80": _each(partial(_encode, file_format="WEBP", quality=80)),
    "resize-half": _each(_resize_half),
    "gaussian-blur": _each(_blur),
}
"""Name -> transform, for every one that needs no network; `make_transforms` adds the purifications."""
