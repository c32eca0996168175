from __future__ import annotations

import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from face_samples import ASTRONAUT_POINTS
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim.faces import MIN_FACE_SIZE, Face, FaceDetector, detect_faces, turn_back


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def resized(photo: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))


def point_error(face: Face, expected: NDArray[np.float64]) -> float:
    """Largest distance of a point from where it should be, in eye distances."""
    eyes = np.linalg.norm(expected[1] - expected[0])
    return float(np.linalg.norm(face.landmarks - expected, axis=1).max() / eyes)


def test_finds_the_astronaut_without_warnings(photo: NDArray[np.uint8], detector: FaceDetector) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a deprecation in numpy, torch or Pillow is tomorrow's crash
        faces = detector(photo)
    assert len(faces) == 1
    assert faces[0].confidence > 0.99
    assert 100 < faces[0].size < 120
    # 0.06 eye distances = 2.5 px: the jitter of MTCNN's points between scales
    assert point_error(faces[0], ASTRONAUT_POINTS) < 0.06


def test_three_faces_come_from_left_to_right(photo: NDArray[np.uint8], detector: FaceDetector) -> None:
    head = photo[20:220, 130:330]
    montage = np.full((420, 700, 3), 90, dtype=np.uint8)
    corners = [(10, 200), (220, 10), (460, 150)]
    for x, y in reversed(corners):
        montage[y : y + 200, x : x + 200] = head
    faces = detector(montage)
    assert len(faces) == 3
    for face, (x, y) in zip(faces, corners, strict=True):
        assert point_error(face, ASTRONAUT_POINTS - [130, 20] + [x, y]) < 0.06


@pytest.mark.parametrize("shape", [(200, 300), (19, 400), (1, 1), (20, 2000)])
def test_no_face_gives_an_empty_list(shape: tuple[int, int], detector: FaceDetector) -> None:
    assert detector(np.full((*shape, 3), 127, dtype=np.uint8)) == []


