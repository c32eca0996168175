"""FaceNet networks of facenet-pytorch (Inception-ResNet v1, 160x160) with the call of our own encoder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_dedim.models.blocks import check_crops

_INPUT_SIZE = 160


class FaceNetEncoder(nn.Module):
    """Map aligned face crops to unit embeddings with an Inception-ResNet v1.

    The crop is enlarged to 160x160 and scaled as facenet-pytorch's ``fixed_image_standardization`` does.
    The published weights were trained on a somewhat wider view than the ArcFace crop.

    Args:
        network: a module from ``[N, 3, 160, 160]`` to ``[N, D]``, such as ``InceptionResnetV1``.

    Example:
        >>> from facenet_pytorch import InceptionResnetV1
        >>> encoder = FaceNetEncoder(InceptionResnetV1()).eval()
        >>> encoder(torch.zeros(1, 3, 112, 112)).shape
        torch.Size([1, 512])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> FaceNetEncoder:
        """Load weights published for facenet-pytorch (for instance ``20180402-114759-vggface2.pt``).

        Args:
            path: a state dict of ``InceptionResnetV1``; a classifier head in it (``logits``) is left out.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no state dict of this network.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"path: there is no weights file {str(file)!r}.")
        from facenet_pytorch import InceptionResnetV1

        network = InceptionResnetV1()
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            state = {name: value for name, value in state.items() if not name.startswith("logits.")}
            network.load_state_dict(state)
        except (
            Exception
        ) as error:  # torch raises RuntimeError, UnpicklingError, EOFError, AttributeError, ...
            raise ValueError(
                f"{file}: expected a state dict of facenet-pytorch's InceptionResnetV1: {error}"
            ) from error
        return cls(network).eval().requires_grad_(False)

    @classmethod
    def from_cache(cls, pretrained: str = "vggface2") -> FaceNetEncoder:
        """Load facenet-pytorch's own weights; the package looks in torch's cache and downloads what is missing.

        Args:
            pretrained: "vggface2" or "casia-webface".

        Raises:
            ValueError: the weights are not there and cannot be fetched.
        """
        from facenet_pytorch import InceptionResnetV1

        try:
            network = InceptionResnetV1(pretrained=pretrained)
        except Exception as error:  # requests, http and torch each raise their own
            raise ValueError(
                f"facenet: the weights {pretrained!r} of facenet-pytorch are not in torch's cache and could not be "
                f"fetched ({error}); download them by hand and give NAME=FILE.pt."
            ) from error
        return cls(network).eval().requires_grad_(False)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            Unit vectors ``[N, D]`` float32.

        Raises:
            ValueError: the crops have another shape.
        """
        check_crops(crops)
        size = (_INPUT_SIZE, _INPUT_SIZE)
        faces = nn.functional.interpolate(crops, size=size, mode="bilinear", align_corners=False)
        embeddings: Tensor = self.network(faces * (127.5 / 128))  # (pixel - 127.5) / 128
        return nn.functional.normalize(embeddings.float())
