"""TIP-IM (Yang et al. 2021): adversarial noise that moves a face towards the best of several other people.

Each step tries every target and keeps the one whose step gains most. docs/baselines.md maps the formulas to
the functions and says what differs from the published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusers_dedim.baselines.levels import check_attack, check_epsilon, epsilon_ball, from_levels, to_levels

# A pixel counts as inside when bilinear sampling took nothing from beyond the border; less is rounding.
_FULL_COVER = 0.9999

# Variances in squared grey levels: from far below one level in one pixel to 12 levels in each of 37,632 (5.4e6).
BANDWIDTHS = (
    1e-6,
    1e-5,
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    5.0,
    10.0,
    15.0,
    20.0,
    25.0,
    30.0,
    35.0,
    1e2,
    1e3,
    1e4,
    1e5,
    1e6,
)

_CANDIDATES_AT_A_TIME = 32  # more do not fit a processor's caches: 90 at once took a third longer each


@dataclass(frozen=True)
class TipImPreset:
    """Settings of TIP-IM; the defaults are those of the published code.

    Attributes:
        epsilon: most that a value of the image may change, grey levels (infinity norm), above 0 and up to 255.
        iterations: steps, a whole number of at least 1.
        step_factor: a step is step_factor * epsilon / iterations grey levels, root mean square; 0 or more.
        momentum: share of the sum of earlier gradients that is kept, 0 or more.
        gamma: weight of the MMD between the face and the original beside squared distances of unit embeddings, 0
            or more.
        diversity: lowest and highest standard deviation of the random warps, in [0, 1).

    Source:
        Yang et al. 2021; docs/baselines.md.

    Raises:
        ValueError: a setting is out of its range; the message names it.

    Example:
        >>> TipImPreset(epsilon=6.0).step_size
        0.09
    """

    epsilon: float = 12.0
    iterations: int = 100
    step_factor: float = 1.5
    momentum: float = 1.0
    gamma: float = 0.0
    diversity: tuple[float, float] = (0.01, 0.1)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.iterations < 1 or self.iterations != int(self.iterations):
            raise ValueError(f"iterations: expected a whole number of at least 1, got {self.iterations}.")
        for name in ("step_factor", "momentum", "gamma"):
            if not 0 <= getattr(self, name) < math.inf:  # also refuses nan
                raise ValueError(f"{name}: expected a finite number of 0 or more, got {getattr(self, name)}.")
        if len(self.diversity) != 2 or not 0 <= self.diversity[0] <= self.diversity[1] < 1:
            raise ValueError(
                "diversity: expected two standard deviations in [0, 1), the lower first, "
                f"got {self.diversity}."
            )

    @property
    def step_size(self) -> float:
        """Root mean square of a step, grey levels."""
        return self.step_factor * self.epsilon / self.iterations


# The paper on DeDiM shows weak and strong noise (its Fig. 1) without numbers: these two are our choice.
TIP_IM_PRESETS: dict[str, TipImPreset] = {
    "published": TipImPreset(),
    "weak": TipImPreset(epsilon=6.0, gamma=0.1),
    "strong": TipImPreset(epsilon=24.0),
}


@dataclass(frozen=True, eq=False)
class TipImResult:
    """What TIP-IM returns.

    Attributes:
        crops: ``[N, 3, H, W]`` in [-1, 1], within epsilon of the originals.
        targets: per face, index of the target chosen at each step.
    """

    crops: Tensor
    targets: list[list[int]]


@torch.no_grad()
def apply_tip_im(
    x_org: Tensor,
    *,
    face_encoder: nn.Module,
    targets: Tensor,
    settings: TipImPreset,
    generators: list[torch.Generator],
) -> TipImResult:
    """Change faces within an epsilon ball so that the recogniser takes them for one of the targets.

    Args:
        x_org: aligned crops ``[N, 3, H, W]`` in [-1, 1].
        face_encoder: maps crops to unit embeddings ``[N, D]``, differentiable.
        targets: unit embeddings ``[K, D]`` of other people; the paper takes 10.
        settings: see `TIP_IM_PRESETS`.
        generators: one per face, so that a face's result does not depend on its batch.

    Returns:
        The crops and the choices.

    Source:
        Yang et al. 2021, after their published code; docs/baselines.md.

    Raises:
        ValueError: an argument has another shape or range.

    Example:
        >>> settings = TIP_IM_PRESETS["published"]
        >>> apply_tip_im(x_org, face_encoder=encoder, targets=targets, settings=settings,
        ...              generators=[torch.Generator()])  # doctest: +SKIP
    """
    check_attack(x_org, generators)
    original = to_levels(x_org)
    reference = face_encoder(x_org)  # [N, D]
    _check_targets(targets, reference)
    low, high = epsilon_ball(original, settings.epsilon)
    levels, velocity = original, torch.zeros_like(original)  # [N, 3, H, W]
    chosen: list[Tensor] = []
    for _ in range(settings.iterations):
        warps = random_warps(generators, settings.diversity)
        gradients = target_gradients(
            levels, original, face_encoder, reference, targets, warps, settings.gamma
        )  # [N, K, 3, H, W]
        velocities = settings.momentum * velocity[:, None] + normalise_mean(gradients)
        steps = l2_step(velocities, settings.step_size)
        candidates = torch.clamp(levels[:, None] - steps, low[:, None], high[:, None])
        parts = torch.split(candidates.flatten(0, 1), _CANDIDATES_AT_A_TIME)
        embeddings = torch.cat([face_encoder(from_levels(part)) for part in parts])
        embeddings = torch.unflatten(embeddings, 0, candidates.shape[:2])
        best = candidate_gain(embeddings, reference, targets).argmax(1)  # the greedy choice, [N]
        faces = torch.arange(len(best), device=best.device)
        levels, velocity = candidates[faces, best], velocities[faces, best]
        chosen.append(best.cpu())
    return TipImResult(from_levels(levels), torch.stack(chosen, 1).tolist())


def target_gradients(
    levels: Tensor,
    original: Tensor,
    face_encoder: nn.Module,
    reference: Tensor,
    targets: Tensor,
    warps: Tensor,
    gamma: float,
) -> Tensor:
    """Gradient of the loss with respect to the image, for each target.

    The loss of target t is |f(w(x)) - f_t|^2 - |f(w(x)) - f_0|^2 + gamma MMD(x, x_0), with w the random warps
    and f_0 the embedding of the original x_0.

    Args:
        levels: images x ``[N, 3, H, W]`` in 0..255.
        original: x_0, likewise.
        face_encoder: maps crops in [-1, 1] to unit embeddings.
        reference: f_0, ``[N, D]``.
        targets: f_t, ``[K, D]``.
        warps: from `random_warps`.
        gamma: weight of the MMD.

    Returns:
        ``[N, K, 3, H, W]``.
    """
    # of the squared distances: 2 (f - f_t) - 2 (f - f_0), the same wherever f is
    cotangents = 2 * (reference - targets[:, None])  # [K, N, D]
    with torch.inference_mode(False), torch.enable_grad():
        levels = levels.detach().clone().requires_grad_()
        seen = warp_images(warp_images(levels, warps[0]), warps[1])
        embedding = face_encoder(from_levels(seen))  # [N, D]
        # one after the other: on the CPU all at once (is_grads_batched) was slower
        gradients = [
            torch.autograd.grad(embedding, levels, cotangent, retain_graph=True)[0]
            for cotangent in cotangents.clone()
        ]
        if gamma:
            # each face has its own sets of one image, so that it does not depend on its batch
            natural = maximum_mean_discrepancy(levels.flatten(1)[:, None], original.flatten(1)[:, None])
            (pull,) = torch.autograd.grad(gamma * natural.sum(), levels)
            gradients = [gradient + pull for gradient in gradients]
    return torch.stack(gradients, 1)


def candidate_gain(embeddings: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    """How far each candidate has got: log(1 + max over targets of exp(distance to original - to target)).

    Args:
        embeddings: ``[N, K, D]`` of the candidates.
        reference: ``[N, D]`` of the originals.
        targets: ``[T, D]``.

    Returns:
        ``[N, K]``.
    """
    to_original = squared_distance(embeddings, reference[:, None]).sqrt()  # [N, K]
    to_targets = squared_distance(embeddings[:, :, None], targets).sqrt()  # [N, K, T]
    return (to_original[..., None] - to_targets).exp().amax(-1).log1p()


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance over the last axis.

    Args:
        a: ``[..., D]``.
        b: ``[..., D]``, of a shape that broadcasts with it.

    Returns:
        ``[...]``, 0 or more; 2 - 2 cosine for unit vectors.

    Example:
        >>> squared_distance(torch.eye(2), torch.tensor([1.0, 0.0])).tolist()
        [0.0, 2.0]
    """
    squared: Tensor = (a - b).square().sum(-1)
    return squared


