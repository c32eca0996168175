"""Run every Python block of docs/composition.md, and the first ones a reader meets, in order, with tiny networks."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from encoders.test_onnx_encoder import write_model
from PIL import Image
from skimage.data import astronaut
from toys import MEAN_FACE, tiny_unet

from diffusers_dedim import DeDiMPipeline, LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.pipeline import presets

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "composition.md"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = PYTHON.findall(PAGE.read_text())

pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")


def tiny_bundle(folder: Path) -> None:
    """The shipped architectures with random weights, saved where `from_pretrained` finds them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        landmarker = LandmarkRegressor()
        landmarker.mean_shape.copy_(MEAN_FACE)
        DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker).save_pretrained(folder)


def tiny_text_to_image(folder: Path) -> None:
    """A Stable Diffusion of a few thousand weights, with a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers")
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=52,
        eos_token_id=53,
    )
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=[8, 8, 8, 8],
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer(vocabulary, [], model_max_length=16),
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=14,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=32,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page speaks of, the bundled weights replaced by tiny ones."""
    Image.fromarray(astronaut()[:256, 96:352]).save(tmp_path / "photo.jpg", quality=95)
    Image.new("RGB", (96, 96), "grey").save(tmp_path / "empty.jpg")
    write_model(tmp_path / "recogniser.onnx")
    tiny_bundle(tmp_path / "bundle")
    tiny_text_to_image(tmp_path / "text-to-image-model")
    monkeypatch.setattr("diffusers_dedim.pipeline.pipeline_dedim.BUNDLED_WEIGHTS", tmp_path / "bundle")
    fast = replace(presets.PRESETS["fast"], max_rounds=2, num_inference_steps=3, retries=0)
    monkeypatch.setitem(presets.PRESETS, "fast", fast)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain_backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Run the captured graph as it is: building one with a C++ compiler takes a minute."""
    return graph.forward


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_every_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kw: compile_module(self, backend=plain_backend, **kw)
    )
    torch._dynamo.reset()
    namespace: dict[str, Any] = {"__name__": "composition"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    assert len(BLOCKS) >= 12
    # fail closed: the photo above the threshold and the one without a face carry no picture
    assert namespace["result"]["protected"] == [False, False]
    assert namespace["result"]["image"] == [None, None]
    assert "no face was found" in namespace["result"]["note"][1]
    assert len(namespace["watch"].distances) == 2 * 3
    assert namespace["derived"].face_encoder.module is namespace["plain"]
    weights, saved = namespace["ours"].state_dict(), namespace["again"].state_dict()
    assert all(torch.equal(weights[name], saved[name]) for name in weights)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md"])
def test_the_first_python_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a threshold that every face reaches, as tiny networks protect nobody: the photo is written."""
    reached = replace(presets.PRESETS["fast"], threshold=0.99999, threshold_margin=0.0)
    monkeypatch.setitem(presets.PRESETS, "fast", reached)
    blocks = PYTHON.findall((ROOT / page).read_text())
    assert blocks
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    assert len(namespace["out"].images) == 1
    assert list(Path().glob("protected.*"))


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_schedulers_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    load_example("compare_schedulers").main(["--max-rounds", "1"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[1:]] == [
        "DDPM",
        "DDIM",
        "Euler",
        "DPM-Solver++",
        "DPM-Solver++ SDE",
    ]
    # three steps, the original beside the face
    assert all(row.split("|")[2:4] == [" 1 ", " 6 "] for row in rows[1:])


def run_two_processes(workplace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(ROOT / "examples" / "several_devices.py"),
        str(workplace / "photos"),
        str(workplace / "out"),
    ]
    command += ["--cpu", "--model", str(workplace / "bundle"), "--threshold", "0.99999"]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    environment |= {"PATH": os.environ["PATH"], "HOME": str(workplace)}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


@pytest.mark.slow  # three more interpreters that import torch
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """With a threshold that every face reaches: tiny networks protect nobody."""
    (tmp_path / "photos").mkdir()
    for index, left in enumerate((96, 120)):
        Image.fromarray(astronaut()[:256, left : left + 256]).save(tmp_path / "photos" / f"{index}.png")
    Image.new("RGB", (96, 96), "grey").save(tmp_path / "photos" / "2.png")
    tiny_bundle(tmp_path / "bundle")
    run = run_two_processes(tmp_path)
    assert "2 of 3 photos protected" in run.stdout, run.stderr
    assert "2.png: image 0: no face was found, so nothing was protected." in run.stdout
    assert run.returncode == 1  # one photo was not protected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]

    example, pipe = load_example("several_devices"), DeDiMPipeline.from_pretrained(tmp_path / "bundle")
    pipe.set_progress_bar_config(disable=True)
    (tmp_path / "alone").mkdir()
    for index in (0, 1):
        source, target = (tmp_path / folder / f"{index}.png" for folder in ("photos", "alone"))
        assert example.protect(pipe, source, target, index, 0.99999) is None
        one, two = (np.asarray(Image.open(tmp_path / name / f"{index}.png")) for name in ("alone", "out"))
        np.testing.assert_array_equal(one, two)
        assert (one != np.asarray(Image.open(source))).any()
