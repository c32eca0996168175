"""Who guides: recognisers by name as guides of a pipeline, and a pipeline's guides as recognisers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.encoders.ensemble import EncoderEnsemble
from diffusers_dedim.encoders.facenet import FaceNetEncoder
from diffusers_dedim.encoders.onnx import OnnxEncoder
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.pipeline.components import PlainModule, check_embeddings

OWN = "own"
FACENET = "facenet-vggface2"
WHITE = "white"
"""Name of the recogniser that guides, in every result; of several ``white1``, ``white2`` and so on."""


def name_guides(face_encoder: nn.Module) -> list[Recogniser]:
    """The guide as a recogniser, ``white``; of an ensemble its members, ``white1``, ``white2`` and so on."""
    guide = _unwrapped(face_encoder)
    if isinstance(guide, EncoderEnsemble):
        return [Recogniser.of(f"{WHITE}{place}", member) for place, member in enumerate(guide.encoders, 1)]
    return [Recogniser.of(WHITE, face_encoder)]


def is_guide(recogniser: str) -> bool:
    """Whether this is the name of one that guides (`name_guides`)."""
    return recogniser.removeprefix(WHITE).isdecimal() or recogniser == WHITE


def guided_by(pipe: Any, guides: Sequence[str | Path]) -> Any:
    """Return a pipeline of the same parts with another recogniser, or several at once (`EncoderEnsemble`).

    Args:
        pipe: a `DeDiMPipeline`.
        guides: for each ``own`` (those of the pipeline), ``facenet-vggface2`` (facenet-pytorch's weights, from its
            cache or downloaded by that package), or a file: ``NAME=FILE.onnx`` (converted to torch), ``NAME=FILE.pt``
            (facenet-pytorch's ``InceptionResnetV1``); ``NAME=`` may be left out.

    Returns:
        A new pipeline on the same device, without progress bars.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package is missing.
        ValueError: a file does not fit, no guide is named, or one cannot guide: no gradient flows through it, or its
            embeddings are not finite unit vectors.

    Example:
        >>> pipe = guided_by(pipe, ["own", "sface=face_recognition_sface.onnx"])  # doctest: +SKIP
    """
    if not guides:
        raise ValueError("guides: expected at least one, got none.")
    encoders: list[nn.Module] = []
    for guide in map(str, guides):
        encoders += _own_members(pipe) if guide == OWN else [_load(guide)]
    encoder = encoders[0] if len(encoders) == 1 else EncoderEnsemble(encoders)
    others = pipe.landmarker, pipe.visibility, pipe.discriminator
    guided = type(pipe)(pipe.unet, pipe.scheduler, encoder.to(pipe.device), *others)
    guided.face_detector = pipe.face_detector
    guided.set_progress_bar_config(disable=True)
    return guided


def check_guide(encoder: nn.Module, name: str) -> None:
    """Try a guide on two made-up crops, so that a wrong one is refused before any photo is read.

    Args:
        encoder: crops ``[N, 3, 112, 112]`` in [-1, 1] -> unit embeddings ``[N, D]``.
        name: for the message.

    Raises:
        ValueError: it takes no such crops, answers with something else, or has no gradient.
    """
    noise = torch.rand(2, 3, CROP_SIZE, CROP_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    crops = noise.requires_grad_()
    try:
        embeddings = encoder(crops)
        check_embeddings(embeddings, 2)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"guide {name!r}: it does not embed crops [N, 3, 112, 112] ({error})") from error
    gradient = None
    if embeddings.requires_grad:
        (gradient,) = torch.autograd.grad(embeddings[:, 0].sum(), crops, allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        raise ValueError(
            f"guide {name!r}: no finite gradient flows from its embeddings back to the crops, so it cannot guide."
        )


def _load(guide: str) -> nn.Module:
    name, _, file = guide.rpartition("=")
    path = Path(file)
    if guide == FACENET:
        encoder: nn.Module = FaceNetEncoder.from_cache()
    elif path.suffix == ".onnx":
        encoder = OnnxEncoder(path, differentiable=True)
    elif path.suffix in (".pt", ".pth"):
        encoder = FaceNetEncoder.from_file(path)
    else:
        raise ValueError(
            f"guide: expected {OWN!r}, {FACENET!r}, NAME=FILE.onnx or NAME=FILE.pt (facenet-pytorch), got {guide!r}."
        )
    encoder.eval().requires_grad_(False)
    check_guide(encoder, name or path.stem)
    return encoder


def _own_members(pipe: Any) -> list[nn.Module]:
    guide = _unwrapped(pipe.face_encoder)
    return list(guide.encoders) if isinstance(guide, EncoderEnsemble) else [pipe.face_encoder]


def _unwrapped(face_encoder: nn.Module) -> nn.Module:
    return face_encoder.module if isinstance(face_encoder, PlainModule) else face_encoder
