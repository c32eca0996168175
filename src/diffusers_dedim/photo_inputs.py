"""From what a user hands to the pipeline to uint8 pixels, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusers_dedim.image_io import photo_from_image

PhotoInput = Image.Image | NDArray[Any] | Tensor
OUTPUT_TYPES = ("pil", "np", "pt")


def to_pixel_list(image: PhotoInput | Sequence[PhotoInput]) -> list[NDArray[np.uint8]]:
    """Turn a photo, a batch or a list of photos into uint8 RGB arrays ``[H, W, 3]``; never resized or clipped.

    Raises:
        ValueError: the list is empty, or an array or tensor has another shape, type or range.
        TypeError: an item is neither image, array nor tensor.

    Example:
        >>> [pixels.shape for pixels in to_pixel_list(torch.zeros(2, 3, 10, 20))]
        [(10, 20, 3), (10, 20, 3)]
    """
    items: list[Any]
    if isinstance(image, (Tensor, np.ndarray)):
        items = list(image) if image.ndim == 4 else [image]
    else:
        items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise ValueError("image: the list is empty; give at least one photo.")
    return [_to_pixels(item) for item in items]


def _to_pixels(item: Any) -> NDArray[np.uint8]:
    if isinstance(item, Image.Image):
        return photo_from_image(item).pixels
    if isinstance(item, np.ndarray):
        return _array_to_pixels(item)
    if isinstance(item, Tensor):
        return _tensor_to_pixels(item)
    raise TypeError(
        f"image: expected PIL images, numpy arrays or torch tensors, got {type(item).__name__}; "
        "open a file with PIL.Image.open or diffusers_dedim.image_io.read_photo."
    )


def _array_to_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(
            f"image: expected an array uint8 [H, W, 3] (RGB) or [H, W] (grey), got {array.dtype} "
            f"{list(array.shape)}; convert it first."
        )
    return np.ascontiguousarray(array if array.ndim == 3 else np.stack([array] * 3, axis=2))


def _tensor_to_pixels(tensor: Tensor) -> NDArray[np.uint8]:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ValueError(
            f"image: expected a float tensor [3, H, W] in [-1, 1], got {tensor.dtype} {list(tensor.shape)}."
        )
    tensor = tensor.detach()
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= -1.001 and high <= 1.001):  # also refuses nan; a thousandth is bf16 rounding
        raise ValueError(f"image: expected tensor values in [-1, 1], got {low:.3g} to {high:.3g}.")
    pixels = ((tensor.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def from_pixels(pixels: NDArray[np.uint8], output_type: str) -> Any:
    """Turn uint8 RGB ``[H, W, 3]`` into the asked type: "pil", "np" (as is) or "pt" (``[3, H, W]`` in [-1, 1])."""
    if output_type == "pil":
        return Image.fromarray(pixels)
    if output_type == "np":
        return pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
