"""What can be published. Nothing of the Hub's client is imported here: the command line's help need not wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Model(str, Enum):
    """The choices of ``--model``."""

    unet = "unet"
    encoder = "encoder"
    landmarks = "landmarks"
    pipeline = "pipeline"


@dataclass(frozen=True)
class ModelKind:
    """One thing that can be published.

    Attributes:
        index: the file that names the class, ``model_index.json`` for a pipeline, ``config.json`` for a network.
        class_names: the classes that it may name; a repository whose index names another one is not overwritten.
        folders: subfolder of the pipeline folder -> subfolder of the repository ("" is its top).
        usage: Python that loads it, of the first class, with REPO_ID in it, for the card.
    """

    index: str
    class_names: tuple[str, ...]
    folders: Mapping[str, str]
    usage: str


KINDS = {
    Model.pipeline: ModelKind(
        "model_index.json",
        ("DeDiMPipeline",),
        {
            name: name
            for name in ("unet", "scheduler", "face_encoder", "landmarker", "visibility", "discriminator")
        },
        'from diffusers_dedim import DeDiMPipeline\n\npipe = DeDiMPipeline.from_pretrained("REPO_ID")',
    ),
    Model.unet: ModelKind(
        "model_index.json",
        ("DDPMPipeline",),
        {name: name for name in ("unet", "scheduler")},
        'from diffusers import DDPMPipeline\n\npipe = DDPMPipeline.from_pretrained("REPO_ID")',
    ),
    Model.encoder: ModelKind(
        "config.json",
        ("EncoderEnsemble", "MobileFaceNet"),
        {"face_encoder": ""},
        "from diffusers_dedim import DeDiMPipeline, EncoderEnsemble\n\n"
        'encoder = EncoderEnsemble.from_pretrained("REPO_ID").eval()\n'
        "pipe = DeDiMPipeline.from_pretrained(face_encoder=encoder)",
    ),
    Model.landmarks: ModelKind(
        "config.json",
        ("LandmarkRegressor",),
        {"landmarker": ""},
        "from diffusers_dedim import DeDiMPipeline, LandmarkRegressor\n\n"
        'landmarker = LandmarkRegressor.from_pretrained("REPO_ID").eval()\n'
        "pipe = DeDiMPipeline.from_pretrained(landmarker=landmarker)",
    ),
}
