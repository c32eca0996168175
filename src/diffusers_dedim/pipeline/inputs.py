"""From what a user hands to the pipeline to uint8 pixels, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
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
_ROUNDING = 1e-3  # so far beyond [0, 1] a value may be one that was computed to be 0 or 1


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

    Args:
        image: PIL images, arrays ``[H, W, 3]`` or ``[H, W]`` (uint8, or floats in [0, 1]), or float tensors
            ``[3, H, W]`` in [0, 1]; arrays and tensors with one more axis in front are batches.

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
        return photo.pixels, BesidePixels(photo.alpha, None if photo.one_channel else photo.icc_profile)
    if isinstance(item, np.ndarray):
        return _array_to_pixels(item), NOTHING_BESIDE
    if isinstance(item, Tensor):
        return _tensor_to_pixels(item), NOTHING_BESIDE
    raise TypeError(
        f"image: expected PIL images, numpy arrays or torch tensors, got {type(item).__name__}; "
        "open a file with PIL.Image.open or diffusers_dedim.images.files.read_photo."
    )


def _array_to_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    whole = array.dtype == np.uint8
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.size == 0:
        raise ValueError(
            f"image: expected an array [H, W, 3] (RGB) or [H, W] (grey), got {array.dtype} {list(array.shape)}; "
            "convert it first."
        )
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            "image: expected an array of uint8 in [0, 255] or of floats in [0, 1], got "
            f"{array.dtype} {list(array.shape)}; convert it first."
        )
    pixels = array if whole else _to_bytes(array)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2))


def _tensor_to_pixels(tensor: Tensor) -> NDArray[np.uint8]:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ValueError(
            f"image: expected a float tensor [3, H, W] in [0, 1], got {tensor.dtype} {list(tensor.shape)}."
        )
    return np.ascontiguousarray(_to_bytes(VaeImageProcessor.pt_to_numpy(tensor.detach()[None])[0]))


def _to_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """[0, 1] to 0..255, as diffusers does it for its own pipelines; what has another range is not guessed at."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also refuses nan
        cure = "map them there, or clip them"
        if -1 - _ROUNDING <= low < 0 and high <= 1 + _ROUNDING:
            cure = "give (image + 1) / 2 of one in [-1, 1]"
        elif low >= 0 and 2 < high <= 255:
            cure = "give image / 255 of one in [0, 255]"
        raise ValueError(f"image: expected float values in [0, 1], got {low:.3g} to {high:.3g}; {cure}.")
    pixels: NDArray[np.uint8] = np.clip(values * 255, 0, 255).round().astype(np.uint8)
    return pixels


def from_pixels(pixels: NDArray[np.uint8], output_type: str, beside: BesidePixels = NOTHING_BESIDE) -> Any:
    """Turn uint8 RGB ``[H, W, 3]`` into the asked type.

    Args:
        pixels: of a photo.
        output_type: "pil" (RGB, or RGBA where there is an alpha; the profile in ``info["icc_profile"]``), "np" (float32
            ``[H, W, 3]`` in [0, 1]) or "pt" (float32 ``[3, H, W]`` in [0, 1]), as diffusers' own pipelines.
        beside: what the photo came with beside its pixels.
    """
    if output_type == "pil":
        image = join_rgb_alpha(pixels, beside.alpha, grey=False)
        if beside.icc_profile is not None:
            image.info["icc_profile"] = beside.icc_profile
        return image
    (values,) = VaeImageProcessor.pil_to_numpy(Image.fromarray(pixels))
    return values if output_type == "np" else VaeImageProcessor.numpy_to_pt(values[None])[0]


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
