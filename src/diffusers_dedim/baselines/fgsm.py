"""FGSM (Goodfellow et al. 2015) away from the own identity, with the random start of Tramèr et al. 2018."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from diffusers_dedim.baselines.levels import check_attack, check_epsilon, epsilon_ball, from_levels, to_levels


@torch.no_grad()
def apply_fgsm(
    x_org: Tensor, *, face_encoder: nn.Module, generators: list[torch.Generator], epsilon: float = 12.0
) -> Tensor:
    """One step of fixed size against the sign of the gradient of the similarity with the original.

    The similarity is at its top in the original, where its gradient is 0. So half of epsilon goes into a step
    along random signs first, the other half into the step along the gradient (R+FGSM).

    Args:
        x_org: aligned crops ``[N, 3, H, W]`` in [-1, 1].
        face_encoder: maps crops to unit embeddings ``[N, D]``, differentiable.
        generators: one per face.
        epsilon: most that a value changes, grey levels.

    Returns:
        ``[N, 3, H, W]`` in [-1, 1].

    Source:
        Tramèr et al. 2018 (R+FGSM): x' = x + a sign(N(0, I)), then x' + (epsilon - a) sign(gradient), a = epsilon / 2.

    Raises:
        ValueError: an argument has another shape or range.

    Example:
        >>> apply_fgsm(x_org, face_encoder=encoder, generators=[torch.Generator()])  # doctest: +SKIP
    """
    check_attack(x_org, generators)
    check_epsilon(epsilon)
    original, reference = to_levels(x_org), face_encoder(x_org)
    low, high = epsilon_ball(original, epsilon)
    noise = randn_tensor(original.shape, generators, original.device, original.dtype)
    start = torch.clamp(original + epsilon / 2 * noise.sign(), low, high)
    with torch.inference_mode(False), torch.enable_grad():
        crops = from_levels(start).clone().requires_grad_()
        similarity = (face_encoder(crops) * reference.clone()).sum()
        (gradient,) = torch.autograd.grad(similarity, crops)
    return from_levels(torch.clamp(start - epsilon / 2 * gradient.sign(), low, high))
