"""Carry the change made to an aligned crop back into the photo, at the photo's own resolution."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.faces.align import invert, photo_region, similarity_scale, warp
from diffusers_dedim.faces.types import AlignedFace, check_photo
from diffusers_dedim.models.blocks import CROP_SIZE

# Sample points at a time, so that a face of thousands of px takes tens of MB, not gigabytes.
_SAMPLES_AT_A_TIME = 1 << 20
# A face of 10 px has 11 crop px a photo px; more points than that change nothing one can see.
_MAX_SAMPLES = 16


def paste_back(
    photo: NDArray[np.uint8], aligned: AlignedFace, protected_crop: Tensor, mask: Tensor
) -> NDArray[np.uint8]:
    """Add the change of a crop to the photo it was cut from.

    Pasting the crop itself would blur a face larger than 112 px. Instead ``protected_crop - aligned.crop``
    is mapped through the inverse of ``aligned.to_crop`` (bicubic; averaged over each photo pixel where the
    face is smaller than the crop), multiplied by the mask mapped likewise (bilinear), added to the original
    pixels and rounded. Where the mapped mask is 0 the photo keeps its bits; no change gives the photo back.

    The mask multiplies the change. A crop that was blended with a feathered mask already carries that
    feather: pass the mask's support (``(mask > 0).float()``) then, or it is applied twice.

    Several faces: call once per face, feeding each result to the next; every ``aligned`` may come from the
    untouched photo.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB; not modified.
        aligned: from `align_face` on a photo of this size.
        protected_crop: ``[3, 112, 112]`` RGB in [-1, 1], any float type and device.
        mask: ``[1, 112, 112]`` in [0, 1]; 1 = take the change, 0 = keep the photo.

    Returns:
        A new ``[H, W, 3]`` uint8 array.

    Raises:
        TypeError: the photo is not a uint8 array.
        ValueError: a shape differs, the crop is not finite, or the mask leaves 0..1.

    Example:
        >>> import numpy as np, torch
        >>> from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face, align_face
        >>> photo = np.full((200, 200, 3), 100, dtype=np.uint8)
        >>> aligned = align_face(photo, Face((10.0, 10.0, 122.0, 122.0), ARCFACE_TEMPLATE + 10, 1.0))
        >>> changed = paste_back(photo, aligned, aligned.crop + 20 / 127.5, torch.ones(1, 112, 112))
        >>> changed[66, 66].tolist(), changed[150, 150].tolist()
        ([120, 120, 120], [100, 100, 100])
    """
    check_photo(photo)
    gate, change = _check_crops(aligned, protected_crop, mask)
    result: NDArray[np.uint8] = photo.copy()
    support = gate[0].nonzero()  # [n, 2] y, x
    if len(support) == 0 or not change.any():
        return result
    # the bilinear mask reaches one crop px beyond its support
    corners = torch.stack([support.amin(dim=0) - 1, support.amax(dim=0) + 1]).flip(1).double().numpy()
    x0, y0, x1, y1 = photo_region(invert(aligned.to_crop), corners, photo.shape, margin=1)
    if x0 >= x1 or y0 >= y1:
        return result
    samples = min(_MAX_SAMPLES, max(1, round(similarity_scale(aligned.to_crop))))
    step = max(1, _SAMPLES_AT_A_TIME // ((x1 - x0) * samples**2))
    for top in range(y0, y1, step):
        bottom = min(top + step, y1)
        to_crop = aligned.to_crop.copy()  # px of this band -> crop px
        to_crop[:, 2] += to_crop[:, :2] @ (x0, top)
        shape = (bottom - top, x1 - x0)
        weight = warp(gate, to_crop, shape, "bilinear", "zeros", samples)
        delta = warp(change, to_crop, shape, "bicubic", "border", samples)
        _add(result[top:bottom, x0:x1], weight * delta)
    return result


def _add(pixels: NDArray[np.uint8], delta: Tensor) -> None:
    """Add ``delta`` [3, h, w] (0..255 scale) to ``pixels`` [h, w, 3] in place, rounded, cut to 0..255."""
    total = torch.from_numpy(pixels).float() + delta.permute(1, 2, 0)
    pixels[:] = total.round().clamp(0, 255).to(torch.uint8).numpy()


def _check_crops(aligned: AlignedFace, protected_crop: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and change on the CPU in float32, the change in steps of the photo's 0..255."""
    for name, tensor, channels in (("protected_crop", protected_crop, 3), ("mask", mask, 1)):
        if tensor.shape != (channels, CROP_SIZE, CROP_SIZE):
            raise ValueError(
                f"{name}: expected shape [{channels}, {CROP_SIZE}, {CROP_SIZE}], got {list(tensor.shape)}; "
                "pass one face at a time, without a batch axis."
            )
    gate = mask.detach().to("cpu", torch.float32)
    if not ((gate >= 0) & (gate <= 1)).all():  # nan fails too
        raise ValueError(
            "mask: expected values in [0, 1] (1 = take the change), got values outside or nan; "
            "build it with landmark_mask."
        )
    change = (protected_crop.detach().to("cpu", torch.float32) - aligned.crop.detach().cpu()) * 127.5
    if not torch.isfinite(change).all():
        raise ValueError(
            "protected_crop: expected finite values, got nan or inf; sampling diverged, lower guidance_scale."
        )
    return gate, change
