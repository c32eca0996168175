"""Face recognisers: adapters that give any of them the same call (ours is `diffusers_dedim.models.MobileFaceNet`)."""

from diffusers_dedim.encoders.dlib import DlibEncoder
from diffusers_dedim.encoders.ensemble import EncoderEnsemble
from diffusers_dedim.encoders.facenet import FaceNetEncoder
from diffusers_dedim.encoders.onnx import OnnxEncoder
from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces, load_recogniser
from diffusers_dedim.encoders.types import PhotoEncoder

__all__ = [
    "DlibEncoder",
    "EncoderEnsemble",
    "FaceNetEncoder",
    "OnnxEncoder",
    "PhotoEncoder",
    "Recogniser",
    "embed_faces",
    "load_recogniser",
]
