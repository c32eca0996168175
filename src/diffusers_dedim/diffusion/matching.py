"""Whether faces match their originals, and others of the same person: Eq. 4 and what an album adds to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# What being like a protected photo of the same person adds to the probability: too little to outweigh the own photo.
_AVOID_SHARE = 1e-3


def member_probabilities(embedding: Tensor, reference: Tensor) -> Tensor:
    """Eq. 4 by each recogniser.

    Args:
        embedding, reference: as for `match_probability`.

    Returns:
        ``[N]``, or ``[N, K]`` of an `EncoderEnsemble`, in [0, 1].

    Example:
        >>> member_probabilities(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]] * 2])).tolist()
        [[1.0, 0.5]]
    """
    return ((embedding * reference).sum(-1) + 1) / 2


def match_probability(embedding: Tensor, reference: Tensor) -> Tensor:
    """Approximate p(y_0 | x), the probability of a match (Eq. 4): (cos + 1) / 2.

    Args:
        embedding: unit vectors ``[N, D]`` of the images in question, or ``[N, K, D]`` of an `EncoderEnsemble`.
        reference: those of the originals, of the same shape.

    Returns:
        ``[N]`` in [0, 1]; 1 is the same direction, 0.5 unrelated. Of K recognisers the one that matches best counts.

    Example:
        >>> match_probability(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]] * 2)).tolist()
        [1.0, 0.5]
    """
    probability = member_probabilities(embedding, reference)
    return probability if probability.ndim == 1 else probability.amax(1)


def avoided_cosines(embedding: Tensor, avoid: Tensor) -> Tensor:
    """How much faces are like what they are to be told apart from.

    Args:
        embedding: unit vectors ``[N, D]``, or ``[N, K, D]`` of an `EncoderEnsemble`.
        avoid: unit vectors ``[N, M, D]`` or ``[N, M, K, D]``, M of each face; a row of zeros stands for none.

    Returns:
        Cosines ``[N, M]`` or ``[N, M, K]``; -1 for a row of zeros.

    Example:
        >>> avoided_cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.6, 0.8], [0.0, 0.0]]])).tolist()
        [[0.6000000238418579, -1.0]]
    """
    cosines = (embedding.unsqueeze(1) * avoid).sum(-1)
    somebody = avoid.flatten(2).any(2)  # [N, M]: of an ensemble a row stands for all its members
    return torch.where(somebody.reshape(*somebody.shape, *[1] * (avoid.ndim - 3)), cosines, -1.0)


def no_faces_to_avoid(reference: Tensor) -> Tensor:
    """What ``avoid`` is where nobody is to be told apart: ``[N, 0, D]`` or ``[N, 0, K, D]``.

    Args:
        reference: embeddings of the originals, ``[N, D]`` or ``[N, K, D]``.

    Example:
        >>> no_faces_to_avoid(torch.zeros(3, 2, 128)).shape
        torch.Size([3, 0, 2, 128])
    """
    return reference.new_zeros(len(reference), 0, *reference.shape[1:])


def judged_probability(
    embedding: Tensor, given: Mapping[str, Tensor], threshold: float, limit: float
) -> Tensor:
    """`match_probability`, with a face that is like one of those to be told apart from held at the threshold.

    A face below the threshold whose cosine with one of them is above ``limit`` counts as at the threshold, and a little
    more the more it is above: so a round is judged by the own person first, and by the others once that one is lost.

    Args:
        embedding: unit vectors ``[N, D]`` of the images in question, or ``[N, K, D]``.
        given: ``reference``, those of the originals, of the same shape, and ``avoid`` as for `avoided_cosines`.
        threshold: h, a probability.
        limit: cosine in [-1, 1] with one of them that is low enough; 1 to leave them out of it.

    Returns:
        ``[N]`` in [0, 1]; below the threshold where both are reached.

    Example:
        >>> known = {"reference": torch.tensor([[-1.0, 0.0]]), "avoid": torch.tensor([[[0.0, 1.0]]])}
        >>> judged_probability(torch.tensor([[0.0, 1.0]]), known, 0.6, 0.2) > 0.6
        tensor([True])
    """
    embedding = embedding.to(given["reference"].dtype)  # inside torch.autocast a recogniser may give another
    probability = match_probability(embedding, given["reference"])
    nearest = avoided_cosines(embedding, given["avoid"]).flatten(1)
    excess = torch.cat([nearest, nearest.new_full((len(nearest), 1), -1.0)], dim=1).amax(1) - limit
    held = probability.clamp_min(threshold) + _AVOID_SHARE * excess
    return torch.where(excess > 0, held, probability)
