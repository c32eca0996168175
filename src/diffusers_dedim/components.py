"""The parts of the pipeline: any `torch.nn.Module` may be one, and they move and pass on together."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class PlainModule(nn.Module):
    """Give a plain module the ``device`` and ``dtype`` that `DiffusionPipeline` asks of its parts.

    Attributes:
        module: the module itself.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        if (
            next(self.parameters(), None) is None
        ):  # accelerate's offload hooks ask the first one for its device
            self.register_parameter("placeholder", nn.Parameter(torch.empty(0), requires_grad=False))

    @property
    def device(self) -> torch.device:
        """Where the module's numbers are; the CPU if it has none."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the module's numbers; float32 if it has none."""
        return self._any_tensor().dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def _any_tensor(self) -> torch.Tensor:
        return next(chain(self.parameters(), self.buffers()), torch.empty(0))


def as_component(module: nn.Module) -> nn.Module:
    """Return the module, wrapped where it has no ``device`` and ``dtype`` of its own.

    Example:
        >>> as_component(nn.Linear(2, 2)).dtype
        torch.float32
    """
    return module if hasattr(module, "device") and hasattr(module, "dtype") else PlainModule(module)


class ComposablePipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers ships no types
    """How a pipeline with plain modules, a face detector and parts unknown to diffusers moves and is derived."""

    _own_components: ClassVar[tuple[str, ...]] = ()

    @property
    def device(self) -> torch.device:
        """The denoiser's device; the base class asks any component, and a plain ``nn.Module`` cannot tell."""
        return torch.device(self.unet.device)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Build a pipeline from the parts of another: a `DDPMPipeline`, or one of our own, which keeps its parts.

        Args:
            pipeline: gives denoiser and scheduler and, where it has them, recogniser, landmark model and face
                detector; a part that is missing is the bundled one. The parts are shared, not copied.
            **kwargs: parts by name, instead of the pipeline's; ``dtype`` of the denoiser, by default as it is.

        Example:
            >>> DeDiMPipeline.from_pipe(ddpm_pipeline)  # doctest: +SKIP
        """
        for name in cls._own_components:
            if name not in kwargs and getattr(pipeline, name, None) is not None:
                kwargs[name] = getattr(pipeline, name)  # diffusers drops it: its type is not the signature's
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = kwargs.get("unet", pipeline.unet).dtype  # diffusers would cast to float32
        new: Self = super().from_pipe(pipeline, **kwargs)
        new.face_detector = getattr(pipeline, "face_detector", new.face_detector)
        return new.to(new.device)  # bundled parts follow

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move all parts and the face detector to a device; a number type is the denoiser's alone.

        Recogniser and landmark model stay in their own type, because their scores are reported.

        Args:
            *args: a device, a number type, or both, in any order, as for ``torch.nn.Module.to``.
            **kwargs: ``device``, ``dtype`` and what else `DiffusionPipeline.to` takes.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: a number type is given twice, or diffusers refuses the device.

        Example:
            >>> pipe.to("cuda", torch.float16)  # doctest: +SKIP
        """
        dtypes = [argument for argument in args if isinstance(argument, torch.dtype)]
        named = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        dtypes += [] if named is None else [named]
        if len(dtypes) > 1:
            raise ValueError(f"dtype: expected it once, got {dtypes}.")
        super().to(*(argument for argument in args if not isinstance(argument, torch.dtype)), **kwargs)
        for dtype in dtypes:
            self.unet.to(dtype=dtype)
        # other devices (mps) lack operations that MTCNN needs; a user's own detector may have no `to`
        if self.device.type in ("cpu", "cuda") and hasattr(self.face_detector, "to"):
            self.face_detector.to(self.device)
        return self


def check_embeddings(reference: Tensor, count: int) -> None:
    """Refuse a recogniser whose cosines would mean nothing.

    Args:
        reference: its embeddings of ``count`` crops, ``[N, D]`` or ``[N, K, D]``.
        count: N.

    Raises:
        ValueError: the shape is another, or the vectors are not of length 1.

    Example:
        >>> check_embeddings(torch.eye(2), 2)
    """
    if not isinstance(reference, Tensor) or reference.ndim not in (2, 3) or len(reference) != count:
        shape = list(reference.shape) if isinstance(reference, Tensor) else type(reference).__name__
        raise ValueError(f"face_encoder: expected embeddings of shape [{count}, D], got {shape}.")
    lengths = reference.detach().float().norm(dim=-1)
    if not bool(((lengths - 1).abs() < 0.01).all()):  # a bfloat16 vector is off by less; refuses nan too
        raise ValueError(
            f"face_encoder: expected unit embeddings, got lengths from {lengths.min():.3g} to {lengths.max():.3g}; "
            "end it with torch.nn.functional.normalize."
        )
