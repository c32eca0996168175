"""Face recognisers: ours (`MobileFaceNet`) and adapters that give others the same call."""

from diffusers_dedim.encoders.dlib import DlibEncoder
from diffusers_dedim.encoders.ensemble import EncoderEnsemble
from diffusers_dedim.encoders.facenet import FaceNetEncoder
from diffusers_dedim.encoders.mobilefacenet import MobileFaceNet
from diffusers_dedim.encoders.onnx import OnnxEncoder
from diffusers_dedim.encoders.types import PhotoEncoder

__all__ = ["DlibEncoder", "EncoderEnsemble", "FaceNetEncoder", "MobileFaceNet", "OnnxEncoder", "PhotoEncoder"]
