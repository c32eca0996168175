"""Faces in photos: detect, align, locate landmarks, mask, and carry a change back."""

from diffusers_dedim.faces.align import (
    ARCFACE_TEMPLATE,
    align_face,
    estimate_similarity,
    inside_photo,
    whole_crop,
)
from diffusers_dedim.faces.blend import paste_back
from diffusers_dedim.faces.contradiction import contradictions
from diffusers_dedim.faces.cover import Cover, cover_face
from diffusers_dedim.faces.detect import FaceDetector, detect_faces
from diffusers_dedim.faces.detectors import CenterFaceSearch, UniFaceSearch, named_detector, shared_detector
from diffusers_dedim.faces.find import (
    MIN_FACE_SIZE,
    FaceChoice,
    FaceDetection,
    SmallFaces,
    choose_faces,
    warn_small,
)
from diffusers_dedim.faces.mask import keep_between_brows, keep_eyes, landmark_mask
from diffusers_dedim.faces.turned import find_any_turn, turn_back
from diffusers_dedim.faces.types import AlignedFace, Face
from diffusers_dedim.faces.visible import visible_gate, visible_share

__all__ = [
    "ARCFACE_TEMPLATE",
    "MIN_FACE_SIZE",
    "AlignedFace",
    "CenterFaceSearch",
    "Cover",
    "Face",
    "FaceChoice",
    "FaceDetection",
    "FaceDetector",
    "SmallFaces",
    "UniFaceSearch",
    "align_face",
    "choose_faces",
    "contradictions",
    "cover_face",
    "detect_faces",
    "estimate_similarity",
    "find_any_turn",
    "inside_photo",
    "keep_between_brows",
    "keep_eyes",
    "landmark_mask",
    "named_detector",
    "paste_back",
    "shared_detector",
    "turn_back",
    "visible_gate",
    "visible_share",
    "warn_small",
    "whole_crop",
]
