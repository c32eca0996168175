"""The weights in the package and the main job on them, as a new user meets both: offline, from the outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image

from diffusers_dedim import PRESETS, DeDiMPipeline
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS

pytestmark = pytest.mark.slow
ASTRONAUT = pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def pipe() -> DeDiMPipeline:
    pipeline = DeDiMPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_dedim(*words: str) -> subprocess.CompletedProcess[str]:
    program = "from diffusers_dedim.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(BUNDLED_WEIGHTS.parents[1])}  # also when not installed
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_they_fit_the_package() -> None:
    files = list(BUNDLED_WEIGHTS.rglob("*.safetensors"))
    networks = {"unet", "face_encoder", "landmarker", "visibility", "discriminator"}
    assert {file.parent.name for file in files} == networks
    assert sum(file.stat().st_size for file in files) < 60e6
    assert (
        sum(p.numel() for p in UNet2DModel.from_pretrained(BUNDLED_WEIGHTS, subfolder="unet").parameters())
        <= 6e6
    )


def test_they_load_as_a_plain_ddpm_pipeline() -> None:
    plain = DDPMPipeline.from_pretrained(BUNDLED_WEIGHTS)
    plain.set_progress_bar_config(disable=True)
    assert plain(num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0].size == (
        112,
        112,
    )


def test_faces_are_drawn_from_the_command_line(tmp_path: Path) -> None:
    done = run_dedim("sample", "-n", "2", "--steps", "2", "-o", str(tmp_path / "faces.png"))
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "faces.png").size in {(112, 224), (224, 112)}


def test_a_portrait_is_protected_and_looks_the_same_outside_the_mask(pipe: DeDiMPipeline) -> None:
    out = pipe(ASTRONAUT, generator=torch.Generator().manual_seed(0))
    (face,) = out.faces
    assert face.reached_threshold
    assert face.probability < PRESETS["fast"].threshold
    assert face.similarity_before == pytest.approx(1, abs=1e-5)  # float32 rounding of a unit vector's norm
    changed = (np.asarray(out.images[0]) != ASTRONAUT).any(2)
    x0, _, x1, _ = face.box
    columns = np.flatnonzero(changed.any(0))
    assert columns.min() > x0 - (x1 - x0) / 2
    assert columns.max() < x1 + (x1 - x0) / 2
    assert changed.mean() < 0.1


def test_the_paper_preset_runs_and_lowers_the_similarity(pipe: DeDiMPipeline) -> None:
    with pytest.warns(UserWarning, match="stayed above the threshold"):
        out = pipe(ASTRONAUT, preset="paper", max_rounds=1, generator=torch.Generator().manual_seed(0))
    assert out.faces[0].unet_calls == 100
    assert out.faces[0].similarity < 0.9


def test_a_folder_of_good_and_bad_photos_from_the_command_line(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    face = Image.fromarray(ASTRONAUT)
    group = Image.new("RGB", (1024, 512))
    group.paste(face, (0, 0))
    group.paste(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    group.save(photos / "group.jpg", quality=95)
    Image.new("RGB", (300, 200), "grey").save(photos / "nobody.png")
    (photos / "broken.jpg").write_bytes((photos / "group.jpg").read_bytes()[:2000])
    done = run_dedim("run", str(photos), "-o", str(tmp_path / "out"), "--seed", "0", "--report")
    assert done.returncode == 1, done.stderr
    assert "1 of 3 photos protected (2 faces)" in done.stdout
    assert "nobody.png" in done.stderr
    assert "broken.jpg" in done.stderr
    assert Image.open(tmp_path / "out" / "group.jpg").size == (1024, 512)
    assert not (tmp_path / "out" / "nobody.png").exists()
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
