"""How much a protected face still looks like the original: full-reference measures, in float64.

Every function takes aligned crops ``[N, 3, 112, 112]`` (or another size from 16 px up) in [-1, 1], measures
them on the 8-bit scale 0..255 without rounding, and gives one float64 per face.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_dedim.extras import import_extra
from diffusers_dedim.models.landmarks import OUTER_EYE_CORNERS

_RANGE = 255.0


def psnr(original: Tensor, changed: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error over all channels).

    Args:
        original: ``[N, 3, H, W]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64; inf where nothing changed.

    Raises:
        ValueError: the shapes differ or are not ``[N, 3, H, W]``.

    Example:
        >>> grey = torch.zeros(1, 3, 112, 112)
        >>> round(psnr(grey, grey + 2 / 255).item(), 2)  # one grey level
        48.13
    """
    original, changed = _on_8_bit_scale(original, changed)
    error = (original - changed).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(_RANGE**2 / error)


def mean_ssim(original: Tensor, changed: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004): 11x11 gaussian window, sigma 1.5, K = 0.01, 0.03.

    The mean over the window positions inside the crop and over the three colour channels (the original is for
    greyscale; channel by channel is the stricter common reading for colour).

    Args:
        original: ``[N, 3, H, W]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64; 1 where nothing changed.

    Raises:
        ImportError: piq is missing.
        ValueError: the shapes differ or are not ``[N, 3, H, W]``.
    """
    return _by_piq("ssim", original, changed, kernel_size=11, kernel_sigma=1.5, downsample=False)


def haarpsi(original: Tensor, changed: Tensor) -> Tensor:
    """Haar wavelet perceptual similarity (Reisenhofer et al. 2018).

    Args:
        original: ``[N, 3, H, W]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64 in [0, 1]; 1 where nothing changed.

    Raises:
        ImportError: piq is missing.
        ValueError: the shapes differ or are not ``[N, 3, H, W]``, or a value lies outside [-1, 1].
    """
    return _by_piq("haarpsi", original, changed)


def fsim(original: Tensor, changed: Tensor) -> Tensor:
    """Feature similarity with colour (FSIMc, Zhang et al. 2011).

    Args:
        original: ``[N, 3, H, W]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64 in [0, 1]; 1 where nothing changed.

    Raises:
        ImportError: piq is missing.
        ValueError: the shapes differ or are not ``[N, 3, H, W]``, or a value lies outside [-1, 1].
    """
    return _by_piq("fsim", original, changed, chromatic=True)


def mdsi(original: Tensor, changed: Tensor) -> Tensor:
    """Mean deviation similarity index (Nafchi et al. 2016). Unlike the others, **smaller is better**.

    Args:
        original: ``[N, 3, H, W]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64 of 0 or more; 0 where nothing changed.

    Raises:
        ImportError: piq is missing.
        ValueError: the shapes differ or are not ``[N, 3, H, W]``, or a value lies outside [-1, 1].
    """
    return _by_piq("mdsi", original, changed)


@torch.no_grad()
def landmark_shift(landmarker: nn.Module, original: Tensor, changed: Tensor) -> Tensor:
    """How far the 51 landmarks moved: mean distance over that of the original's outer eye corners.

    Args:
        landmarker: crops ``[N, 3, 112, 112]`` -> points ``[N, 51, 2]`` in crop px.
        original: ``[N, 3, 112, 112]`` in [-1, 1].
        changed: the same shape and range.

    Returns:
        ``[N]`` float64, a share of the distance of the outer eye corners; 0 where nothing changed.
    """
    parameter = next(landmarker.parameters(), None)
    device = parameter.device if parameter is not None else original.device
    before, after = (landmarker(crops.to(device)).double().cpu() for crops in (original, changed))
    left, right = OUTER_EYE_CORNERS
    unit = (before[:, left] - before[:, right]).norm(dim=1)
    shift: Tensor = (before - after).norm(dim=2).mean(dim=1) / unit
    return shift


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018), AlexNet, version 0.1; smaller is closer.

    The five linear layers come with the package ``lpips``; the AlexNet below them does not.

    Args:
        weights: torchvision's ``alexnet-owt-7be5be79.pth``.

    Raises:
        ImportError: lpips is missing.
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold AlexNet's features.
    """

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        super().__init__()
        lpips = import_extra("lpips", "LPIPS", 'pip install "diffusers-dedim[lpips]"')
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"lpips: there is no file {str(path)!r}; give torchvision's alexnet-owt-7be5be79.pth "
                "(https://download.pytorch.org/models/), or leave LPIPS out."
            )
        with contextlib.redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, about the way lpips calls it
            self.network: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for place in range(1, 6):
                part = getattr(self.network.net, f"slice{place}")
                part.load_state_dict({name: state[f"features.{name}"] for name in part.state_dict()})
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, KeyError, ...
            raise ValueError(f"{path}: expected torchvision's AlexNet weights: {error!r}") from error
        self.fingerprint: str = hashlib.sha256(path.read_bytes()).hexdigest()
        self.eval().requires_grad_(False)

    def forward(self, original: Tensor, changed: Tensor) -> Tensor:
        """Distance of crops ``[N, 3, H, W]`` in [-1, 1]: ``[N]`` float64."""
        distance: Tensor = self.network(original.float(), changed.float())
        return distance.double().reshape(len(original))


def _by_piq(name: str, original: Tensor, changed: Tensor, **settings: Any) -> Tensor:
    piq = import_extra("piq", name)
    original, changed = _on_8_bit_scale(original, changed)
    measure = getattr(piq, name)
    values: Tensor = measure(changed, original, data_range=_RANGE, reduction="none", **settings)
    return values.reshape(len(original))


def _on_8_bit_scale(original: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Map [-1, 1] to 0..255 in float64; piq refuses what the last bit of float32 puts outside."""
    if original.shape != changed.shape or original.ndim != 4 or original.shape[1] != 3:
        raise ValueError(
            f"original, changed: expected the same shape [N, 3, H, W], got {list(original.shape)} "
            f"and {list(changed.shape)}."
        )
    first, second = (((crops.detach().double() + 1) * (_RANGE / 2)) for crops in (original, changed))
    low, high = min(first.min().item(), second.min().item()), max(first.max().item(), second.max().item())
    if low < -0.01 or high > _RANGE + 0.01:
        raise ValueError(
            f"original, changed: expected values in [-1, 1], got {low / 127.5 - 1:g} to {high / 127.5 - 1:g}."
        )
    return first.clamp(0, _RANGE), second.clamp(0, _RANGE)