def normalise_mean(gradients: Tensor) -> Tensor:
    """Divide each gradient ``[N, K, 3, H, W]`` by its mean magnitude; 0 stays 0."""
    size = gradients.abs().mean((2, 3, 4), keepdim=True)
    return gradients / torch.where(size > 0, size, torch.ones_like(size))


def l2_step(velocities: Tensor, step_size: float) -> Tensor:
    """Steps of l2 norm step_size * sqrt(d) along each velocity, d = 3 H W.

    Args:
        velocities: ``[N, K, 3, H, W]``, of any size.
        step_size: root mean square of a step, grey levels.

    Returns:
        ``[N, K, 3, H, W]`` grey levels; a velocity of 0 stays 0.

    Example:
        >>> l2_step(torch.full((1, 1, 3, 2, 2), 7.0), 0.5).unique()
        tensor([0.5000])
    """
    norm = velocities.square().sum((2, 3, 4), keepdim=True).sqrt()
    length = step_size * math.sqrt(velocities[0, 0].numel())
    return length * velocities / torch.where(norm > 0, norm, torch.ones_like(norm))


def random_warps(generators: list[torch.Generator], spread: tuple[float, float]) -> Tensor:
    """Draw a random linear warp and a random rotation for each face.

    Both standard deviations are drawn anew, uniformly from ``spread``: one for the six numbers added to the
    identity ``[[1, 0, 0], [0, 1, 0]]`` (in units of half the image), one for the angle in radians.

    Args:
        generators: one per face, on the CPU.
        spread: lowest and highest standard deviation.

    Returns:
        ``[2, N, 2, 3]`` float64, output -> input in [-1, 1] coordinates: the warps, then the rotations.
    """
    return torch.stack([_random_warp(generator, spread) for generator in generators], dim=1)


