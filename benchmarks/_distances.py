"""Distances between two sets of faces (KID, FID) over the features of any network, by torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.encoders import load_recogniser
from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.data import to_model_range

INCEPTION = "inception"
_POOL = 2048  # numbers of Inception's last pooling layer, the one that published FID and KID are of
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Features:
    """What faces are compared by.

    Attributes:
        name: says of what kind the features are: distances over one kind say nothing about another's.
        extract: uint8 crops ``[N, 3, 112, 112]`` -> features ``[N, D]``.
        gamma: of KID's kernel ``(gamma x.y + 1)^3``; None is 1 / D, as published for Inception.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    gamma: float | None

    @torch.no_grad()
    def of(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Features of uint8 crops ``[N, 112, 112, 3]``: float64 ``[N, D]``."""
        pieces = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), _AT_ONCE)
        return torch.cat([self.extract(piece).double().cpu() for piece in pieces])


@dataclass(frozen=True)
class Distance:
    """Between two sets of features; both are 0 for equal distributions, and KID has no bias from the sets' sizes.

    Attributes:
        kid: mean over the subsets of the squared maximum mean discrepancy (Binkowski et al. 2018).
        kid_std: standard deviation over the subsets.
        fid: Fréchet distance of two normal distributions (Heusel et al. 2017). The fewer faces, the greater; with
            no more faces than features the covariances are singular.
    """

    kid: float
    kid_std: float
    fid: float


def load_features(spec: str) -> Features:
    """Load what faces are compared by.

    Args:
        spec: ``inception`` (torch-fidelity's copy of the weights that published figures are made with; that package
            downloads them), ``inception=FILE.pth`` (the same, from a file; it is unpickled, so give only a file
            that you trust), or a recogniser as `load_recogniser` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package is missing; names the command that installs it.
        RuntimeError: Inception's weights cannot be had.
        ValueError: the spec has another form, or the file does not fit.
    """
    _import_metrics()  # now, and not after the drawing
    name, _, file = spec.partition("=")
    if name == INCEPTION:
        return Features(f"Inception v3, {_POOL} numbers of the last pooling", _load_inception(file), None)
    try:
        recogniser = load_recogniser(spec)
    except ValueError as error:
        raise ValueError(
            f"--features: expected 'inception', 'inception=FILE.pth' or a face recogniser. {error}"
        ) from error

    def embed(crops: Tensor) -> Tensor:
        embeddings: Tensor = recogniser.encoder(to_model_range(crops))
        return embeddings

    # Unit vectors: with the kernel's usual 1 / D their products hardly differ from 0, and only the means would count.
    return Features(f"face recogniser {recogniser.name}", embed, 1.0)


def measure_distance(
    real: Tensor, drawn: Tensor, *, gamma: float | None, subsets: int, subset_size: int, seed: int
) -> Distance:
    """Measure KID and FID between two sets of features.

    Args:
        real: ``[N, D]``.
        drawn: ``[M, D]``.
        gamma: of KID's kernel, see `Features`.
        subsets: how many pairs of subsets KID is the mean of.
        subset_size: rows a subset, from 2 to the smaller of N and M.
        seed: of the subsets.

    Raises:
        ImportError: torchmetrics is missing.
    """
    features = _Given(real.shape[1])
    frechet, kernel = _import_metrics()
    fid = frechet(feature=features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        kid = kernel(feature=features, subsets=subsets, subset_size=subset_size, gamma=gamma)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from torch's global generator
        torch.manual_seed(seed)
        mean, std = kid.compute()
    return Distance(float(mean), float(std), float(fid.compute()))


class _Given(nn.Module):
    """Lets torchmetrics take features where it expects images: each face is embedded once for all distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _load_inception(file: str) -> nn.Module:
    """Inception v3 as torchmetrics runs it: uint8 ``[N, 3, H, W]`` -> ``[N, 2048]``."""
    wanted = f"--features {INCEPTION}"
    module = "torch_fidelity.feature_extractor_inceptionv3"
    fidelity = import_extra(module, wanted, "pip install torch-fidelity")
    frechet, _ = _import_metrics()
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"{wanted}: there is no file {file!r}.")
    try:
        metric = frechet(_POOL, feature_extractor_weights_path=file or None)
    except Exception as error:  # types of urllib, pickle and torch, without a common one
        problem = f"{file} cannot be read as its weights" if file else "its weights could not be downloaded"
        raise RuntimeError(
            f"{wanted}: {problem} ({error}). Get {fidelity.URL_INCEPTION_V3} where there is a network and give "
            f"{wanted}=FILE.pth, or compare by a face recogniser: --features NAME=FILE.onnx."
        ) from error
    network: nn.Module = metric.inception
    return network


def _import_metrics() -> tuple[Any, Any]:
    """FID and KID of torchmetrics, whose package exports them only where torch-fidelity is installed."""
    fid, kid = (
        import_extra(f"torchmetrics.image.{name}", "benchmarks.samples", "pip install torchmetrics")
        for name in ("fid", "kid")
    )
    return fid.FrechetInceptionDistance, kid.KernelInceptionDistance
