"""Bring a face to the 112 x 112 ArcFace template, and the affine resampling both ways share."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diffusers_dedim.faces.types import AlignedFace, Face, check_photo
from diffusers_dedim.models.blocks import CROP_SIZE

# Left eye, right eye, nose, left and right mouth corner in crop px (InsightFace's arcface_dst).
ARCFACE_TEMPLATE: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
ARCFACE_TEMPLATE.setflags(write=False)


def estimate_similarity(src: NDArray[np.float64], dst: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the rotation, uniform scale and shift that bring ``src`` nearest to ``dst`` (least squares).

    In complex numbers a similarity without mirroring is w = a z + b, so the least-squares a is one
    division; it equals Umeyama (1991) in the plane.

    Args:
        src: ``[K, 2]`` x then y, K >= 2.
        dst: ``[K, 2]``, the same points where they should go.

    Returns:
        ``[2, 3]`` float64 matrix M with ``dst ~ M @ (x, y, 1)``.

    Raises:
        ValueError: shapes differ or are not ``[K, 2]``, a value is nan or inf, or the points fix no scale
            (all in one place).

    Example:
        >>> estimate_similarity(np.array([[0.0, 0], [1, 0]]), np.array([[2.0, 3], [4, 3]])).round(6)
        array([[ 2., -0.,  2.],
               [ 0.,  2.,  3.]])
    """
    source, target = _check_points("src", src), _check_points("dst", dst)
    if source.shape != target.shape:
        raise ValueError(
            f"dst: expected as many points as src ({len(source)}), got {len(target)}; pair them one to one."
        )
    z = source @ np.array([1, 1j])
    w = target @ np.array([1, 1j])
    z_spread, w_spread = z - z.mean(), w - w.mean()
    spread = float((abs(z_spread) ** 2).sum())
    a = complex((z_spread.conj() * w_spread).sum() / spread) if spread > 0 else 0j
    if spread <= 1e-18 * float((abs(z) ** 2).sum()) or abs(a) < 1e-12:
        raise ValueError(
            "src, dst: expected points that fix a rotation and a scale, got points that lie in one place "
            "or cancel out; check that the landmarks are those of one face."
        )
    b = complex(w.mean() - a * z.mean())
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(photo: NDArray[np.uint8], face: Face) -> AlignedFace:
    """Cut a face out of a photo, aligned to `ARCFACE_TEMPLATE`.

    Bilinear at about equal scale, as the training crops are; a face larger than the crop is averaged over
    the area of each crop pixel, so that no detail aliases. Beyond the photo its edge is repeated.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB.
        face: its landmarks in photo px.

    Returns:
        The crop, ``[3, 112, 112]`` float32 RGB in [-1, 1], and the transform photo px -> crop px.

    Raises:
        TypeError: the photo is not a uint8 array.
        ValueError: the photo has another shape, the landmarks lie in one place, or the whole face lies
            outside the photo.

    Example:
        >>> photo = np.full((200, 200, 3), 255, dtype=np.uint8)
        >>> face = Face((10.0, 10.0, 122.0, 122.0), ARCFACE_TEMPLATE + 10, 1.0)
        >>> align_face(photo, face).crop.shape
        torch.Size([3, 112, 112])
    """
    check_photo(photo)
    to_crop = estimate_similarity(face.landmarks, ARCFACE_TEMPLATE)
    to_photo = invert(to_crop)
    photo_per_crop = similarity_scale(to_photo)
    # First shrink by a whole factor (cheap), leaving 2 to 4 px a crop px for the average below.
    reduce = max(1, int(photo_per_crop / 2))
    corners = np.array([[-0.5, -0.5], [CROP_SIZE - 0.5, CROP_SIZE - 0.5]])
    x0, y0, x1, y1 = photo_region(to_photo, corners, photo.shape, margin=2 * reduce + 2)
    if x0 >= x1 or y0 >= y1:
        height, width = photo.shape[:2]
        raise ValueError(
            f"face: expected landmarks inside the photo of {width}x{height} px, got a face whose box "
            f"{tuple(round(v, 1) for v in face.box)} lies outside; was it found in another photo?"
        )
    source = _shrink(photo[y0:y1, x0:x1], reduce)
    to_region = to_photo.copy()  # crop px -> px of the reduced region; half a pixel keeps centres on centres
    to_region[:, 2] -= (x0, y0)
    to_region /= reduce
    to_region[:, 2] += 0.5 / reduce - 0.5
    samples = max(1, round(photo_per_crop / reduce))
    crop = warp(source, to_region, (CROP_SIZE, CROP_SIZE), "bilinear", "border", samples)
    return AlignedFace(face=face, crop=(crop / 127.5 - 1).clamp(-1, 1), to_crop=to_crop)


def whole_crop(photo: NDArray[np.uint8]) -> AlignedFace:
    """Treat a 112x112 image as an aligned crop: the transform between photo and crop is the identity.

    Args:
        photo: ``[112, 112, 3]`` uint8 RGB.

    Raises:
        ValueError: the image has another size.
    """
    check_photo(photo)
    if photo.shape[:2] != (CROP_SIZE, CROP_SIZE):
        raise ValueError(
            f"image: aligned=True expects {CROP_SIZE}x{CROP_SIZE} crops, got {photo.shape[1]}x{photo.shape[0]}; "
            "leave aligned=False for photos."
        )
    face = Face((0.0, 0.0, float(CROP_SIZE), float(CROP_SIZE)), ARCFACE_TEMPLATE, 1.0)
    return align_face(photo, face)


