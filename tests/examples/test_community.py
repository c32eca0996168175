from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline
from PIL import Image
from toys import MEAN_FACE, ToyEncoder, tiny_unet

from diffusers_dedim import IdentityGuidance, make_scheduler, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.faces import landmark_mask
from diffusers_dedim.pipeline.inputs import child_generator

FILE = Path(__file__).parents[2] / "examples" / "community" / "dedim.py"
SETTINGS = {"start_timestep": 20, "num_inference_steps": 3, "guidance_scale": 100.0, "max_rounds": 2}


def crops(count: int = 2) -> torch.Tensor:
    """In [0, 1], as diffusers' pipelines take them."""
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(0)) / 2 + 0.25


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("community_dedim", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe(module: ModuleType) -> Any:
    pipe = module.DeDiMCropPipeline(tiny_unet(), make_scheduler(), ToyEncoder().requires_grad_(False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(threshold: float, generator: torch.Generator) -> Any:
    unet, encoder, scheduler = tiny_unet().eval(), ToyEncoder().requires_grad_(False), make_scheduler()
    scheduler.set_timesteps(timesteps=dedim_timesteps(20, 3))
    return sample_dedim(
        2 * crops() - 1,
        landmark_mask(MEAN_FACE[None]).expand(2, -1, -1, -1),
        unet=lambda x, t: unet(x, t).sample,
        scheduler=scheduler,
        face_encoder=encoder,
        threshold=threshold,
        max_rounds=2,
        generators=[child_generator(generator) for _ in range(2)],
        guidance=IdentityGuidance(100.0),
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
    )


@pytest.mark.parametrize("threshold", [0.01, 0.5])
def test_it_samples_what_the_package_samples(pipe: Any, threshold: float) -> None:
    """The same operations in the same order on the same seed: bit for bit."""
    expected = ours(threshold, torch.Generator().manual_seed(5))
    out = pipe(
        crops(),
        landmark_mask(MEAN_FACE[None]),
        threshold=threshold,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
        **SETTINGS,
    )
    assert torch.equal(out.images, expected.crops.mul(0.5).add(0.5).clamp(0, 1))
    assert out.probabilities == [history[-1] for history in expected.probability_history]
    assert (out.rounds, out.reached_threshold) == (expected.rounds, expected.reached_threshold)
    assert max(out.probabilities) < 0.999  # the guidance did something


LOAD = """
import sys, torch
sys.path.append(sys.argv[3])
from toys import ToyEncoder
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True,
                                         face_encoder=ToyEncoder())
pipe.set_progress_bar_config(disable=True)
crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
out = pipe(crops, start_timestep=20, num_inference_steps=3, max_rounds=1, threshold=0.9, output_type="pt",
           generator=torch.Generator().manual_seed(5))
print(type(pipe).__name__, "diffusers_dedim.diffusion.sampling" in sys.modules, float(out.images.double().sum()))
"""


@pytest.mark.slow
def test_diffusers_loads_it_as_custom_pipeline(tmp_path: Path, pipe: Any) -> None:
    """In a fresh process, from a folder that any DDPMPipeline was saved to; the package's sampler is not imported."""
    DDPMPipeline(tiny_unet(), make_scheduler()).save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "./examples/community/dedim.py", str(Path(__file__).parents[1])]
    environment = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=FILE.parents[2],  # the path above is the documented one
        env={**environment, "PYTHONPATH": str(FILE.parents[2] / "src"), "HOME": str(tmp_path)},
    ).stdout.split()
    expected = pipe(
        crops(),
        start_timestep=20,
        num_inference_steps=3,
        max_rounds=1,
        threshold=0.9,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
    )
    assert answer[:2] == ["DeDiMCropPipeline", "False"]
    assert float(answer[2]) == pytest.approx(float(expected.images.double().sum()), abs=1e-3)  # order of sums


def test_it_needs_nothing_of_the_package() -> None:
    assert "diffusers_dedim" not in FILE.read_text()


def test_the_bundled_folder_loads_in_it(module: ModuleType) -> None:
    import diffusers_dedim

    folder = Path(diffusers_dedim.__file__).parent / "weights"
    loaded = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(FILE), face_encoder=ToyEncoder(), trust_remote_code=True
    )
    assert loaded.unet.config.sample_size == 112


def test_pil_in_and_out_and_pixels_outside_the_mask_stay(pipe: Any) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (112, 112, 3)).astype(np.uint8)
    mask = landmark_mask(MEAN_FACE[None])
    (image,), probabilities, rounds, reached = pipe(
        Image.fromarray(pixels), mask, threshold=0.999, return_dict=False, **SETTINGS
    )
    outside = mask[0, 0].numpy() == 0
    np.testing.assert_array_equal(np.asarray(image)[outside], pixels[outside])
    assert (np.asarray(image) != pixels).any()
    assert (rounds, reached) == ([1], [True])
    assert probabilities[0] < 0.999


def test_a_callback_decides_x_prev(pipe: Any) -> None:
    seen: list[int] = []

    def grey(pipeline: Any, index: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(timestep)
        return {"prev_sample": torch.zeros_like(tensors["prev_sample"])}

    out = pipe(crops(), callback_on_step_end=grey, output_type="pt", **{**SETTINGS, "max_rounds": 1})
    assert seen == [19, 12, 6]
    assert out.images.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"image": "face.png"}, TypeError, "image: expected a PIL image, a list of them, or a tensor"),
        (
            {"image": torch.full((1, 3, 8, 8), -0.5)},
            ValueError,
            "image: expected tensor values in [0, 1]; give",
        ),
        ({"image": torch.zeros(3, 8, 8)}, ValueError, "image: expected a float tensor [N, 3, H, W], got"),
        (
            {"image": [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))]},
            ValueError,
            "image: expected crops of one size, got [(8, 8), (9, 9)].",
        ),
        (
            {"mask": torch.ones(2, 112, 112)},
            ValueError,
            "mask: expected [2, 1, 112, 112], got [2, 112, 112].",
        ),
        (
            {"mask": torch.full((1, 1, 112, 112), 255.0)},
            ValueError,
            "mask: expected values in [0, 1], 1 = sampled",
        ),
        ({"mask": torch.full((1, 1, 112, 112), torch.nan)}, ValueError, "mask: expected values in [0, 1]"),
        (
            {"guidance_scale": -1.0},
            ValueError,
            "guidance_scale: expected a finite number of 0 or more, got -1.0.",
        ),
        (
            {"guidance_scale": float("nan")},
            ValueError,
            "guidance_scale: expected a finite number of 0 or more",
        ),
        (
            {"threshold": 1.0},
            ValueError,
            "threshold: expected a probability strictly between 0 and 1, got 1.0.",
        ),
        ({"max_rounds": 0}, ValueError, "max_rounds: expected at least 1, got 0."),
        ({"num_inference_steps": 21}, ValueError, "expected 1 <= steps <= start <= 1000, got 21 and 20."),
        ({"output_type": "np"}, ValueError, "output_type: expected 'pil' or 'pt', got 'np'."),
        (
            {"generator": [torch.Generator()]},
            ValueError,
            "generator: expected one, or 2 (one a face), got 1.",
        ),
    ],
)
def test_wrong_arguments_are_refused(
    pipe: Any, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        pipe(**{"image": crops(), **SETTINGS, **changes})


def test_another_scheduler_is_refused(module: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"scheduler: expected a DDPMScheduler, got DDIMScheduler\."):
        module.DeDiMCropPipeline(tiny_unet(), DDIMScheduler(), ToyEncoder())
