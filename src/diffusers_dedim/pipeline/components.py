"""The parts of the pipeline: any `torch.nn.Module` may be one, and they move and pass on together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from diffusers_dedim.encoders.ensemble import EncoderEnsemble
from diffusers_dedim.models.discriminator import PatchDiscriminator
from diffusers_dedim.models.landmarks import LandmarkRegressor
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.models.visibility import VisibilityNet

if TYPE_CHECKING:
    from typing_extensions import Self


# The first of a part's classes is the one of a folder that does not say.
OWN_COMPONENTS: dict[str, tuple[type[ModelMixin], ...]] = {
    "face_encoder": (MobileFaceNet, EncoderEnsemble),
    "landmarker": (LandmarkRegressor,),
    "visibility": (VisibilityNet,),
    "discriminator": (PatchDiscriminator,),
}
OPTIONAL_COMPONENTS = ("visibility", "discriminator")
"""What a folder may lack: those that were saved before there was such a part load as they did."""
_WHERE = ("revision", "variant", "cache_dir", "local_files_only", "token", "force_download", "proxies")
_PACKAGE = "diffusers_dedim"
# diffusers takes a class it does not know from `<component>/<library>.py`, and only with trust_remote_code=True.
_COMPONENT_CODE = '''"""Where diffusers finds this network's class when it is allowed to run code of the repository."""

from diffusers_dedim import (
    EncoderEnsemble,
    LandmarkRegressor,
    MobileFaceNet,
    PatchDiscriminator,
    VisibilityNet,
)

__all__ = ["EncoderEnsemble", "LandmarkRegressor", "MobileFaceNet", "PatchDiscriminator", "VisibilityNet"]
'''
# Exactly one subclass of DiffusionPipeline may be visible in this file.
_PIPELINE_CODE = '''"""For diffusers' `from_pretrained(..., custom_pipeline="pipeline", trust_remote_code=True)`."""

from diffusers_dedim import DeDiMPipeline

__all__ = ["DeDiMPipeline"]
'''


def load_own_components(source: str, options: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Load our parts from their subfolders, but those in ``options`` already and optional ones that are not there.

    Args:
        source: folder or Hub id.
        options: keywords of ``from_pretrained``; where to look (revision, variant, token, ...) is taken from them.
            The type is not: they stay in float32, because their scores are reported.

    Raises:
        OSError: there is no such folder or repository, or it lacks recogniser or landmark model.
        ValueError: a part is of a class that is none of ours, or not whole.
    """
    where = {name: options[name] for name in _WHERE if name in options}
    return {
        name: _own_class(source, name, classes, where).from_pretrained(source, subfolder=name, **where)
        for name, classes in OWN_COMPONENTS.items()
        if name not in options and (name not in OPTIONAL_COMPONENTS or _is_there(source, name, where))
    }


def _is_there(source: str, name: str, where: Mapping[str, Any]) -> bool:
    """Whether a folder or repository has this part.

    Where the Hub cannot be reached, what is kept of the repository on this machine is the answer: a part that it has
    was fetched with the others.

    Raises:
        OSError: there is no such repository, or the Hub answers with something else.
    """
    if Path(source).is_dir():
        return (Path(source) / name).is_dir()
    where = {option: value for option, value in where.items() if option != "variant"}
    try:
        OWN_COMPONENTS[name][0].load_config(source, subfolder=name, **where)
    except OSError as error:
        if isinstance(error.__context__, EntryNotFoundError):  # there, or among what is kept of it here
            return False
        raise
    return True


def _own_class(
    source: str, name: str, classes: Sequence[type[ModelMixin]], where: Mapping[str, Any]
) -> type[Any]:
    """The class that the part's ``config.json`` names; it is asked only where there is a choice."""
    if len(classes) == 1:
        return classes[0]
    where = {option: value for option, value in where.items() if option != "variant"}
    return class_named(classes[0].load_config(source, subfolder=name, **where), name, source)


def class_named(config: Mapping[str, Any], name: str, source: str | Path) -> type[Any]:
    """The class of ours that a part's ``config.json`` names.

    Args:
        config: what the file holds.
        name: of the part.
        source: where it lies, for the message.

    Raises:
        ValueError: it names none of those that the part may have.
    """
    classes = {own.__name__: own for own in OWN_COMPONENTS[name]}
    found = config.get("_class_name", next(iter(classes)))
    if found not in classes:
        raise ValueError(f"{name}: {source} holds a {found}, expected {' or '.join(classes)}.")
    return classes[found]


def own_classes(components: Mapping[str, Any]) -> dict[str, str]:
    """Class names of the parts that are of this package's classes, which can be named in ``model_index.json``."""
    return {
        name: type(components[name]).__name__
        for name, classes in OWN_COMPONENTS.items()
        if type(components.get(name)) in classes
    }


def write_loading_files(folder: Path, classes: Mapping[str, str]) -> None:
    """Complete a saved pipeline so that any way of loading finds its parts.

    ``model_index.json`` names the parts in ``classes`` as ``["diffusers_dedim", class]`` and no other part of ours;
    ``pipeline.py`` and a module in each part's subfolder let `DiffusionPipeline` load them as remote code.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for name in OWN_COMPONENTS:
        index.pop(name, None)
        if name in classes:
            index[name] = [_PACKAGE, classes[name]]
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{_PACKAGE}.py").write_text(_COMPONENT_CODE)
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "pipeline.py").write_text(_PIPELINE_CODE)


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
    """Return the module, wrapped where it has no ``device`` and ``dtype`` of its own, or cannot be saved.

    Example:
        >>> as_component(nn.Linear(2, 2)).dtype
        torch.float32
    """
    if isinstance(module, EncoderEnsemble) and not module.can_be_saved:
        return PlainModule(module)  # diffusers would try to save it; and a member may have no numbers at all
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
    right = (lengths - 1).abs() < 0.01  # a bfloat16 vector is off by less; refuses nan too
    if not bool(right.all()):
        wrong = [
            str(place) for place, fits in enumerate(right.reshape(count, -1).all(0).tolist(), 1) if not fits
        ]
        members = f" of member(s) {', '.join(wrong)} of {reference.shape[1]}" if reference.ndim == 3 else ""
        raise ValueError(
            f"face_encoder: expected unit embeddings{members}, got lengths from {lengths.min():.3g} to "
            f"{lengths.max():.3g}; end it with torch.nn.functional.normalize."
        )
