"""How well protected faces are found, and how much they changed: protocol, retrieval, quality, panel."""

from diffusers_dedim.evaluation.cache import ArrayCache
from diffusers_dedim.evaluation.gallery import Gallery, central_face, embed_gallery, find_faces, same_face
from diffusers_dedim.evaluation.panel import make_panel
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
from diffusers_dedim.evaluation.protocol import Record, RetrievalProtocol, read_protocol
from diffusers_dedim.evaluation.quality import fsim, haarpsi, mdsi, mean_ssim, psnr
from diffusers_dedim.evaluation.recogniser import Recogniser, embed_faces, load_recogniser
from diffusers_dedim.evaluation.retrieval import cmc, genuine_ranks, rank_k_rate

__all__ = [
    "ArrayCache",
    "Gallery",
    "Probe",
    "ProbeScores",
    "Protection",
    "Recogniser",
    "Record",
    "RetrievalProtocol",
    "central_face",
    "cmc",
    "embed_faces",
    "embed_gallery",
    "evaluate_probes",
    "find_faces",
    "fsim",
    "genuine_ranks",
    "haarpsi",
    "load_recogniser",
    "make_panel",
    "mdsi",
    "mean_ssim",
    "prepare_probes",
    "protect_probes",
    "psnr",
    "rank_k_rate",
    "read_protocol",
    "same_face",
    "score_photos",
    "search_gallery",
]
