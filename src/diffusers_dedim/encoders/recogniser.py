"""Recognisers by name, and one way to embed faces with any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.encoders.dlib import DlibEncoder
from diffusers_dedim.encoders.ensemble import EncoderEnsemble, FusedEncoder
from diffusers_dedim.encoders.facenet import FaceNetEncoder
from diffusers_dedim.encoders.onnx import OnnxEncoder
from diffusers_dedim.encoders.types import PhotoEncoder
from diffusers_dedim.faces import Face, align_face
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS


@dataclass(frozen=True)
class Recogniser:
    """A face recogniser as the experiment knows it.

    Attributes:
        name: key in the results.
        encoder: crops ``[N, 3, 112, 112]`` -> unit embeddings ``[N, D]``; a `PhotoEncoder` gets the photo.
        fingerprint: changes when the recogniser does; part of every cache key.
    """

    name: str
    encoder: nn.Module
    fingerprint: str

    @classmethod
    def of(cls, name: str, encoder: nn.Module) -> Recogniser:
        """Name an encoder; its fingerprint is its own, or a hash over class, sizes and weights."""
        own = getattr(encoder, "fingerprint", None)
        return cls(name, encoder, own if isinstance(own, str) else _hash_weights(encoder))


def load_recogniser(spec: str) -> Recogniser:
    """Load a recogniser from the words of a command line.

    Args:
        spec: ``dlib``; ``facenet`` (facenet-pytorch's VGGFace2 weights from torch's cache, else downloaded by
            that package); ``ours`` (the bundled guides as one, for runs that another recogniser guides);
            ``NAME=FILE.onnx``; ``NAME=FILE.pt`` (weights of facenet-pytorch's ``InceptionResnetV1``). Without
            ``NAME=`` the file's name without ending is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package is missing; names the command that installs it.
        ValueError: the spec has another form, or the file does not fit.

    Example:
        >>> load_recogniser("foamliu=weights/mobilefacenet_foamliu.onnx").name  # doctest: +SKIP
        'foamliu'
    """
    if spec in _NAMED:
        return Recogniser.of(spec, _NAMED[spec]())
    name, _, file = spec.rpartition("=")
    path = Path(file)
    name = name or path.stem
    if path.suffix == ".onnx":
        return Recogniser.of(name, OnnxEncoder(path))
    if path.suffix in (".pt", ".pth"):
        return Recogniser.of(name, FaceNetEncoder.from_file(path))
    raise ValueError(
        "recogniser: expected 'dlib', 'NAME=FILE.onnx' or 'NAME=FILE.pt' (facenet-pytorch; 'facenet' for the "
        f"weights that this package fetches, 'ours' for the bundled guides), got {spec!r}."
    )


def _bundled_encoder() -> nn.Module:
    """The guides of the package as one."""
    config = MobileFaceNet.load_config(BUNDLED_WEIGHTS, subfolder="face_encoder")
    kind = EncoderEnsemble if config["_class_name"] == EncoderEnsemble.__name__ else MobileFaceNet
    encoder = kind.from_pretrained(BUNDLED_WEIGHTS, subfolder="face_encoder")
    return FusedEncoder(encoder).eval().requires_grad_(False)


_NAMED: dict[str, Callable[[], nn.Module]] = {
    "dlib": DlibEncoder,
    "facenet": FaceNetEncoder.from_cache,
    "ours": _bundled_encoder,
}


@torch.no_grad()
def embed_faces(
    encoder: nn.Module, photos: Sequence[NDArray[np.uint8]], faces: Sequence[Face], batch_size: int = 32
) -> NDArray[np.float32]:
    """Embed one face of each photo, in the way the encoder wants it.

    Args:
        encoder: the recogniser; photos are aligned to 112x112 crops unless it is a `PhotoEncoder`.
        photos: uint8 RGB ``[H, W, 3]`` each.
        faces: the face to embed in each photo.
        batch_size: crops per call.

    Returns:
        Unit vectors ``[N, D]`` float32.

    Raises:
        ValueError: there are none, or not as many faces as photos.
    """
    if len(photos) != len(faces) or not photos:
        raise ValueError(f"faces: expected one for each photo, got {len(faces)} for {len(photos)} photo(s).")
    if isinstance(encoder, PhotoEncoder):
        rows = [encoder.embed_photo(photo, face) for photo, face in zip(photos, faces, strict=True)]
        return _to_array(torch.stack(rows))
    crops = torch.stack([align_face(photo, face).crop for photo, face in zip(photos, faces, strict=True)])
    parameter = next(encoder.parameters(), None)
    device = parameter.device if parameter is not None else crops.device
    return _to_array(torch.cat([encoder(piece.to(device)) for piece in torch.split(crops, batch_size)]))


def _to_array(embeddings: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = embeddings.float().cpu().numpy()
    return array


def _hash_weights(encoder: nn.Module) -> str:
    digest = hashlib.sha256(repr(encoder).encode())  # repr: class and sizes of every layer
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
