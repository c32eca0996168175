"""A whole evaluation without networks: methods that swap colours, recognisers that see colours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import toy_experiment as toy
from toys import ToyLandmarker

from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.data import read_experiment
from diffusers_dedim.evaluation.experiment import Session
from diffusers_dedim.evaluation.measure import EvaluationSettings

PEOPLE = ["red", "green", "blue"]


class ToyPipe(toy.SwapColours):
    """With what `Session` reads of a pipeline."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.landmarker = ToyLandmarker()


class Methods:
    """``make_method`` that counts; a method called "broken" fails from its second piece on."""

    def __init__(self, broken_from: int = 10**9) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.broken_from = broken_from

    def __call__(self, name: str, pipe: Any, *, seed: int = 0, first: int = 0, targets: Any = None) -> Any:
        if name not in ("original", "swap", "noise"):
            raise ValueError(f"method: expected 'original', 'swap' or 'noise', got {name!r}.")

        def protect(photos: list[np.ndarray]) -> SimpleNamespace:
            if len(self.calls) >= self.broken_from:
                raise DeDiMError("the disk is on fire.")
            self.calls.append((name, first, len(photos)))
            noise = np.random.default_rng((seed, first)).integers(-3, 4, photos[0].shape)
            made = {
                "original": lambda photo: photo,
                "swap": lambda photo: np.roll(photo, 1, axis=2),
                "noise": lambda photo: np.clip(photo + noise, 0, 255).astype(np.uint8),
            }
            face = SimpleNamespace(rounds=2, unet_calls=20, reached_threshold=name == "swap")
            faces = [] if name == "original" else [face] * len(photos)
            return SimpleNamespace(images=[made[name](photo) for photo in photos], faces=faces)

        return protect


def make_session(folder: Path, methods: Methods, names: tuple[str, ...], **changes: Any) -> Session:
    """Three probes, three gallery photos, one black box."""
    data = folder / "e.parquet"
    if not data.exists():
        toy.write_experiment(data, PEOPLE, PEOPLE)
    settings: dict[str, Any] = {
        "pipe": ToyPipe(),
        "experiment": read_experiment(data),
        "source": "e.parquet",
        "settings": EvaluationSettings(
            names,
            seed=changes.pop("seed", 0),
            chunk=changes.pop("chunk", 2),
            gallery=changes.pop("gallery", "unprotected"),
        ),
        "make_method": methods,
        "detector": toy.detect,
        "black_boxes": [Recogniser("other", toy.MeanColour(), "other")],
        "command": "dedim evaluate ...",
    }
    return Session(**{**settings, **changes})