def warp_images(images: Tensor, warps: Tensor) -> Tensor:
    """Warp each image; what the image does not reach is 0 (black in 0..255).

    Args:
        images: ``[N, C, H, W]``.
        warps: ``[N, 2, 3]``, output -> input in [-1, 1] coordinates.

    Example:
        >>> warp_images(torch.ones(1, 1, 2, 2), torch.eye(2, 3)[None]).sum()
        tensor(4.)
    """
    grid = functional.affine_grid(warps.to(images), list(images.shape), align_corners=False)
    warped = functional.grid_sample(images, grid, align_corners=False)
    cover = functional.grid_sample(torch.ones_like(images[:, :1]), grid, align_corners=False)
    return warped * (cover >= _FULL_COVER)


def maximum_mean_discrepancy(x: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Squared MMD between two sets of images, summed over the kernels; 0 where the sets are equal.

    With k(a, b) = sum over v of exp(-|a - b|^2 / (2 v)) it is mean k(x, x') + mean k(y, y') - 2 mean k(x, y).

    Args:
        x: ``[B, N, d]``: B independent sets of N images of d values.
        y: ``[B, M, d]``.
        bandwidths: variances v of the kernels, in squared units of x and y.

    Returns:
        ``[B]``, 0 or more.

    Source:
        Gretton et al. 2012 (the biased estimate); kernels as in the published code of Yang et al. 2021.

    Example:
        >>> import torch
        >>> maximum_mean_discrepancy(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
        tensor([0.])
    """
    return (
        _kernel(x, x, bandwidths).mean((1, 2))
        + _kernel(y, y, bandwidths).mean((1, 2))
        - 2 * _kernel(x, y, bandwidths).mean((1, 2))
    )


def _check_targets(targets: Tensor, reference: Tensor) -> None:
    if targets.ndim != 2 or len(targets) == 0 or targets.shape[1] != reference.shape[1]:
        raise ValueError(
            f"targets: expected embeddings [K, {reference.shape[1]}] by the same face_encoder, K at least 1, got "
            f"{list(targets.shape)}."
        )
    if targets.device != reference.device:
        raise ValueError(f"targets: expected them on {reference.device}, got {targets.device}.")


def _random_warp(generator: torch.Generator, spread: tuple[float, float]) -> Tensor:
    low, high = spread
    drawn = torch.rand(2, generator=generator, dtype=torch.float64)
    linear_std, angle_std = (low + (high - low) * drawn).tolist()
    noise = torch.randn(7, generator=generator, dtype=torch.float64)
    linear = torch.eye(2, 3, dtype=torch.float64) + linear_std * noise[:6].reshape(2, 3)
    angle = angle_std * noise[6]
    cos, sin, zero = angle.cos(), angle.sin(), angle.new_zeros(())
    rotation = torch.stack([torch.stack([cos, sin, zero]), torch.stack([-sin, cos, zero])])
    return torch.stack([linear, rotation])  # [2, 2, 3]


def _kernel(a: Tensor, b: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Sum of gaussian kernels ``[B, N, M]``."""
    squared = (a[:, :, None] - b[:, None]).square().sum(-1)  # [B, N, M]
    variances = squared.new_tensor(bandwidths)
    return (-squared[..., None] / (2 * variances)).exp().sum(-1)
