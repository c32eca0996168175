from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from diffusers_dedim.encoders import DlibEncoder, FaceNetEncoder, PhotoEncoder
from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces import Face


@pytest.fixture(scope="module")
def facenet() -> InceptionResnetV1:
    torch.manual_seed(0)
    return InceptionResnetV1().eval()


def test_facenet_enlarges_and_scales_as_its_library_does(facenet: InceptionResnetV1) -> None:
    grey = torch.full((1, 3, 112, 112), 200 / 127.5 - 1)
    with torch.no_grad():
        theirs = facenet(torch.full((1, 3, 160, 160), (200 - 127.5) / 128))
        ours = FaceNetEncoder(facenet)(grey)
    # 1e-5: float32 through some 100 layers
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not isinstance(FaceNetEncoder(facenet), PhotoEncoder)


def test_facenet_loads_a_published_state_dict_without_its_classifier(
    tmp_path: Path, facenet: InceptionResnetV1
) -> None:
    state = facenet.state_dict() | {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, tmp_path / "weights.pt")
    encoder = FaceNetEncoder.from_file(tmp_path / "weights.pt")
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(encoder(crops), FaceNetEncoder(facenet)(crops))


def test_facenet_names_files_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("other.pt", "junk.pt"):
        with pytest.raises(ValueError, match=rf"{name}: expected a state dict"):
            FaceNetEncoder.from_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*none\.pt"):
        FaceNetEncoder.from_file(tmp_path / "none.pt")


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"DlibEncoder needs .*'dlib'.* pip install dlib-bin face-recog"):
        DlibEncoder()
    with pytest.raises(
        ImportError, match=r"diffusers-dedim\[eval\].*in a clone: pip install \"\.\[eval\]\"\)"
    ):
        import_extra("no_such_package", "x")


@pytest.fixture(scope="module")
def astronaut() -> tuple[np.ndarray, Face]:
    from skimage.data import astronaut

    points = np.array([[203, 107], [244, 102], [226, 128], [210, 153], [243, 149]], dtype=float)
    return astronaut(), Face((181.0, 63.0, 265.0, 173.0), points, 1.0)


def test_dlib_embeds_a_face_in_its_photo(astronaut: tuple[np.ndarray, Face]) -> None:
    dlib = pytest.importorskip("dlib")
    pytest.importorskip("face_recognition_models")
    photo, face = astronaut
    encoder = DlibEncoder()
    assert isinstance(encoder, PhotoEncoder)
    embedding = encoder.embed_photo(photo, face)
    assert embedding.shape == (128,)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-6)

    found = dlib.get_frontal_face_detector()(photo)[0]  # dlib's own way from the photo to the descriptor
    theirs = encoder._network.compute_face_descriptor(photo, encoder._landmarks(photo, found))
    cosine = torch.nn.functional.cosine_similarity(embedding, torch.tensor(list(theirs)), dim=0)
    # dlib calls two faces one person below a distance of 0.6, a cosine of about 0.91; the box differs a little
    assert cosine > 0.99

    with pytest.raises(ValueError, match=r"photo: expected uint8 RGB of shape \[H, W, 3\], got float64"):
        encoder.embed_photo(photo / 255.0, face)
    with pytest.raises(ValueError, match="crops: expected shape"):
        encoder(torch.zeros(3, 112, 112))


def test_dlib_takes_crops_as_well(astronaut: tuple[np.ndarray, Face]) -> None:
    pytest.importorskip("dlib")
    pytest.importorskip("face_recognition_models")
    from diffusers_dedim.faces import align_face

    photo, face = astronaut
    encoder = DlibEncoder()
    crop = align_face(photo, face).crop[None]
    cosine = (encoder(crop)[0] * encoder.embed_photo(photo, face)).sum()
    assert cosine > 0.95  # the same person by a wide margin, though the rim of the chip is missing
    assert encoder(crop[:0]).shape == (0, 128)