def test_no_face_in_noise(detector: FaceDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    assert detector(noise) == []


@pytest.mark.parametrize("size", [20, 24, 32])
def test_small_faces_are_reported(size: int, photo: NDArray[np.uint8], detector: FaceDetector) -> None:
    small = resized(photo, round(512 * size / 110))
    faces = detector(small)
    assert len(faces) == 1
    assert faces[0].size == pytest.approx(size, rel=0.25)  # MTCNN's box is a coarse guess at this size


@pytest.mark.parametrize(
    ("longer", "copy", "searched"), [(3200, 1600, 40), (4000, 1600, 40), (12_000, 4800, 40)]
)
def test_what_can_be_protected_is_looked_for_in_photos_of_any_size(
    longer: int, copy: int, searched: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A face of 40 px that nobody looked for would leave the photo marked as protected."""
    detector, asked = FaceDetector(min_face_size=MIN_FACE_SIZE), []

    def search(picture: NDArray[np.uint8], min_size: float) -> tuple[NDArray[np.float64], ...]:
        border = picture.shape[0] - round(60 * copy / longer)  # above and below; left and right the same
        asked.append((picture.shape[1] - border, min_size))
        return np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)

    monkeypatch.setattr(detector, "_search", search)
    assert detector(np.zeros((60, longer, 3), dtype=np.uint8)) == []
    side, smallest = asked[0]
    assert side == pytest.approx(copy, abs=1)
    assert smallest * longer / side <= searched + 0.1


@pytest.mark.parametrize(
    ("height", "width", "border"),
    [(300, 300, 37), (300, 900, 112), (900, 300, 112), (250, 1000, 125), (250, 1001, 125), (30, 1500, 15)],
)
def test_the_border_is_a_share_of_the_longer_side_but_bounded_in_narrow_photos(
    height: int, width: int, border: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 x 250 px were searched as 505 megapixels."""
    detector, sizes = FaceDetector(), []

    def search(picture: NDArray[np.uint8], min_size: float) -> tuple[NDArray[np.float64], ...]:
        sizes.append(picture.shape[:2])
        return np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)

    monkeypatch.setattr(detector, "_search", search)
    detector(np.zeros((height, width, 3), dtype=np.uint8))
    assert sizes == [(height + 2 * border, width + 2 * border)]


def test_a_face_in_a_narrow_photo_is_found(photo: NDArray[np.uint8], detector: FaceDetector) -> None:
    strip = np.full((160, 1600, 3), 60, dtype=np.uint8)
    strip[:, :280] = photo[40:200, 100:380]
    strip[:, -280:] = photo[40:200, 100:380]
    faces = detector(strip)
    assert len(faces) == 2
    for face, x in zip(faces, (0, 1320), strict=True):
        assert point_error(face, ASTRONAUT_POINTS - [100, 40] + [x, 0]) < 0.12  # as of faces cut by the edge


def test_large_photo_is_searched_small_and_mapped_back(photo: NDArray[np.uint8]) -> None:
    large = resized(photo, 1536)
    faces = FaceDetector(max_side=512)(large)
    assert len(faces) == 1
    # photo px and the half-pixel shift of the centres
    assert point_error(faces[0], (ASTRONAUT_POINTS + 0.5) * 3 - 0.5) < 0.06


def test_uneven_copy_keeps_both_axes(photo: NDArray[np.uint8]) -> None:
    tall = np.concatenate([photo, np.full((489, 512, 3), 60, dtype=np.uint8)])  # 512 x 1001
    faces = FaceDetector(max_side=600)(tall)
    assert point_error(faces[0], ASTRONAUT_POINTS) < 0.06


@pytest.mark.parametrize(("x0", "y0", "x1", "y1"), [(200, 0, 512, 512), (0, 90, 512, 512), (0, 0, 250, 512)])
def test_face_cut_by_the_edge_keeps_its_points(
    x0: int, y0: int, x1: int, y1: int, photo: NDArray[np.uint8], detector: FaceDetector
) -> None:
    faces = detector(photo[y0:y1, x0:x1])
    assert len(faces) == 1
    # Measured 0.077, 0.034, 0.067; without the border 0.74, 0.64 and no face at all.
    assert point_error(faces[0], ASTRONAUT_POINTS - [x0, y0]) < 0.12


def test_one_face_is_reported_once(detector: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    points = ASTRONAUT_POINTS
    found = (
        np.array([[180, 60, 270, 175], [170, 50, 280, 190], [10, 10, 40, 45]], dtype=object),
        np.array([points, points + 3, (points - points[0]) / 3 + 20], dtype=object),
        np.array([0.95, 0.99, 0.97], dtype=object),
    )
    border = int(512 / 8)
    answer = (found[0] + border, found[2], found[1] + border)
    networks = detector._networks()
    monkeypatch.setattr(networks, "detect", lambda picture, landmarks: answer)
    faces = detector(np.zeros((512, 512, 3), dtype=np.uint8))
    assert [face.confidence for face in faces] == [0.97, 0.99]


def test_findings_in_the_border_or_unsure_are_left_out(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = np.array([[0, 0, 30, 40], [180, 160, 270, 275]], dtype=object)
    points = np.array([ASTRONAUT_POINTS / 10, ASTRONAUT_POINTS], dtype=object)
    monkeypatch.setattr(
        detector._networks(), "detect", lambda picture, landmarks: (boxes, np.array([0.99, 0.8]), points)
    )
    assert detector(np.zeros((512, 512, 3), dtype=np.uint8)) == []


def test_building_leaves_the_seed_alone_and_is_lazy(photo: NDArray[np.uint8]) -> None:
    detector = FaceDetector(device="cpu")
    assert detector._mtcnn is None
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    detector.to("cpu")(photo[:200, :300])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert detector.to("cpu") is detector


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_it_changes_nothing(
    dtype: torch.dtype, photo: NDArray[np.uint8], detector: FaceDetector
) -> None:
    with torch.autocast("cpu", dtype):
        inside = detector(photo)
    (before,), (after,) = detector(photo), inside
    assert before.box == after.box
    assert np.array_equal(before.landmarks, after.landmarks)


def test_each_search_has_its_own_smallest_size(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, a photo above ``max_side`` and one below: both have set their size before either one searches."""
    sizes: dict[int, float] = {}
    both = threading.Barrier(2, timeout=60)

    def detect(mtcnn: MTCNN, picture: NDArray[np.uint8], landmarks: bool) -> tuple[None, None, None]:
        both.wait()
        sizes[picture.shape[1]] = mtcnn.min_face_size
        return None, None, None

    monkeypatch.setattr(MTCNN, "detect", detect)
    photos = [np.zeros((60, width, 3), dtype=np.uint8) for width in (300, 3200)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(detector, photos)) == [[], []]
    # 300 px as it is; 3,200 px on a copy of half the side, where a face of 40 px has 20, but 16 is the least there is
    assert sizes == {300 + 2 * 30: 20, 1600 + 2 * 15: 16}


def test_two_threads_build_one_set_of_networks_and_leave_the_seed_alone() -> None:
    detector = FaceDetector()
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(lambda _: detector._networks(), range(4)))
    assert all(networks is built[0] for networks in built)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert pickle.loads(pickle.dumps(detector)).max_side == detector.max_side


def test_detect_faces_shares_one_detector(photo: NDArray[np.uint8], detector: FaceDetector) -> None:
    shared, own = detect_faces(photo), detector(photo)
    assert [face.box for face in shared] == [face.box for face in own]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"min_face_size": 8}, "min_face_size: expected at least 16 px, got 8"),
        ({"min_confidence": 1.5}, r"min_confidence: expected a score in 0\.\.1, got 1.5"),
        ({"max_side": 100}, "max_side: expected at least 256 px, got 100"),
    ],
)
def test_settings_are_checked(setting: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FaceDetector(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("picture", "error", "text"),
    [
        (np.zeros((9, 9, 3)), TypeError, "photo: expected a numpy array of dtype uint8, got float64"),
        ([1, 2], TypeError, "photo: .* got list"),
        (np.zeros((9, 9), np.uint8), ValueError, r"photo: expected shape \[H, W, 3\] .* got \[9, 9\]"),
        (np.zeros((9, 9, 4), np.uint8), ValueError, r"got \[9, 9, 4\]"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, r"got \[0, 9, 3\]"),
    ],
)
def test_photo_is_checked(picture: object, error: type[Exception], text: str, detector: FaceDetector) -> None:
    with pytest.raises(error, match=text):
        detector(picture)  # type: ignore[arg-type]


def test_a_turned_portrait_is_found_upright(photo: NDArray[np.uint8]) -> None:
    turned = np.ascontiguousarray(np.rot90(photo, 3))
    (face,) = FaceDetector(any_turn=True)(turned)
    expected = turn_back(ASTRONAUT_POINTS, 1, turned.shape)  # three turns more are none
    assert point_error(face, expected) < 0.1
