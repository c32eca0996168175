from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_dedim.diffusion.callbacks import STEP_TENSORS, CallbackView, StepCallbacks, chain_callbacks

AVAILABLE = ["sample", "prev_sample", "mask"]


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.full((1,), float(index)) for index, name in enumerate(AVAILABLE)}


class AddMask(PipelineCallback):
    """Asks for tensors of its own."""

    tensor_inputs = ("prev_sample", "mask")

    def callback_fn(self, pipeline: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        assert sorted(given) == ["mask", "prev_sample"]
        return {**given, "prev_sample": given["prev_sample"] + given["mask"]}


def double(pipeline: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
    assert sorted(given) == ["prev_sample"]
    return {"prev_sample": given["prev_sample"] * 2}


class AddNoise(PipelineCallback):
    """Acts before the step; after it, it doubles what came out."""

    tensor_inputs = ("noise_pred", "prev_sample")

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def before_step(self, pipeline: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        assert sorted(given) == ["noise_pred"]  # where the step leads is not known yet
        return {"noise_pred": given["noise_pred"] * 10 + self.amount}

    def callback_fn(self, pipeline: Any, index: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        return {"prev_sample": given["prev_sample"] * 2}


def test_what_acts_before_the_step_sees_what_the_one_before_it_returned() -> None:
    chained = StepCallbacks([AddNoise(1), double, None, AddNoise(2)], ["prev_sample"])
    given = {"noise_pred": torch.ones(1), "sample": torch.zeros(1)}
    result = chained.before_step(None, 0, 9, given)
    assert result["noise_pred"].item() == 112
    assert given["noise_pred"].item() == 1  # the caller's own is left alone
    assert chained(None, 0, 9, {"prev_sample": torch.ones(1), **given})["prev_sample"].item() == 8


def test_the_parts_of_a_multi_callback_act_before_the_step_too() -> None:
    inner = MultiPipelineCallbacks([AddNoise(3)])
    multi = MultiPipelineCallbacks([AddNoise(1), inner, AddNoise(2)])
    chained = StepCallbacks([multi])
    assert chained.before_step(None, 0, 9, {"noise_pred": torch.ones(1)})["noise_pred"].item() == 1132
    after = chained(None, 0, 9, {"noise_pred": torch.ones(1), "prev_sample": torch.ones(1)})
    assert after["prev_sample"].item() == 8  # each once


def test_a_chain_in_a_chain_is_the_chain() -> None:
    inner = chain_callbacks([AddNoise(1), AddNoise(2)], ["prev_sample"], ["noise_pred", "prev_sample"])
    given = dict.fromkeys(STEP_TENSORS, torch.ones(1))
    before = {name: tensor for name, tensor in given.items() if name != "prev_sample"}
    assert StepCallbacks([inner]).before_step(None, 0, 9, before)["noise_pred"].item() == 112
    assert StepCallbacks([inner])(None, 0, 9, given)["prev_sample"].item() == 4


def test_nothing_before_the_step_changes_nothing() -> None:
    given = tensors()
    assert StepCallbacks([AddMask(), double]).before_step(None, 0, 9, given) == given


def test_nothing_to_run_is_none() -> None:
    assert chain_callbacks([None, None], ["sample"], AVAILABLE) is None


@pytest.mark.parametrize(
    ("order", "expected"), [([AddMask(), double], 6.0), ([double, None, AddMask()], 4.0)]
)
def test_callbacks_run_in_order_on_what_the_one_before_returned(order: list[Any], expected: float) -> None:
    chained = chain_callbacks(order, ["prev_sample"], AVAILABLE)
    assert chained is not None
    result = chained(None, 0, 9, tensors())
    assert result["prev_sample"].item() == expected
    assert sorted(result) == sorted(AVAILABLE)


def test_a_multi_callback_gets_what_its_parts_ask_for() -> None:
    chained = chain_callbacks([MultiPipelineCallbacks([AddMask(), AddMask()])], ["sample"], AVAILABLE)
    assert chained is not None
    assert chained(None, 0, 9, tensors())["prev_sample"].item() == 5


def test_an_unknown_tensor_is_refused() -> None:
    text = (
        "callback_on_step_end_tensor_inputs: expected names out of ['sample', 'prev_sample', 'mask'], "
        "got ['latents']."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        chain_callbacks([double], ["latents"], AVAILABLE)


def test_a_callback_that_returns_nothing_is_told() -> None:
    chained = chain_callbacks([lambda *_: None], ["sample"], AVAILABLE)
    assert chained is not None
    text = "callback_on_step_end: expected the callback to return its dictionary of tensors, got NoneType"
    with pytest.raises(TypeError, match=re.escape(text)):
        chained(None, 0, 9, tensors())
    early = StepCallbacks([SimpleNamespace(before_step=lambda *_: None)])
    text = "before_step: expected the callback to return its dictionary of tensors, got NoneType"
    with pytest.raises(TypeError, match=re.escape(text)):
        early.before_step(None, 0, 9, dict.fromkeys(STEP_TENSORS, torch.ones(1)))


def test_the_view_is_the_pipeline_with_another_scheduler() -> None:
    pipeline = SimpleNamespace(face_encoder="encoder", scheduler="theirs")
    view = CallbackView(pipeline, "ours")  # type: ignore[arg-type]
    assert (view.face_encoder, view.scheduler) == ("encoder", "ours")
    assert pipeline.scheduler == "theirs"
    with pytest.raises(AttributeError, match="nothing"):
        _ = view.nothing
