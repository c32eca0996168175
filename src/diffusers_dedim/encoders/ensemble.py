"""Several recognisers as one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from diffusers_dedim.models.mobilefacenet import MobileFaceNet


class EncoderEnsemble(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Guide and judge by several recognisers at once.

    Each keeps its own embedding. `EstimateGuidance` adds up their hinges: a recogniser that a face has left behind
    pushes no further, the others do. A face counts as done, and is reported, by the recogniser that still
    matches it best. `IdentityGuidance` adds up their gradients, as for recognisers that err independently.

    The same cosine may mean more to one recogniser than to another. ``lines`` are the cosines that the same small
    share of strangers reaches; with them all cosines are brought onto the scale of the recogniser whose line is
    highest: c becomes 1 - (1 - c) (1 - highest) / (1 - line), so that a face still matches itself with 1 and all
    lines are one. Threshold, hinge and reported similarity then mean the same for each of them.

    An ensemble of `MobileFaceNet` is saved and loaded as any model of diffusers, in a pipeline too: one ``config.json``
    with the settings of each, one file of weights. With other members it is saved with no pipeline; save the members.

    Args:
        encoders: modules from crops ``[N, 3, 112, 112]`` to unit embeddings ``[N, D]``; each may have its own D.
            An ensemble stands for its members, the settings of a `MobileFaceNet` for a new one, which is what
            loading does.
        lines: for each the cosine in (-1, 1) that one in a thousand pairs of strangers reaches, or of another
            share that is the same for all (``python -m benchmarks.score_lines``); None takes cosines as they are.

    Raises:
        ValueError: there is no encoder, settings that `MobileFaceNet` does not have, or not one line for each encoder.

    Example:
        >>> from diffusers_dedim import MobileFaceNet
        >>> both = EncoderEnsemble([MobileFaceNet(), MobileFaceNet(64)]).eval()
        >>> both(torch.zeros(3, 3, 112, 112)).shape
        torch.Size([3, 2, 128])
    """

    config_name = "config.json"
    # Its scores are reported, so a pipeline that is loaded in half precision keeps it whole.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["encoders"]

    def __init__(
        self, encoders: Sequence[nn.Module | Mapping[str, Any]], lines: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders: expected at least one encoder, got none.")
        made = [member for place, each in enumerate(encoders, 1) for member in _members(place, each)]
        self.encoders: nn.ModuleList = nn.ModuleList(made)
        self._shares = _shares(lines, len(made))
        if self.can_be_saved:
            settings = [_settings(encoder) for encoder in self.encoders]
            self.register_to_config(encoders=settings, lines=None if lines is None else list(lines))

    def __getattr__(self, name: str) -> Any:
        """Look members up as any module does: diffusers would look in the settings, which name them too, and warn."""
        return nn.Module.__getattr__(self, name)

    @property
    def can_be_saved(self) -> bool:
        """Whether all members are of the class that `from_pretrained` makes."""
        return all(type(encoder) is MobileFaceNet for encoder in self.encoders)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load an ensemble that was saved by ``save_pretrained``, or one on the Hub.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            **kwargs: as for `ModelMixin.from_pretrained`.

        Raises:
            OSError: there is no such folder or repository.
            ValueError: weights of a member are missing, left over or not finite; diffusers would fill in random ones.
        """
        with_info = kwargs.pop("output_loading_info", False)
        source = f"{pretrained_model_name_or_path}/{kwargs.get('subfolder') or ''}".rstrip("/")
        model, info = super().from_pretrained(
            str(pretrained_model_name_or_path), output_loading_info=True, **kwargs
        )
        for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds, beside its members',")):
            if info[kind]:
                names = sorted(info[kind])
                members = ", ".join(sorted({str(int(name.split(".")[1]) + 1) for name in names}, key=int))
                raise ValueError(
                    f"encoders: {source} {what} {len(names)} weights of member(s) {members} "
                    f"({len(model.encoders)} in its config.json), {names[0]} among them; save the ensemble again."
                )
        for place, encoder in enumerate(model.encoders, 1):
            if not all(bool(value.isfinite().all()) for value in encoder.state_dict().values()):
                raise ValueError(f"encoders: {source} has weights of member {place} that are not finite.")
        return (model, info) if with_info else model

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write ``config.json``; ``save_pretrained`` does it first.

        Raises:
            ValueError: a member is of another class than `MobileFaceNet`.
        """
        if not self.can_be_saved:
            names = ", ".join(type(encoder).__name__ for encoder in self.encoders)
            raise ValueError(
                f"encoders: expected members of MobileFaceNet to save them together, got {names}; "
                "save each by itself."
            )
        super().save_config(save_directory, **kwargs)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops by each of K recognisers.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            Unit vectors ``[N, K, D]``; shorter embeddings end in zeros, which no cosine sees. With ``lines`` there is
            one number more in front, the same for all faces, which is what moves the scale.

        Raises:
            ValueError: a member takes crops of another size, or answers in another shape.
        """
        embeddings: list[Tensor] = []
        for place, encoder in enumerate(self.encoders, 1):
            try:
                embedding = encoder(crops)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # torch's word for sizes that do not fit
                raise ValueError(
                    f"encoders: member {place} of {len(self.encoders)}, {type(encoder).__name__}, does not take crops "
                    f"{list(crops.shape)} ({error}); put any resizing into it."
                ) from error
            if embedding.ndim != 2 or len(embedding) != len(crops):
                raise ValueError(
                    f"encoders: expected embeddings [{len(crops)}, D] of {type(encoder).__name__}, got "
                    f"{list(embedding.shape)}."
                )
            embeddings.append(_rescale(embedding, self._shares[place - 1]))
        longest = max(embedding.shape[1] for embedding in embeddings)
        return torch.stack([nn.functional.pad(e, (0, longest - e.shape[1])) for e in embeddings], dim=1)


class FusedEncoder(nn.Module):
    """The members of an ensemble as one recogniser, whose cosine is the mean of theirs.

    For what compares embeddings ``[N, D]``: an attack that needs one distance, a search by the guides together.

    Args:
        encoder: gives ``[N, K, D]``, or ``[N, D]``, which stays as it is.

    Example:
        >>> from diffusers_dedim import MobileFaceNet
        >>> both = FusedEncoder(EncoderEnsemble([MobileFaceNet(), MobileFaceNet()]).eval())
        >>> both(torch.zeros(3, 3, 112, 112)).shape
        torch.Size([3, 256])
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops ``[N, 3, 112, 112]`` in [-1, 1]: unit vectors ``[N, K * D]``."""
        embedding: Tensor = self.encoder(crops)
        if embedding.ndim == 2:
            return embedding
        return embedding.flatten(1) / math.sqrt(embedding.shape[1])


def _shares(lines: Sequence[float] | None, count: int) -> list[float | None]:
    """How much of its cosine each member keeps, beside a constant; None for all of it, without one."""
    if lines is None:
        return [None] * count
    if len(lines) != count or not all(-1 < line < 1 for line in lines):
        raise ValueError(
            f"lines: expected a cosine between -1 and 1 for each of the {count} encoders, got {list(lines)}."
        )
    return [(1 - max(lines)) / (1 - line) for line in lines]


def _rescale(embedding: Tensor, share: float | None) -> Tensor:
    """Unit vectors whose cosines are ``share`` c + 1 - ``share``."""
    if share is None:
        return embedding
    constant = embedding.new_full((len(embedding), 1), math.sqrt(1 - share))
    return torch.cat([constant, math.sqrt(share) * embedding], dim=1)


def _settings(encoder: Any) -> dict[str, Any]:
    """What makes the member anew; diffusers' own notes left out."""
    return {name: value for name, value in encoder.config.items() if not name.startswith("_")}


def _members(place: int, each: nn.Module | Mapping[str, Any]) -> list[nn.Module]:
    """What stands for one of the encoders that are given."""
    if isinstance(each, EncoderEnsemble):
        return list(each.encoders)
    return [_make(place, each) if isinstance(each, Mapping) else each]


def _make(place: int, settings: Mapping[str, Any]) -> MobileFaceNet:
    known = [name for name in inspect.signature(MobileFaceNet.__init__).parameters if name != "self"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"encoders: member {place} has settings {unknown} that MobileFaceNet does not have; expected some of "
            f"{known}. Its crops are of 112 px."
        )
    made: MobileFaceNet = MobileFaceNet(**settings)
    return made
