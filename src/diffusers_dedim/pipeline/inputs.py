"""From what a user hands to the pipeline to uint8 pixels, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusers_dedim.faces import Face
from diffusers_dedim.images.files import photo_from_image
from diffusers_dedim.images.modes import join_rgb_alpha

if TYPE_CHECKING:
    import torch


def generators(seed: int | None, names: Sequence[str]) -> list[torch.Generator] | None:
    """One generator a photo, from the seed and its name: neither the batch nor a resume changes a result."""
    if seed is None:
        return None
    import torch  # heavy, and not needed without a seed

    def derived(name: str) -> int:
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:7], "big")

    return [torch.Generator("cpu").manual_seed(derived(name)) for name in names]


PhotoInput = Image.Image | NDArray[Any] | Tensor
OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True, eq=False)
class BesidePixels:
    """What a PIL image has beside its RGB pixels; arrays and tensors have nothing.

    Attributes:
        alpha: uint8 ``[H, W]`` in [0, 255], or None.
        icc_profile: colour profile the RGB pixels are in, or None (taken as sRGB).
    """

    alpha: NDArray[np.uint8] | None = None
    icc_profile: bytes | None = None


NOTHING_BESIDE = BesidePixels()


def to_pixel_list(image: PhotoInput | Sequence[PhotoInput]) -> list[NDArray[np.uint8]]:
    """The first part of `take_photos`: uint8 RGB arrays ``[H, W, 3]``.

    Raises:
        ValueError, TypeError: as `take_photos`.

    Example:
        >>> [pixels.shape for pixels in to_pixel_list(torch.zeros(2, 3, 10, 20))]
        [(10, 20, 3), (10, 20, 3)]
    """
    return take_photos(image)[0]


def take_photos(
    image: PhotoInput | Sequence[PhotoInput],
) -> tuple[list[NDArray[np.uint8]], list[BesidePixels]]:
    """Turn a photo, a batch or a list of photos into uint8 RGB arrays ``[H, W, 3]``; never resized or clipped.

    Returns:
        The arrays, and what each photo has beside them, for `from_pixels`.

    Raises:
        ValueError: the list is empty, or an array or tensor has another shape, type or range.
        TypeError: an item is neither image, array nor tensor.

    Example:
        >>> _, (beside,) = take_photos(Image.new("RGBA", (20, 10)))
        >>> beside.alpha.shape
        (10, 20)
    """
    items: list[Any]
    if isinstance(image, (Tensor, np.ndarray)):
        items = list(image) if image.ndim == 4 else [image]
    else:
        items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items:
        raise ValueError("image: the list is empty; give at least one photo.")
    taken = [_take(item) for item in items]
    return [pixels for pixels, _ in taken], [beside for _, beside in taken]


def _take(item: Any) -> tuple[NDArray[np.uint8], BesidePixels]:
    if isinstance(item, Image.Image):
        photo = photo_from_image(item)
        # a profile of a grey photo describes one channel, and three come out
        return photo.pixels, BesidePixels(photo.alpha, None if photo.grey else photo.icc_profile)
    if isinstance(item, np.ndarray):
        return _array_to_pixels(item), NOTHING_BESIDE
    if isinstance(item, Tensor):
        return _tensor_to_pixels(item), NOTHING_BESIDE
    raise TypeError(
        f"image: expected PIL images, numpy arrays or torch tensors, got {type(item).__name__}; "
        "open a file with PIL.Image.open or diffusers_dedim.images.files.read_photo."
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


def from_pixels(pixels: NDArray[np.uint8], output_type: str, beside: BesidePixels = NOTHING_BESIDE) -> Any:
    """Turn uint8 RGB ``[H, W, 3]`` into the asked type.

    Args:
        pixels: of a photo.
        output_type: "pil" (RGB, or RGBA where there is an alpha; the profile in ``info["icc_profile"]``), "np" (as
            is) or "pt" (``[3, H, W]`` in [-1, 1]).
        beside: what the photo came with beside its pixels.
    """
    if output_type == "pil":
        image = join_rgb_alpha(pixels, beside.alpha, grey=False)
        if beside.icc_profile is not None:
            image.info["icc_profile"] = beside.icc_profile
        return image
    if output_type == "np":
        return pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def photo_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator | None]:
    """One generator a photo; a single one serves all photos in turn.

    Raises:
        ValueError: the list has another length than there are photos.
        TypeError: it is neither a generator nor a list of them.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise TypeError(
            f"generator: expected a torch.Generator or a list of them, got {type(generator).__name__}; for a "
            "seed write torch.Generator().manual_seed(seed)."
        )
    if len(generator) != count:
        raise ValueError(f"generator: expected one, or {count} (one a photo), got {len(generator)}.")
    return list(generator)


def child_generator(parent: torch.Generator | None) -> torch.Generator:
    """Seed a CPU generator from ``parent`` (from torch's global one if None)."""
    device = parent.device if parent is not None else "cpu"
    seed = torch.randint(2**62, (1,), generator=parent, device=device).item()
    return torch.Generator().manual_seed(int(seed))


def faces_of_photos(faces: Sequence[Any], count: int) -> list[Sequence[Face] | None]:
    """The faces that a user gives, photo by photo.

    Args:
        faces: `Face` objects for one photo, or a list of them a photo.
        count: number of photos.

    Raises:
        TypeError: something in it is no `Face`.
        ValueError: there is not one list for each photo.

    Example:
        >>> faces_of_photos([[], []], 2)
        [[], []]
    """
    lists = [faces] if count == 1 and all(isinstance(face, Face) for face in faces) else list(faces)
    if not all(isinstance(each, Sequence) and all(isinstance(face, Face) for face in each) for each in lists):
        raise TypeError(
            "faces: expected diffusers_dedim.faces.Face objects, as detect_faces returns them: a list for one photo, "
            "or a list of lists, one a photo."
        )
    if len(lists) != count:
        raise ValueError(f"faces: expected a list for each of the {count} photos, got {len(lists)}.")
    return lists
