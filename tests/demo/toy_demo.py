"""The demo's actions over a pipeline without networks: real detection where asked, a toy recogniser, no weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from toys import ToyEncoder

from diffusers_dedim.demo.handlers import DemoHandlers
from diffusers_dedim.demo.protect import Protector
from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face
from diffusers_dedim.pipeline.output import FaceResult

STEPS = 10  # of the preset "fast"


def toy_face(x: float, y: float, side: float) -> Face:
    return Face((x, y, x + side, y + side), ARCFACE_TEMPLATE / 112 * side + (x, y), 0.99)


class MeanEncoder(ToyEncoder):
    """Tells faces apart by their brightness pattern: 1 for the same pixels, less for others."""

    fingerprint = "toy"

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return super().forward(crops - crops.mean((1, 2, 3), keepdim=True))


class BoxPipeline:
    """Inverts the middle of each chosen face; ``reached`` says what it claims, ``pause`` is a step's time."""

    def __init__(self, detector: Any, *, reached: bool = True, pause: float = 0.0, rounds: int = 1) -> None:
        self.face_encoder = MeanEncoder().eval().requires_grad_(False)
        self.detector, self.reached, self.pause, self.rounds = detector, reached, pause, rounds
        self.keywords: list[dict[str, Any]] = []

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, photos: list[Image.Image], **keywords: Any) -> SimpleNamespace:
        self.keywords.append(keywords)
        pixels = np.array(photos[0])
        faces = keywords["faces"]
        for step in range(STEPS * self.rounds if keywords["callback_on_step_end"] else 0):
            time.sleep(self.pause)
            keywords["callback_on_step_end"](self, step % STEPS, 0, {})
        for face in faces:
            x0, y0, x1, y1 = (max(0, round(edge)) for edge in face.box)
            if self.reached:
                pixels[y0:y1, x0:x1] = 255 - pixels[y0:y1, x0:x1]
            else:
                pixels[y0:y1, x0:x1] = np.minimum(pixels[y0:y1, x0:x1].astype(int) + 3, 255)
        return SimpleNamespace(
            images=[Image.fromarray(pixels)], faces=[_result(face, self.reached) for face in faces]
        )


def _result(face: Face, reached: bool) -> FaceResult:
    return FaceResult(
        image_index=0,
        box=face.box,
        landmarks=np.empty((0, 2)),
        similarity_before=1.0,
        similarity=-0.2 if reached else 0.7,
        probability=0.4 if reached else 0.85,
        rounds=1,
        unet_calls=STEPS,
        reached_threshold=reached,
    )


def toy_handlers(detector: Any, *, unseen: Any = None, keen: Any = None, **pipeline: Any) -> DemoHandlers:
    return DemoHandlers(Protector(BoxPipeline(detector, **pipeline), unseen), detector, keen or detector)


@contextmanager
def launched(handlers: DemoHandlers) -> Iterator[tuple[Any, Any]]:
    """The page as launched (Gradio checks paths, its queue runs), and a client that calls it without a socket."""
    from gradio.routes import App
    from starlette.testclient import TestClient

    from diffusers_dedim.demo.app import build_demo

    demo = build_demo(handlers, "here")
    demo.has_launched, demo.max_file_size = True, None
    with TestClient(App.create_app(demo)) as client:
        client.get("/gradio_api/startup-events")
        yield demo, client
