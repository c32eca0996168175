"""What an attacker may do to protected photos on purpose, beside what happens to every photo (`robustness`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.evaluation.robustness import (
    PURIFY_TIMESTEPS,
    TRANSFORMS,
    Transform,
    change_faces,
    make_transforms,
)
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.training.checkpoint import load_network
from diffusers_dedim.training.purifier import PurifierNet

PURIFIER = "purifier"
_AFTERWARDS = "jpeg-75"  # of the purified photo: how it is stored
_FOLLOWED = f"purify-{PURIFY_TIMESTEPS[1]}"


def make_attacks(pipe: Any, *, seed: int = 0, purifier: str | Path | None = None) -> dict[str, Transform]:
    """All that `dedim evaluate --robustness` does to photos: `make_transforms`, and purification before a JPEG.

    Args:
        pipe: a `DeDiMPipeline`.
        seed: of the purification's noise.
        purifier: folder of `dedim train purifier`; its network is one more purifier.

    Returns:
        Name -> transform: those of `make_transforms`, ``purify-100+jpeg-75``, and with a folder ``purifier`` and
        ``purifier+jpeg-75``.

    Raises:
        ValueError: the folder holds no `PurifierNet`.

    Example:
        >>> attacks = make_attacks(pipe, purifier="runs/purifier")  # doctest: +SKIP
        >>> list(attacks)[-2:]  # doctest: +SKIP
        ['purifier', 'purifier+jpeg-75']
    """
    made = make_transforms(pipe, seed=seed)
    made[f"{_FOLLOWED}+{_AFTERWARDS}"] = Chain((made[_FOLLOWED], TRANSFORMS[_AFTERWARDS]))
    if purifier is not None:
        made[PURIFIER] = load_purifier(purifier, pipe)
        made[f"{PURIFIER}+{_AFTERWARDS}"] = Chain((made[PURIFIER], TRANSFORMS[_AFTERWARDS]))
    return made


@dataclass(frozen=True, eq=False)
class Chain:
    """One transform after another.

    Attributes:
        steps: the first is done first.
    """

    steps: tuple[Transform, ...]

    def __call__(self, photos: list[PixelArray]) -> list[PixelArray]:
        """Photos of the same sizes."""
        for step in self.steps:
            photos = step(photos)
        return photos

    @property
    def fingerprint(self) -> str:
        """What decides its results besides the code."""
        return " ".join(str(getattr(step, "fingerprint", "")) for step in self.steps)


@dataclass(frozen=True, eq=False)
class NetworkPurifier:
    """An attacker with a network of his own: every face is restored by it and put back into its photo.

    Attributes:
        network: crops ``[N, 3, 112, 112]`` in [-1, 1] -> crops, such as a `PurifierNet`.
        pipe: its detector finds the faces, on its device they are restored.
    """

    network: torch.nn.Module
    pipe: Any

    def __call__(self, photos: list[PixelArray]) -> list[PixelArray]:
        """Photos of the same sizes; one without a face comes back as it is."""
        return [change_faces(self.pipe.face_detector, photo, self._restore) for photo in photos]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the network."""
        return Recogniser.of(PURIFIER, self.network).fingerprint

    @torch.no_grad()
    def _restore(self, crops: Tensor) -> Tensor:
        restored: Tensor = self.network(crops.to(self.pipe.device)).clamp(-1, 1).to(crops.device)
        return restored


def load_purifier(folder: str | Path, pipe: Any) -> NetworkPurifier:
    """The network that `dedim train purifier` left in ``folder``, or in its ``model``, as a transform.

    Args:
        folder: the training's output folder, or the model's.
        pipe: a `DeDiMPipeline`: how faces are found.

    Raises:
        ValueError: there is no such network.
    """
    model = Path(folder) / "model"
    network = load_network("purifier", model if model.is_dir() else folder, PurifierNet)
    return NetworkPurifier(network.to(pipe.device).eval().requires_grad_(False), pipe)
