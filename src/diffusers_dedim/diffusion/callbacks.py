"""Callbacks of a step: what changes the noise that it is taken from, and what changes where it has led.

diffusers calls a callback after the scheduler's step. A guidance of ours that changes the estimate of the clean face
has to come before it, so that the scheduler clips, remembers and steps from the changed one: it has, besides its call
or instead of it, a method ``before_step`` with the same arguments, whose ``noise_pred`` is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffusers import DDPMScheduler
from diffusers.callbacks import MultiPipelineCallbacks
from torch import Tensor

StepCallback = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor]]

# What there is at a step; before it, all but where it leads.
STEP_TENSORS = ("sample", "prev_sample", "noise_pred", "x_org", "mask", "reference", "avoid")


class CallbackView:
    """The pipeline as a callback sees it: itself, but with the scheduler whose timesteps are set."""

    def __init__(self, pipeline: Any, scheduler: DDPMScheduler) -> None:
        self._pipeline = pipeline
        self.scheduler: DDPMScheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class StepCallbacks:
    """Several callbacks as one: before the step those that act there, in their order, and after it all of them.

    Args:
        callbacks: `PipelineCallback` objects, `MultiPipelineCallbacks` or plain functions ``(pipeline, step_index,
            timestep, tensors) -> tensors``; None entries are passed over.
        default_inputs: the tensors a plain function gets; a `PipelineCallback` names its own.
        available: the names there are.

    Raises:
        ValueError: a callback asks for a tensor that does not exist.

    Example:
        >>> class Halve:
        ...     def before_step(self, pipeline, step_index, timestep, tensors):
        ...         return {"noise_pred": tensors["noise_pred"] / 2}
        ...     def __call__(self, pipeline, step_index, timestep, tensors):
        ...         return tensors
        >>> callbacks = StepCallbacks([Halve()])
        >>> callbacks.before_step(None, 0, 99, dict.fromkeys(STEP_TENSORS, 1.0))["noise_pred"]
        0.5
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        default_inputs: Sequence[str] = STEP_TENSORS,
        available: Sequence[str] = STEP_TENSORS,
    ) -> None:
        given = [callback for callback in callbacks if callback is not None]
        self._after = [(callback, _names(callback, default_inputs, available)) for callback in given]
        self._before = [
            (
                part.before_step,
                [name for name in _names(part, default_inputs, available) if name != "prev_sample"],
            )
            for callback in given
            for part in _parts(callback)
            if hasattr(part, "before_step")
        ]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._after)

    def before_step(
        self, pipeline: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run what acts before the step; the ``noise_pred`` of the result is what the step is to be taken from.

        Raises:
            TypeError: one of them returns no dictionary.
        """
        for act, names in self._before:
            returned = act(pipeline, step_index, timestep, {name: tensors[name] for name in names})
            tensors = {**tensors, **_checked(returned, "before_step")}
        return tensors

    def __call__(
        self, pipeline: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run the callbacks after the step; the ``prev_sample`` of the result is where the next one begins.

        Raises:
            TypeError: one of them returns no dictionary.
        """
        for callback, names in self._after:
            returned = callback(pipeline, step_index, timestep, {name: tensors[name] for name in names})
            tensors = {**tensors, **_checked(returned, "callback_on_step_end")}
        return tensors


def chain_callbacks(
    callbacks: Sequence[Any], default_inputs: Sequence[str], available: Sequence[str]
) -> StepCallbacks | None:
    """Return `StepCallbacks` of these, for the ``guidance`` of `sample_dedim`; None if there are none.

    Raises:
        ValueError: a callback asks for a tensor that does not exist.
    """
    return StepCallbacks(callbacks, default_inputs, available) or None


def _parts(callback: Any) -> Iterator[Any]:
    """The callback itself, or those that a `MultiPipelineCallbacks` holds: it knows nothing of ``before_step``."""
    if isinstance(callback, MultiPipelineCallbacks):
        for part in callback.callbacks:
            yield from _parts(part)
    else:
        yield callback


def _names(callback: Any, default_inputs: Sequence[str], available: Sequence[str]) -> Sequence[str]:
    names: Sequence[str] = getattr(callback, "tensor_inputs", default_inputs)
    unknown = sorted(set(names) - set(available))
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs: expected names out of {list(available)}, got {unknown}."
        )
    return names


def _checked(returned: Any, name: str) -> dict[str, Tensor]:
    if not isinstance(returned, dict):
        raise TypeError(
            f"{name}: expected the callback to return its dictionary of tensors, got "
            f"{type(returned).__name__}; end it with `return callback_kwargs`."
        )
    return returned