def inside_photo(aligned: AlignedFace, shape: tuple[int, ...]) -> Tensor:
    """Mark the crop pixels that the photo reaches; the others repeat its edge and go nowhere when pasted back.

    Args:
        aligned: from `align_face`.
        shape: of the photo it was cut from, ``(H, W, ...)``.

    Returns:
        ``[1, 112, 112]`` float32: 1 = the centre of the pixel lies on the photo, 0 = beyond its edge.

    Example:
        >>> face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE - [0, 20], 1.0)  # cut off at the top
        >>> photo = np.zeros((112, 112, 3), dtype=np.uint8)
        >>> inside_photo(align_face(photo, face), photo.shape).sum(dim=(0, 2))[18:22].tolist()
        [0.0, 0.0, 112.0, 112.0]
    """
    (a, b, c), (d, e, f) = invert(aligned.to_crop)
    rows, columns = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    limit = 0.5 + 1e-6  # a photo ends half a pixel beyond its last centres; rounding of the transform
    inside = (x >= -limit) & (x <= shape[1] - 1 + limit) & (y >= -limit) & (y <= shape[0] - 1 + limit)
    return torch.from_numpy(inside[None].astype(np.float32))


def warp(
    source: Tensor,
    to_source: NDArray[np.float64],
    shape: tuple[int, int],
    mode: str,
    padding: str,
    samples: int = 1,
) -> Tensor:
    """Resample by an affine map, averaging ``samples`` x ``samples`` points in each output pixel.

    Args:
        source: ``[C, h, w]`` float32.
        to_source: ``[2, 3]``, output px -> source px (pixel centres at whole numbers).
        shape: (height, width) of the output, px.
        mode: "bilinear" or "bicubic".
        padding: "border" (repeat the edge) or "zeros".
        samples: points along each side of an output pixel; 1 = its centre only.

    Returns:
        ``[C, height, width]`` float32.
    """
    # float64 until normalised: positions in a 24 MP photo keep 1e-4 px
    rows, columns = (_sample_positions(length, samples) for length in shape)
    (a, b, c), (d, e, f) = to_source
    x = a * columns[None, :] + (b * rows[:, None] + c)
    y = d * columns[None, :] + (e * rows[:, None] + f)
    height, width = source.shape[1:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = functional.grid_sample(
        source[None], grid.to(source)[None], mode=mode, padding_mode=padding, align_corners=False
    )
    return functional.avg_pool2d(sampled, samples)[0] if samples > 1 else sampled[0]


def invert(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert a ``[2, 3]`` affine matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -linear @ matrix[:, 2:]])


def similarity_scale(matrix: NDArray[np.float64]) -> float:
    """Output px per input px of a ``[2, 3]`` similarity."""
    return math.hypot(float(matrix[0, 0]), float(matrix[1, 0]))


def photo_region(
    to_photo: NDArray[np.float64], corners: NDArray[np.float64], shape: tuple[int, ...], margin: int
) -> tuple[int, int, int, int]:
    """Photo pixels x0 <= x < x1, y0 <= y < y1 around a rectangle of the crop, cut to the photo.

    Args:
        to_photo: ``[2, 3]``, crop px -> photo px.
        corners: ``[2, 2]``, top left and bottom right (x, y) of the rectangle, crop px.
        shape: of the photo, ``(H, W, ...)``.
        margin: px to add on every side.
    """
    (left, top), (right, bottom) = corners
    rectangle = np.array([[left, top, 1], [right, top, 1], [left, bottom, 1], [right, bottom, 1]])
    mapped = rectangle @ to_photo.T
    low = np.floor(mapped.min(axis=0)).astype(int) - margin
    high = np.ceil(mapped.max(axis=0)).astype(int) + margin + 1
    height, width = shape[:2]
    return max(0, int(low[0])), max(0, int(low[1])), min(width, int(high[0])), min(height, int(high[1]))


def _shrink(pixels: NDArray[np.uint8], factor: int) -> Tensor:
    """Average whole blocks of factor x factor pixels; [h, w, 3] uint8 -> [3, h / factor, w / factor].

    In float (PIL's ``reduce`` rounds halves up, an eighth of a level brighter), one channel at a time so
    that a face filling 24 MP needs 100 MB rather than 300.
    """
    channels = []
    for index in range(pixels.shape[2]):
        channel = torch.from_numpy(np.ascontiguousarray(pixels[..., index])).float()[None]
        channels.append(functional.avg_pool2d(channel, factor, ceil_mode=True) if factor > 1 else channel)
    return torch.cat(channels)


def _sample_positions(length: int, samples: int) -> Tensor:
    """Positions of the samples along one side, output px."""
    return (torch.arange(length * samples, dtype=torch.float64) + 0.5) / samples - 0.5


def _check_points(name: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 2:
        raise ValueError(f"{name}: expected at least two points of shape [K, 2], got {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite coordinates, got nan or inf.")
    return array
