from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders.test_onnx_encoder import write_model
from torch import nn

from diffusers_dedim import DeDiMPipeline, EncoderEnsemble
from diffusers_dedim.models import PatchDiscriminator, VisibilityNet
from diffusers_dedim.pipeline.guides import check_guide, guided_by, is_guide, name_guides


def test_one_file_guides_with_the_same_parts(tmp_path: Path, pipe: DeDiMPipeline) -> None:
    pipe.visibility, pipe.discriminator = VisibilityNet(0.1), PatchDiscriminator(0.1)
    guided = guided_by(pipe, [write_model(tmp_path / "guide.onnx")])
    assert guided.unet is pipe.unet
    assert guided.landmarker is pipe.landmarker
    assert guided.visibility is pipe.visibility
    assert guided.discriminator is pipe.discriminator
    assert guided.face_detector is pipe.face_detector
    crops = torch.rand(2, 3, 112, 112, requires_grad=True)
    assert guided.face_encoder(crops).shape == (2, 8)
    assert guided.face_encoder(crops).requires_grad, "it has to guide"
    assert pipe.face_encoder is not guided.face_encoder


def test_several_guide_together_the_own_one_among_them(tmp_path: Path, pipe: DeDiMPipeline) -> None:
    file = write_model(tmp_path / "guide.onnx")
    guided = guided_by(pipe, ["own", file])
    ensemble = getattr(guided.face_encoder, "module", guided.face_encoder)
    assert isinstance(ensemble, EncoderEnsemble)
    assert ensemble.encoders[0] is pipe.face_encoder
    with pytest.raises(FileNotFoundError, match=r"no ONNX file 'none\.onnx'"):
        guided_by(pipe, ["own", "none.onnx"])
    with pytest.raises(ValueError, match="guides: expected at least one"):
        guided_by(pipe, [])


def test_the_members_of_the_pipelines_own_ensemble_join_the_others(
    tmp_path: Path, pipe: DeDiMPipeline
) -> None:
    files = [write_model(tmp_path / f"{name}.onnx") for name in ("first", "second")]
    both = guided_by(pipe, [f"one={files[0]}", files[1]])
    three = guided_by(both, ["own", files[0]])
    assert [each.name for each in name_guides(three.face_encoder)] == ["white1", "white2", "white3"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("guide.bin", "expected 'own', 'facenet-vggface2', NAME=FILE.onnx"),
        ("sface=guide.tflite", r"got 'sface=guide\.tflite'"),
    ],
)
def test_a_guide_of_another_kind_is_refused(pipe: DeDiMPipeline, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        guided_by(pipe, [spec])


class Detached(nn.Module):
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(crops.detach().flatten(1)[:, :8])


class Blind(nn.Module):
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.full((len(crops), 8), float("nan"))


class OfAnotherSize(nn.Module):
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.reshape(len(crops), 3 * 160 * 160)


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (Detached(), "no finite gradient flows"),
        (Blind(), "expected unit embeddings"),
        (OfAnotherSize(), "does not embed crops"),
    ],
)
def test_who_cannot_guide_is_refused_before_any_photo(guide: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=f"guide 'mine': .*{words}"):
        check_guide(guide, "mine")


def test_the_names_of_guides_are_known() -> None:
    assert all(map(is_guide, ("white", "white1", "white12")))
    assert not any(map(is_guide, ("foamliu", "whitehall", "")))
