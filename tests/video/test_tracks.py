from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from toy_clips import GREY, detect, moving, picture, texture
from toys import ToyEncoder, ToyLandmarker, face_at

from diffusers_dedim.faces import Face
from diffusers_dedim.video.people import People
from diffusers_dedim.video.reading import Frame
from diffusers_dedim.video.smoothing import OneEuro
from diffusers_dedim.video.tracks import FaceTracker


class Centred(ToyEncoder):
    """Without the mean, which all crops share, so that two textures are strangers."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return super().forward(crops - crops.mean((1, 2, 3), keepdim=True))


class Singly(FaceTracker):
    def follow(self, given):
        return (each for stretch in super().follow(given) for each in stretch)


def tracker(detector=detect, every: int = 4, **options: object) -> FaceTracker:
    # the toys' mean face lies where the template has its points: what follows stays where it is expected
    return Singly(detector, ToyLandmarker(), Centred(), torch.device("cpu"), every=every, **options)


def frames(pictures: list[np.ndarray]) -> list[Frame]:
    return [Frame(pixels, Fraction(index, 25), Fraction(1, 25)) for index, pixels in enumerate(pictures)]


def people(found) -> list[list[int]]:
    return [sorted(each.person.number for each in placed) for _, placed in found]


def both(pixels: np.ndarray) -> list[Face]:
    """Squares in the left and in the right half."""
    left, right = pixels[:, :160], pixels[:, 160:]
    return [_moved(face, x) for half, x in ((left, 0), (right, 160)) for face in detect(half)]


def _moved(face: Face, x: int) -> Face:
    return face_at(face.box[0] + x, face.box[1], face.box[2] - face.box[0])


def test_a_face_is_followed_between_detections_and_seldom_looked_for() -> None:
    calls = []

    def counting(pixels: np.ndarray) -> list[Face]:
        calls.append(1)
        return detect(pixels)

    found = list(tracker(counting).follow(frames(moving(12))))
    assert people(found) == [[0]] * 12
    assert len(calls) == 4  # frames 0, 4, 8 and the last
    for index, (_, (placed,)) in enumerate(found):
        assert abs(placed.aligned.face.box[0] - (20 + 2 * index)) < 3  # smoothing lags a little at first
        assert abs(placed.aligned.face.size - 64) < 0.5


@pytest.mark.parametrize("every", [1, 3, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_frame_comes_back_once_and_in_order(every: int, count: int) -> None:
    given = frames(moving(count))
    found = list(tracker(every=every).follow(given))
    assert [frame for frame, _ in found] == given
    assert people(found) == [[0]] * count


def test_a_face_that_is_found_late_is_followed_back_to_where_it_came_from() -> None:
    pictures = [picture()] * 2 + [picture((0, 40, 30))] * 7
    assert people(tracker().follow(frames(pictures))) == [[]] * 2 + [[0]] * 7


def test_a_face_that_the_detector_misses_is_followed() -> None:
    looks = iter([True, False, True])
    found = tracker(lambda pixels: detect(pixels) if next(looks) else []).follow(
        frames([picture((0, 40, 30))] * 9)
    )
    assert people(found) == [[0]] * 9


def test_who_leaves_and_comes_back_is_the_same_person() -> None:
    pictures = [picture((0, 40, 30))] * 5 + [picture()] * 5 + [picture((1, 40, 30))] * 5
    pictures += [picture()] * 5 + [picture((0, 60, 30))] * 5
    found = people(tracker(every=5).follow(frames(pictures)))
    assert found[0] == [0]
    assert found[7] == []
    assert found[12] == [1]
    assert found[-1] == [0]


def test_a_cut_begins_anew_and_the_person_is_known() -> None:
    dark = [pixels // 2 for pixels in moving(4)]

    def detector(pixels: np.ndarray) -> list[Face]:
        return detect(pixels if pixels[0, 0, 0] == GREY else pixels * 2)

    found = list(tracker(detector, every=50).follow(frames(moving(4) + dark)))
    assert people(found) == [[0]] * 8


class HalfWay(ToyLandmarker):
    """Sees half of the way to a face that lies elsewhere in the crop, by the middle of what is not grey."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        seen = ((crops + 1) * 127.5 - GREY).abs().amax(1) > 20  # [N, 112, 112]
        middle = torch.stack([rows.nonzero().float().mean(0).flip(0) for rows in seen])
        return super().forward(crops) + 0.5 * (middle - 55.5)[:, None]


