"""Chain step callbacks: the guidance first, then the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

StepCallback = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor]]


class CallbackView:
    """The pipeline as a callback sees it: itself, but with the scheduler whose timesteps are set."""

    def __init__(self, pipeline: Any, scheduler: DDPMScheduler) -> None:
        self._pipeline, self.scheduler = pipeline, scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


def chain_callbacks(
    callbacks: Sequence[Any], default_inputs: Sequence[str], available: Sequence[str]
) -> StepCallback | None:
    """Return one callback that runs all of them in order; None if there are none.

    Args:
        callbacks: `PipelineCallback` objects or plain functions ``(pipeline, step_index, timestep, tensors) ->
            tensors``; None entries are passed over.
        default_inputs: the tensors a plain function gets; a `PipelineCallback` names its own.
        available: the names there are.

    Raises:
        ValueError: a callback asks for a tensor that does not exist.
        TypeError: when run, a callback returns no dictionary.
    """
    chain: list[tuple[Any, Sequence[str]]] = []
    for callback in callbacks:
        if callback is None:
            continue
        names = getattr(callback, "tensor_inputs", default_inputs)
        unknown = sorted(set(names) - set(available))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected names out of {list(available)}, got {unknown}."
            )
        chain.append((callback, names))
    if not chain:
        return None

    def chained(
        pipeline: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        for callback, names in chain:
            given = {name: tensors[name] for name in names}
            returned = callback(pipeline, step_index, timestep, given)
            if not isinstance(returned, dict):
                raise TypeError(
                    f"callback_on_step_end: expected the callback to return its dictionary of tensors, got "
                    f"{type(returned).__name__}; end it with `return callback_kwargs`."
                )
            tensors = {**tensors, **returned}
        return tensors

    return chained
