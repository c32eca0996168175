from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_sampling import SIZE, faces, scheduler_for, seeded, toy_unet
from torch import Tensor
from toys import ToyEncoder

from diffusers_dedim.face_queue import FaceQueue, QueuedFace, SampledFace
from diffusers_dedim.guidance import IdentityGuidance
from diffusers_dedim.sampling import SampleResult, sample_dedim

COUNT, ROUNDS, STEPS = 9, 6, 4


def sampler(unet: Any = toy_unet) -> partial[SampleResult]:
    encoder = ToyEncoder(SIZE).double().requires_grad_(False)
    scheduler = scheduler_for(30, STEPS)
    return partial(
        sample_dedim, unet=unet, scheduler=scheduler, face_encoder=encoder, threshold=0.35,
        guidance=IdentityGuidance(20.0), pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
    )  # fmt: skip


def run_queue(queue: FaceQueue, count: int = COUNT) -> dict[int, SampledFace]:
    """Feed the queue as a stream would: only as much as it has places for."""
    x_org, mask = faces(count)
    done: list[SampledFace] = []
    for row, generator in enumerate(seeded(*range(count))):
        queue.add(QueuedFace(row, x_org[row], mask[row], generator))
        while queue.full:
            done += queue.run_round()
    while len(queue):
        done += queue.run_round()
    results = {item.face.owner: item for item in done}
    assert len(results) == len(done) == count
    return results


@pytest.fixture(scope="module")
def unqueued() -> SampleResult:
    result = sampler()(*faces(COUNT), generators=seeded(*range(COUNT)), max_rounds=ROUNDS)
    assert len(set(result.rounds)) > 1  # else nothing is refilled and the comparison says little
    return result


def assert_same(item: SampledFace, unqueued: SampleResult, row: int) -> None:
    # the encoder's matrix product may add in another order for another height
    torch.testing.assert_close(item.crop, unqueued.crops[row], rtol=0, atol=1e-11)
    assert item.probability_history == pytest.approx(unqueued.probability_history[row], abs=1e-11)
    assert item.rounds == unqueued.rounds[row]
    assert item.unet_calls == unqueued.unet_calls[row]
    assert item.reached_threshold == unqueued.reached_threshold[row]
    assert item.error is None


@pytest.mark.parametrize("slots", [1, 2, 5, 100])
def test_each_face_gets_what_it_would_have_got_without_the_queue(unqueued: SampleResult, slots: int) -> None:
    results = run_queue(FaceQueue(sampler(), max_rounds=ROUNDS, slots=slots))
    for row in range(COUNT):
        assert_same(results[row], unqueued, row)


def test_no_place_stays_empty_while_faces_wait() -> None:
    batches: list[int] = []

    def watching(x_t: Tensor, timestep: int) -> Tensor:
        batches.append(len(x_t))
        return toy_unet(x_t, timestep)

    results = run_queue(FaceQueue(sampler(watching), max_rounds=ROUNDS, slots=3))
    assert sum(batches) == sum(item.unet_calls for item in results.values())
    first_short = next(index for index, size in enumerate(batches) if size < 3)
    assert first_short > len(batches) / 2
    assert batches[first_short:] == sorted(batches[first_short:], reverse=True)  # the queue had run dry


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory: 8 bytes"],
)
def test_out_of_memory_halves_the_batch_and_changes_no_result(unqueued: SampleResult, message: str) -> None:
    def small_device(x_t: Tensor, timestep: int) -> Tensor:
        if len(x_t) > 2 and timestep < 20:  # in the middle of a round, when noise has been drawn
            raise RuntimeError(message)
        return toy_unet(x_t, timestep)

    queue = FaceQueue(sampler(small_device), max_rounds=ROUNDS, slots=8)
    results = run_queue(queue)
    assert queue.slots == 2
    for row in range(COUNT):
        assert_same(results[row], unqueued, row)


def test_a_face_that_crashes_takes_no_other_down(unqueued: SampleResult) -> None:
    poisoned = faces(COUNT)[0][4, 0, 0, 0]

    class Crashing(ToyEncoder):
        def forward(self, crops: Tensor) -> Tensor:
            if (crops[:, 0, 0, 0] == poisoned).any():
                raise RuntimeError("this face is poison")
            return super().forward(crops)

    encoder = Crashing(SIZE).double().requires_grad_(False)
    queue = FaceQueue(partial(sampler(), face_encoder=encoder), max_rounds=ROUNDS, slots=4)
    results = run_queue(queue)
    assert str(results.pop(4).error) == "this face is poison"
    assert queue.slots == 4
    for row, item in results.items():
        assert_same(item, unqueued, row)


@pytest.mark.parametrize("name", ["slots", "max_rounds"])
def test_numbers_below_1_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        FaceQueue(sampler(), **{"slots": 1, "max_rounds": 1, name: 0})
