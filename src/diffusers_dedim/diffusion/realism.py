"""Back towards photos: the gradient of what a discriminator takes for a trace of protection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

NOISE_LEVEL = 0.1
"""Standard deviation, in [-1, 1] units, of the noise under which a discriminator is asked."""
_KERNEL, _SMOOTHING = 9, 1.8  # px: what is finer than this is drawn as specks, on lips above all
_SHARPNESS = 2.0  # of the hinge: a place that looks as much like a photo as it did before pushes no more


def realism_gradient(
    discriminator: Callable[..., Tensor], changed: Tensor, original: Tensor, mask: Tensor, step_index: int
) -> Tensor:
    """Where, and by how much, a brighter pixel would make faces look more protected than their originals do.

    Each place counts by how much more protected it looks than the same place of the original, so that what is odd about
    the photo itself is left alone. Both are seen under the same noise, drawn for each step anew and alike for all
    faces: a face's result does not depend on those beside it.

    Args:
        discriminator: (crops ``[N, 3, H, W]``, noise level) -> logits ``[N, 1, h, w]`` above 0 where they look
            protected (`PatchDiscriminator`).
        changed: crops ``[N, 3, H, W]`` in about [-1, 1].
        original: the same faces as they were.
        mask: ``[N, 1, H, W]`` in [0, 1]; what lies outside does not count.
        step_index: number of the step in its round.

    Returns:
        ``[N, 3, H, W]``, the same in each channel, without what is finer than a few px.

    Example:
        >>> dark = lambda crops, noise_level: -crops.mean(1, keepdim=True)
        >>> original, mask = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
        >>> bool((realism_gradient(dark, original - 0.5, original, mask, 0) < 0).all())  # brighter is less protected
        True
    """
    generator = torch.Generator().manual_seed(step_index)
    noise = NOISE_LEVEL * torch.randn(1, 1, *changed.shape[2:], generator=generator).to(changed)
    with torch.no_grad():
        aim = discriminator(original + noise, NOISE_LEVEL)
    with torch.inference_mode(False), torch.enable_grad():
        seen = changed.detach().clone().requires_grad_()
        excess = discriminator(seen + noise, NOISE_LEVEL) - aim.clone()
        rows, columns = excess.shape[2:]
        weight = functional.adaptive_avg_pool2d(mask, (rows, columns))
        (gradient,) = torch.autograd.grad((functional.softplus(_SHARPNESS * excess) * weight).sum(), seen)
    grey: Tensor = gaussian_blur(gradient.mean(1, keepdim=True), [_KERNEL, _KERNEL], [_SMOOTHING, _SMOOTHING])
    return grey.expand_as(gradient)
