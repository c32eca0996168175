"""How well protected faces are found, and how much they changed: data, probes, gallery, panel."""

from diffusers_dedim.evaluation.cache import ArrayCache
from diffusers_dedim.evaluation.data import Record, RetrievalProtocol, read_protocol
from diffusers_dedim.evaluation.gallery import (
    Gallery,
    central_face,
    embed_gallery,
    find_central_faces,
    same_face,
)
from diffusers_dedim.evaluation.panels import make_panel
from diffusers_dedim.evaluation.probes import (
    Probe,
    ProbeScores,
    Protection,
    evaluate_probes,
    prepare_probes,
    protect_probes,
    score_photos,
    search_gallery,
)

__all__ = [
    "ArrayCache",
    "Gallery",
    "Probe",
    "ProbeScores",
    "Protection",
    "Record",
    "RetrievalProtocol",
    "central_face",
    "embed_gallery",
    "evaluate_probes",
    "find_central_faces",
    "make_panel",
    "prepare_probes",
    "protect_probes",
    "read_protocol",
    "same_face",
    "score_photos",
    "search_gallery",
]
