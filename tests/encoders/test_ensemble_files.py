"""An ensemble of our recognisers on disk: alone and in a pipeline, whole and not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import ToyEncoder, ToyLandmarker, tiny_preset, tiny_unet

from diffusers_dedim import DeDiMPipeline, EncoderEnsemble, LandmarkRegressor, MobileFaceNet, make_scheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"


def two() -> EncoderEnsemble:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EncoderEnsemble([MobileFaceNet(16, stem_pointwise=True), MobileFaceNet(32)]).eval()


def crops(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_ensemble_is_saved_with_the_settings_of_each(tmp_path: Path) -> None:
    ensemble = two()
    ensemble.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["encoders"]
    assert settings[0] == {"embedding_dim": 16, "stem_pointwise": True}
    again = EncoderEnsemble.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(crops()), ensemble(crops()))


def test_half_precision_is_not_for_scores(tmp_path: Path) -> None:
    two().save_pretrained(tmp_path)
    again = EncoderEnsemble.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


FRESH_PROCESS = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline="pipeline", trust_remote_code=True)
print(type(pipe).__name__, type(pipe.face_encoder).__name__, len(pipe.face_encoder.encoders))
"""


def test_a_pipeline_with_an_ensemble_is_saved_and_loaded(tmp_path: Path) -> None:
    ensemble = two()
    pipe = DeDiMPipeline(tiny_unet(), make_scheduler(), ensemble, LandmarkRegressor())
    assert pipe.face_encoder is ensemble
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["face_encoder"] == ["diffusers_dedim", "EncoderEnsemble"]
    again = DeDiMPipeline.from_pretrained(tmp_path)
    assert type(again.face_encoder) is EncoderEnsemble
    assert not again.face_encoder.training
    with torch.no_grad():
        assert torch.equal(again.face_encoder(crops()), ensemble(crops()))
    assert isinstance(DDPMPipeline.from_pretrained(tmp_path).unet, UNet2DModel)
    found = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["DeDiMPipeline", "EncoderEnsemble", "2"]


def test_a_pipeline_of_one_recogniser_can_be_saved_over_one_of_two(tmp_path: Path) -> None:
    DeDiMPipeline(tiny_unet(), make_scheduler(), two(), LandmarkRegressor()).save_pretrained(tmp_path)
    DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), LandmarkRegressor()).save_pretrained(
        tmp_path
    )
    assert type(DeDiMPipeline.from_pretrained(tmp_path).face_encoder) is MobileFaceNet


def test_an_ensemble_of_others_is_left_out_of_a_saved_pipeline(tmp_path: Path) -> None:
    other = EncoderEnsemble([MobileFaceNet(), ToyEncoder()])
    pipe = DeDiMPipeline(tiny_unet(), make_scheduler(), other, LandmarkRegressor())
    pipe.save_pretrained(tmp_path)
    assert "face_encoder" not in json.loads((tmp_path / "model_index.json").read_text())
    text = "encoders: expected members of MobileFaceNet to save them together, got MobileFaceNet, ToyEncoder; save"
    with pytest.raises(ValueError, match=re.escape(text)):
        other.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def without_the_second(folder: Path) -> None:
    change_weights(
        folder, lambda all_: {name: w for name, w in all_.items() if not name.startswith("encoders.1")}
    )


def without_its_settings(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["encoders"] = config["encoders"][:1]
    path.write_text(json.dumps(config))


def with_another_size(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["encoders"][1]["crop_size"] = 160
    path.write_text(json.dumps(config))


def with_nan(folder: Path) -> None:
    change_weights(
        folder, lambda all_: {**all_, "encoders.1.head.0.0.weight": torch.full((512, 128, 1, 1), torch.nan)}
    )


def of_another_class(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "ArcFaceNet"}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_the_second, " weights of member(s) 2 (2 in its config.json), encoders.1."),
        (without_its_settings, "holds, beside its members', "),
        (
            with_another_size,
            "encoders: member 2 has settings ['crop_size'] that MobileFaceNet does not have; expected",
        ),
        (with_nan, "has weights of member 2 that are not finite."),
        (of_another_class, "holds a ArcFaceNet, expected MobileFaceNet or EncoderEnsemble."),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    tmp_path: Path, change: Callable[[Path], None], text: str
) -> None:
    """Loading would otherwise fill a guide with random weights, and nobody would be hidden from anyone."""
    DeDiMPipeline(tiny_unet(), make_scheduler(), two(), LandmarkRegressor()).save_pretrained(tmp_path)
    change(tmp_path / "face_encoder")
    with pytest.raises(ValueError, match=re.escape(text)):
        DeDiMPipeline.from_pretrained(tmp_path)


class Answers(nn.Module):
    """A member that answers with one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, crops: Tensor) -> Tensor:
        return torch.full((len(crops), 4), self.value)


@pytest.mark.filterwarnings("ignore:1 of 1 faces stayed above the threshold")
@pytest.mark.parametrize(
    ("member", "text"),
    [
        (
            Answers(torch.nan),
            "face_encoder: expected unit embeddings of member(s) 2 of 2, got lengths from nan to nan",
        ),
        (Answers(0.5), None),
        (ToyEncoder(160), "encoders: member 2 of 2, ToyEncoder, does not take crops [1, 3, 112, 112] ("),
    ],
)
def test_a_member_that_cannot_judge_is_named_before_any_work(
    member: nn.Module, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = DeDiMPipeline(
        tiny_unet(), make_scheduler(), EncoderEnsemble([ToyEncoder(), member]), ToyLandmarker()
    )
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(type(pipe.unet), "forward", refuse if text else type(pipe.unet).forward)
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    def protect() -> Any:
        return pipe(crop, aligned=True, preset=tiny_preset(threshold=0.999, max_rounds=1))

    if text is None:
        assert len(protect().faces) == 1  # four halves are a unit vector
        return
    with pytest.raises(ValueError, match=re.escape(text)):
        protect()


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("the denoiser was asked")
