"""Pure functions of arrays: retrieval and verification rates, image quality, confidence intervals."""

from diffusers_dedim.metrics.intervals import Estimate, bootstrap_mean
from diffusers_dedim.metrics.quality import fsim, haarpsi, landmark_shift, mdsi, mean_ssim, psnr
from diffusers_dedim.metrics.retrieval import cmc, genuine_ranks, rank_k_rate
from diffusers_dedim.metrics.verification import (
    det_curve,
    match_rate,
    tar_at_fmr,
    ten_fold_accuracy,
    threshold_at_fmr,
)

__all__ = [
    "Estimate",
    "bootstrap_mean",
    "cmc",
    "det_curve",
    "fsim",
    "genuine_ranks",
    "haarpsi",
    "landmark_shift",
    "match_rate",
    "mdsi",
    "mean_ssim",
    "psnr",
    "rank_k_rate",
    "tar_at_fmr",
    "ten_fold_accuracy",
    "threshold_at_fmr",
]