def test_a_face_that_moves_in_a_curve_is_followed_to_where_it_is() -> None:
    ways = [(20 + 2 * index, 15 + 5 * min(index, 8 - index)) for index in range(9)]  # 20 px off the chord
    follower = Singly(detect, HalfWay(), Centred(), torch.device("cpu"), every=8)
    found = list(follower.follow(frames([picture((0, *way)) for way in ways])))
    boxes = np.array([placed.aligned.face.box[:2] for _, (placed,) in found])
    assert np.abs(boxes - ways).max() < 10  # most of which is the smoothing's, where it turns back at once


def test_who_comes_back_half_hidden_gets_the_own_name_back() -> None:
    plain, hidden = picture((0, 40, 30)), picture((0, 40, 30))
    hidden[50:94, 40:104] = texture(3)[20:]
    pictures = [plain] * 4 + [picture()] * 4 + [hidden] * 5 + [plain] * 9
    found = people(tracker().follow(frames(pictures)))
    assert found[8:12] == [[1]] * 4
    assert found[13:] == [[0]] * 9


def test_two_faces_are_two_people_and_no_one_is_twice_in_a_frame() -> None:
    pictures = [picture((0, 20 + index, 30), (1, 220 - index, 30), size=(320, 120)) for index in range(9)]
    found = list(tracker(both).follow(frames(pictures)))
    assert people(found) == [[0, 1]] * 9
    twins = [picture((0, 20, 30), (0, 220, 30), size=(320, 120))] * 3
    assert people(tracker(both).follow(frames(twins))) == [[0, 1]] * 3


def test_two_who_cross_keep_their_names() -> None:
    known: dict[bytes, list[Face]] = {}
    pictures = []
    for index in range(21):
        x = 20 + 10 * index
        pixels = picture((1, 240 - x, 20), (0, x, 20), size=(320, 120))  # 0 passes in front
        hidden = abs(240 - 2 * x) < 40
        known[pixels.tobytes()] = [face_at(x, 20, 64)] + ([] if hidden else [face_at(240 - x, 20, 64)])
        pictures.append(pixels)
    found = list(tracker(lambda pixels: known[pixels.tobytes()], every=2).follow(frames(pictures)))
    first, last = (
        {each.person.number: each.aligned.face.box[0] for each in placed}
        for placed in (found[0][1], found[-1][1])
    )
    assert set(first) == set(last) == {0, 1}
    assert (first[0] < first[1]) != (last[0] < last[1])


def test_faces_can_be_chosen() -> None:
    chosen = tracker(select_faces=lambda face: face.box[0] > 1000)
    assert people(chosen.follow(frames(moving(3)))) == [[]] * 3


def test_the_mean_moves_little_and_not_towards_somebody_else() -> None:
    crowd = People()
    person = crowd.find(torch.eye(3)[0], [])
    person.meet(torch.eye(3)[1])
    assert torch.equal(person.embedding, torch.eye(3)[0])
    near = torch.nn.functional.normalize(torch.tensor([1.0, 0.5, 0.0]), dim=0)
    for _ in range(3):
        person.meet(near)
    assert 0.9 < float(person.embedding @ near) < 1
    assert float(person.embedding.norm()) == pytest.approx(1)
    assert crowd.find(near, [person]) is not person
    with pytest.raises(ValueError, match="same_person: expected a cosine"):
        People(1.0)


def test_an_ensemble_is_as_alike_as_its_best_member() -> None:
    crowd = People()
    pair = torch.stack([torch.eye(2)[0], torch.eye(2)[0]])
    person = crowd.find(pair, [])
    assert crowd.find(torch.stack([torch.eye(2)[0], torch.eye(2)[1]]), []) is person


def test_smoothing_stills_what_rests_and_keeps_up_with_what_moves() -> None:
    noise = np.random.default_rng(0).normal(0, 0.005, (100, 5, 2))
    smooth = OneEuro()
    rest = np.array([smooth(points, 1 / 25) for points in noise])
    assert rest[20:].mean(axis=1).std() < 0.5 * noise[20:].mean(axis=1).std()
    smooth = OneEuro()
    way = [np.full((5, 2), 0.5 * index / 25) for index in range(50)]  # half a face a second
    assert np.abs(smooth(way[0], 1 / 25) - way[0]).max() == 0
    moved = [smooth(points, 1 / 25) for points in way[1:]]
    assert np.abs(moved[-1] - way[-1]).max() < 0.02
    smooth = OneEuro()
    square = np.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
    nearing = [
        square * (1 + 0.5 * index / 25) for index in range(50)
    ]  # grows by a half a second, in its place
    assert np.abs([smooth(points, 1 / 25) for points in nearing][-1] - nearing[-1]).max() < 0.02
    with pytest.raises(ValueError, match="expected Hz above 0"):
        OneEuro(cutoff=0)


def test_the_interval_is_checked() -> None:
    with pytest.raises(ValueError, match="detect_every: expected at least 1 frame, got 0"):
        tracker(every=0)
