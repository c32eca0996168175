"""A pipeline that answers like `DeDiMPipeline` without networks: it brightens the middle of each photo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.pipeline.output import FaceResult
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult

NO_FACE = (1, 1, 1)
"""A photo whose first pixel has this colour shows no face, and so on."""
TOO_SMALL = (2, 2, 2)
NOT_REACHED = (3, 3, 3)
CRASH = (4, 4, 4)
UNCHANGED = (5, 5, 5)


@dataclass
class FakePipeline:
    """Streams like `DeDiMPipeline`, some photos at a time; ``calls`` lists the number of photos of each call."""

    calls: list[int] = field(default_factory=list)
    keywords: list[dict[str, Any]] = field(default_factory=list)
    device = torch.device("cpu")

    def stream(
        self, photos: Iterable[Any], preset: str = "fast", *, batch_size: int = 16, **keywords: Any
    ) -> Iterator[Any]:
        photos = iter(photos)
        while batch := list(islice(photos, batch_size)):
            yield from (item for item in batch if not isinstance(item, StreamPhoto))
            if taken := [item for item in batch if isinstance(item, StreamPhoto)]:
                yield from self(taken, preset=preset, **keywords)

    def __call__(self, photos: list[StreamPhoto], **keywords: Any) -> list[StreamResult]:
        self.calls.append(len(photos))
        self.keywords.append({**keywords, "generator": [photo.generator for photo in photos]})
        return [self._result(photo, keywords["small_faces"]) for photo in photos]

    def _result(self, photo: StreamPhoto, small_faces: str) -> StreamResult:
        try:
            pixels, faces = self._protect(photo.pixels.copy(), 0, small_faces)
        except Exception as error:
            return StreamResult(photo, photo.pixels, error=error)
        return StreamResult(photo, pixels, tuple(faces))

    def _protect(self, pixels: np.ndarray, index: int, small_faces: str) -> tuple[np.ndarray, list[Any]]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        flag = tuple(int(value) for value in pixels[0, 0])
        if flag == NO_FACE:
            raise NoFaceError(f"image {index}: no face was found, so nothing was protected.")
        if flag == TOO_SMALL and small_faces == "skip":
            return pixels, []
        if flag == TOO_SMALL:
            raise FaceTooSmallError(f"image {index}: a face is 20 px, and 40 px are needed.")
        if flag == CRASH:
            raise RuntimeError("out of memory")
        height, width = pixels.shape[:2]
        box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
        if flag != UNCHANGED:
            middle = (slice(box[1], box[3]), slice(box[0], box[2]))
            pixels[middle] = np.minimum(pixels[middle].astype(int) + 40, 255)
        return pixels, [_face(index, box, reached=flag != NOT_REACHED)]


def _face(index: int, box: tuple[int, ...], *, reached: bool) -> FaceResult:
    return FaceResult(
        image_index=index,
        box=box,
        landmarks=np.zeros((51, 2)),
        similarity_before=1.0,
        similarity=-0.1 if reached else 0.4,
        probability=0.45 if reached else 0.7,
        rounds=2,
        unet_calls=20,
        reached_threshold=reached,
    )


def photo_array(flag: tuple[int, int, int] = (90, 90, 90), size: tuple[int, int] = (48, 32)) -> np.ndarray:
    """A smooth colour photo (width, height) whose first pixels carry a flag."""
    width, height = size
    x, y = np.meshgrid(np.linspace(20, 200, width), np.linspace(30, 180, height))
    pixels = np.stack([x, y, (x + y) / 2], axis=2).round().astype(np.uint8)
    pixels[:8, :8] = flag
    return pixels
