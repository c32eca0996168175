from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders.test_onnx_encoder import write_model

from diffusers_dedim import DeDiMPipeline, EncoderEnsemble
from diffusers_dedim.evaluation.methods import guided_by


def test_one_file_guides_with_the_same_parts(tmp_path: Path, pipe: DeDiMPipeline) -> None:
    guided = guided_by(pipe, [write_model(tmp_path / "guide.onnx")])
    assert guided.unet is pipe.unet
    assert guided.landmarker is pipe.landmarker
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
    with pytest.raises(ValueError, match="at least one encoder"):
        guided_by(pipe, [])
