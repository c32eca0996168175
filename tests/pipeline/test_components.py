from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import ToyEncoder, ToyLandmarker, in_bytes, tiny_preset, tiny_unet

from diffusers_dedim import DeDiMPipeline, LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.pipeline.components import check_embeddings

Pixels = NDArray[np.uint8]
EASY = tiny_preset(threshold=0.999, max_rounds=1)
PUSHED = tiny_preset(guidance="estimate", guidance_scale=0.05, threshold=0.999, max_rounds=1)


def protect(pipe: DeDiMPipeline, crop: Pixels, **changes: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return in_bytes(pipe(crop, **{"preset": EASY, "aligned": True, "generator": generator, **changes}))


def test_from_a_plain_ddpm_pipeline(crop: Pixels) -> None:
    plain = DDPMPipeline(tiny_unet(), make_scheduler())
    pipe = DeDiMPipeline.from_pipe(plain)
    assert pipe.unet is plain.unet
    bundled = DeDiMPipeline.from_pretrained(unet=tiny_unet(), dtype=torch.float32)
    for name in ("face_encoder", "landmarker"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(bundled, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert pipe.visibility is not None
    assert pipe.discriminator is not None
    pipe.visibility = None  # random blobs show no face
    # bundled landmarks of such may lie anywhere; all that matters is that the whole chain runs
    assert protect(pipe, crop).faces[0].rounds == 1


def test_from_a_plain_ddpm_pipeline_with_parts_by_name(crop: Pixels) -> None:
    encoder = ToyEncoder()
    plain = DDPMPipeline(tiny_unet(), make_scheduler())
    pipe = DeDiMPipeline.from_pipe(plain, face_encoder=encoder, landmarker=ToyLandmarker())
    assert pipe.face_encoder.module is encoder
    assert protect(pipe, crop).faces[0].similarity < 1


@pytest.mark.parametrize("make", [ToyEncoder, MobileFaceNet])
def test_from_one_of_our_own_it_keeps_its_parts(make: Any) -> None:
    """diffusers dropped a MobileFaceNet without a word: its type is not the signature's `nn.Module`."""
    source = DeDiMPipeline(tiny_unet(), make_scheduler(), make(), LandmarkRegressor())
    source.face_detector = lambda photo: []  # a user's own detector, without `to`
    pipe = DeDiMPipeline.from_pipe(source)
    for name in ("unet", "scheduler", "face_encoder", "landmarker", "face_detector"):
        assert getattr(pipe, name) is getattr(source, name)


def test_from_pipe_leaves_the_number_type_alone() -> None:
    plain = DDPMPipeline(tiny_unet().to(torch.bfloat16), make_scheduler())
    pipe = DeDiMPipeline.from_pipe(plain, face_encoder=MobileFaceNet(), landmarker=LandmarkRegressor())
    assert plain.unet.dtype == pipe.unet.dtype == torch.bfloat16
    assert pipe.face_encoder.dtype == pipe.landmarker.dtype == torch.float32
    assert DeDiMPipeline.from_pipe(pipe, dtype=torch.float16).unet.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_denoisers_alone(pipe: DeDiMPipeline, crop: Pixels, dtype: torch.dtype) -> None:
    expected = protect(pipe, crop, preset=PUSHED)
    assert pipe.to(dtype) is pipe
    assert pipe.unet.dtype == dtype
    assert pipe.face_encoder.dtype == pipe.landmarker.dtype == torch.float32
    out = protect(pipe, crop, preset=PUSHED)
    # noise of deviation 0.05 at t_0 = 20 times a denoiser right to 2^-8: under 0.001, or a level; and rounding
    assert abs(out.images[0].astype(int) - expected.images[0]).max() <= 2
    # the gradient too is computed in half precision; of this encoder it is a sum of 37,632 random numbers
    assert out.faces[0].similarity == pytest.approx(expected.faces[0].similarity, abs=0.05)


def test_a_type_twice_is_refused(pipe: DeDiMPipeline) -> None:
    with pytest.raises(ValueError, match="dtype: expected it once, got"):
        pipe.to(torch.float16, dtype=torch.bfloat16)
    pipe.to("cpu", torch.float16)
    assert pipe.unet.dtype == torch.float16


def test_the_face_detector_moves_along(pipe: DeDiMPipeline) -> None:
    moved: list[torch.device] = []

    class Detector:
        def to(self, device: torch.device) -> None:
            moved.append(device)

    pipe.face_detector = Detector()
    pipe.to("cpu")
    pipe.to(torch.float16)
    assert moved == [torch.device("cpu")] * 2


@pytest.mark.parametrize("maker", [DDIMScheduler, EulerDiscreteScheduler])
def test_the_scheduler_may_be_swapped(pipe: DeDiMPipeline, crop: Pixels, maker: Any) -> None:
    before = protect(pipe, crop, preset=PUSHED)
    pipe.scheduler = maker.from_config(pipe.scheduler.config)
    timesteps = pipe.scheduler.timesteps.clone()
    out = protect(pipe, crop, preset=PUSHED)
    assert (out.images[0] != before.images[0]).any()
    assert out.faces[0].similarity < 1
    assert torch.equal(pipe.scheduler.timesteps, timesteps)


def test_a_scheduler_of_another_schedule_is_refused_at_the_call(pipe: DeDiMPipeline, crop: Pixels) -> None:
    pipe.scheduler = DDPMScheduler()  # linear betas, diffusers' default: the faces would be noise
    text = (
        "scheduler: the noise schedule of this DDPMScheduler is not the one that the pipeline's denoiser came with; "
        "build it with DDPMScheduler.from_config(pipe.scheduler.config)."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        protect(pipe, crop)


class Scaled(nn.Module):
    def forward(self, crops: Tensor) -> Tensor:
        return 3 * nn.functional.normalize(crops.flatten(1))


def test_embeddings_that_are_no_unit_vectors_are_refused(crop: Pixels) -> None:
    pipe = DeDiMPipeline(tiny_unet(), make_scheduler(), Scaled(), ToyLandmarker())
    text = "face_encoder: expected unit embeddings, got lengths from 3 to 3; end it with torch.nn.functional"
    with pytest.raises(ValueError, match=text):
        protect(pipe, crop)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (torch.ones(2, 3, 4, 4), "face_encoder: expected embeddings of shape [2, D], got [2, 3, 4, 4]."),
        (torch.eye(3), "face_encoder: expected embeddings of shape [2, D], got [3, 3]."),
        ((torch.eye(2),), "face_encoder: expected embeddings of shape [2, D], got tuple."),
        (
            torch.full((2, 4), torch.nan),
            "face_encoder: expected unit embeddings, got lengths from nan to nan",
        ),
    ],
)
def test_other_embeddings_are_refused(reference: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        check_embeddings(reference, 2)


@pytest.mark.slow
def test_a_compiled_denoiser_is_compiled_once(pipe: DeDiMPipeline, crop: Pixels) -> None:
    """Not once a timestep: the timestep goes in as a tensor."""
    expected = protect(pipe, crop, num_inference_steps=8)
    graphs: list[Any] = []

    def backend(
        graph: torch.fx.GraphModule, inputs: list[Tensor]
    ) -> Any:  # runs the graph as it is: no compiler
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    pipe.unet.compile(backend=backend)
    out = protect(pipe, crop, num_inference_steps=8)
    assert len(graphs) == 1
    np.testing.assert_array_equal(out.images[0], expected.images[0])


def test_cpu_offload_without_an_accelerator_is_refused(
    pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a machine without one
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu")
    with pytest.raises(RuntimeError, match="requires accelerator, but not found"):
        pipe.enable_model_cpu_offload()


def test_offload_hooks_in_the_pipelines_order(
    pipe: DeDiMPipeline, crop: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's hooks on the CPU: the wiring of a GPU without one. The toy landmarker has no parameters."""
    expected = protect(pipe, crop, preset=PUSHED)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda *_: None)
    pipe.enable_model_cpu_offload(device="cpu")
    assert [type(hook.hook).__name__ for hook in pipe._all_hooks] == ["CpuOffload"] * 3
    for _ in range(2):
        out = protect(pipe, crop, preset=PUSHED)
        np.testing.assert_array_equal(out.images[0], expected.images[0])
