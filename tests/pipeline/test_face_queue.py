from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_sampling import SIZE, faces, scheduler_for, seeded, toy_unet
from toys import ToyEncoder

from diffusers_dedim.diffusion.guidance import IdentityGuidance
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.pipeline.queue import FaceQueue, QueuedFace, SampledFace

COUNT, ROUNDS, STEPS = 9, 6, 4


def sampler(unet: Any = toy_unet) -> partial[SampleResult]:
    encoder = ToyEncoder(SIZE).double().requires_grad_(False)
    scheduler = scheduler_for(30, STEPS)
    return partial(
        sample_dedim,
        unet=unet,
        scheduler=scheduler,
        face_encoder=encoder,
        threshold=0.35,
        guidance=IdentityGuidance(20.0),
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
    )


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
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_changes_no_result(
    unqueued: SampleResult, error: Exception
) -> None:
    sizes: list[int] = []

    def small_device(x_t: Tensor, timestep: int) -> Tensor:
        if len(x_t) > 2 and timestep < 20:  # in the middle of a round, when noise has been drawn
            sizes.append(len(x_t))
            raise error
        return toy_unet(x_t, timestep)

    queue = FaceQueue(sampler(small_device), max_rounds=ROUNDS, slots=8)
    results = run_queue(queue)
    assert queue.slots == 2
    assert sizes == [
        8,
        4,
    ]  # what failed once is not tried again, with none of the faces and in no later round
    for row in range(COUNT):
        assert_same(results[row], unqueued, row)


def test_after_a_lack_of_memory_all_faces_go_on_in_pieces_that_fit() -> None:
    calls: list[int] = []

    def sample(x_org: Tensor, mask: Tensor, *, generators: list[Any], **_: Any) -> SampleResult:
        calls.append(len(x_org))
        if len(x_org) > 4:
            raise RuntimeError("CUDA error: out of memory")
        many = len(x_org)
        return SampleResult(
            crops=x_org,
            probability_history=((1.0, 0.5),) * many,
            unet_calls=(1,) * many,
            reached_threshold=(False,) * many,
            rounds=(1,) * many,
        )

    queue = FaceQueue(sample, max_rounds=12, slots=64)
    for row in range(64):
        queue.add(QueuedFace(row, torch.zeros(3, 2, 2), torch.ones(1, 2, 2), torch.Generator()))
    done = []
    while len(queue):
        done += queue.run_round()
    assert [item.rounds for item in done] == [12] * 64
    assert [size for size in calls if size > 4] == [64, 32, 16, 8]
    assert calls.count(4) == len(calls) - 4 == 12 * 64 / 4


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
