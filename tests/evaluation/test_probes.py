from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_experiment import BYSTANDER, CENTRAL, MeanColour, SwapColours, detect, photo_of, write_experiment

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import Recogniser, embed_faces, load_recogniser
from diffusers_dedim.evaluation import (
    ArrayCache,
    Gallery,
    central_face,
    embed_gallery,
    evaluate_probes,
    make_panel,
    prepare_probes,
    protect_probes,
    read_protocol,
    same_face,
    score_photos,
)
from diffusers_dedim.evaluation.panels import make_rank_panel
from diffusers_dedim.faces import Face, align_face

TOY = Recogniser("toy", MeanColour(), "1")


class Photographer(MeanColour):
    """An encoder that wants the photo."""

    def embed_photo(self, photo: np.ndarray, face: Face) -> torch.Tensor:
        assert face is CENTRAL
        return torch.tensor([1.0, 0.0]) if photo.mean() > 0 else torch.tensor([0.0, 1.0])


@pytest.fixture
def experiment(tmp_path: Path):
    people = ["red", "green", "blue"]
    protocol = read_protocol(write_experiment(tmp_path / "e.parquet", people, people))
    cache = ArrayCache(tmp_path / "cache")
    gallery = embed_gallery(protocol.gallery, [TOY], detect, cache)
    return prepare_probes(protocol.probes, detect, cache), gallery


def test_the_central_face_is_meant() -> None:
    assert central_face(photo_of("red"), detect) is CENTRAL
    assert central_face(photo_of("nobody"), detect) is None


def test_a_face_is_found_where_it_was() -> None:
    moved = Face((24.0, 14.0, 104.0, 114.0), CENTRAL.landmarks, 0.9)
    assert same_face(photo_of("red"), CENTRAL, lambda _: [BYSTANDER, moved]) is moved
    assert same_face(photo_of("red"), CENTRAL, lambda _: [BYSTANDER]) is None
    assert same_face(photo_of("red"), CENTRAL, lambda _: []) is None


def test_nobody_stands_in_for_a_face_that_is_lost(experiment) -> None:
    """The photos are unchanged: a search in the bystander's face would call them protected."""
    probes, gallery = experiment
    scores = score_photos(probes, [probe.photo for probe in probes], gallery, [TOY], lambda _: [BYSTANDER])
    assert scores.undetected == len(probes)
    assert scores.rank1 == {"toy": 1.0}


def test_encoders_get_the_crop_or_the_photo() -> None:
    photo = photo_of("red")
    crop = align_face(photo, CENTRAL).crop[None]
    np.testing.assert_array_equal(embed_faces(MeanColour(), [photo], [CENTRAL]), MeanColour()(crop).numpy())
    assert embed_faces(Photographer(), [photo, photo * 0], [CENTRAL, CENTRAL]).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="faces: expected one for each photo, got 0 for 1"):
        embed_faces(MeanColour(), [photo], [])


def test_an_attacker_finds_originals_and_loses_changed_photos(experiment) -> None:
    probes, gallery = experiment
    originals = score_photos(probes, [probe.photo for probe in probes], gallery, [TOY], detect)
    assert originals.rank1 == {"toy": 1.0}
    assert np.isinf(originals.psnr).all()
    np.testing.assert_allclose(originals.ssim, 1)

    pipe = SwapColours()
    protection, scores = evaluate_probes(pipe, probes, gallery, [TOY], detect, batch_size=2)
    assert [call["photos"] for call in pipe.calls] == [2, 1]
    assert len(protection.faces) == 3
    assert protection.seconds > 0
    assert scores.rank1 == {"toy": 0.0}
    assert scores.similarities["toy"].shape == (3, 3)
    assert (scores.psnr < 20).all()
    assert scores.undetected == 0
    assert scores.crops_after.shape == (3, 3, 112, 112)


def test_a_face_the_detector_loses_is_matched_where_it_was(experiment) -> None:
    probes, gallery = experiment
    scores = score_photos(probes, [probe.photo for probe in probes], gallery, [TOY], lambda photo: [])
    assert scores.undetected == 3
    assert scores.detected.tolist() == [False] * 3
    assert scores.rank1 == {"toy": 1.0}


def test_photos_without_a_face_are_left_out_and_never_matched(tmp_path: Path) -> None:
    people = ["red", "nobody"]
    protocol = read_protocol(write_experiment(tmp_path / "e.parquet", people, people))
    cache = ArrayCache(tmp_path / "cache")
    probes = prepare_probes(protocol.probes, detect, cache)
    gallery = embed_gallery(protocol.gallery, [TOY], detect, cache)
    assert [probe.person for probe in probes] == ["red"]
    assert gallery.undetected == 1
    scores = score_photos(probes, [probes[0].photo], gallery, [TOY], detect)
    assert np.isneginf(scores.similarities["toy"][0, 1])


def test_the_gallery_is_embedded_once_per_recogniser_and_detector(tmp_path: Path) -> None:
    protocol = read_protocol(write_experiment(tmp_path / "e.parquet", ["red"], ["red", "blue"]))
    calls = []

    class Counting(MeanColour):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            calls.append(len(crops))
            return super().forward(crops)

    def run(fingerprint: str, detector=detect) -> Gallery:
        recogniser = Recogniser("toy", Counting(), fingerprint)
        return embed_gallery(protocol.gallery, [recogniser], detector, ArrayCache(tmp_path / "cache"))

    first, again = run("1"), run("1")
    assert calls == [2]
    np.testing.assert_array_equal(first.embeddings["toy"], again.embeddings["toy"])
    run("2")
    run("1", lambda photo: [BYSTANDER])
    assert calls == [2, 2, 2]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"cut short")
    assert np.array_equal(run("1").embeddings["toy"], first.embeddings["toy"])
    with pytest.raises(ValueError, match=r"recognisers: expected different names, got \['toy', 'toy'\]"):
        embed_gallery(protocol.gallery, [TOY, TOY], detect, ArrayCache(tmp_path / "cache"))


def test_what_a_method_gives_back_is_checked(experiment) -> None:
    probes, gallery = experiment
    with pytest.raises(ValueError, match=r"photos\[0\]: expected uint8 of the probe's shape \[120, 120, 3\]"):
        score_photos(probes, [probe.photo[:50] for probe in probes], gallery, [TOY], detect)
    with pytest.raises(ValueError, match="photos: expected 3, one for each probe, got 1"):
        score_photos(probes, [probes[0].photo], gallery, [TOY], detect)
    with pytest.raises(ValueError, match=r"no embeddings by 'other', only by \['toy'\]"):
        score_photos(
            probes, [p.photo for p in probes], gallery, [Recogniser("other", MeanColour(), "")], detect
        )
    assert protect_probes(SwapColours(), probes, batch_size=8).photos[0].dtype == np.uint8


def test_recognisers_are_named_on_the_command_line(tmp_path: Path) -> None:
    for spec in ("foamliu", "x=y.bin"):
        with pytest.raises(
            ValueError, match=rf"recogniser: expected 'dlib', 'NAME=FILE.onnx' .* got '{spec}'"
        ):
            load_recogniser(spec)
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        load_recogniser(f"x={tmp_path}/none.onnx")
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert Recogniser.of("a", first).fingerprint == Recogniser.of("b", first).fingerprint
    assert Recogniser.of("a", first).fingerprint != Recogniser.of("a", second).fingerprint


def test_the_bundled_recogniser_may_be_a_black_box() -> None:
    """For runs that another recogniser guides: the guides as one."""
    ours = load_recogniser("ours")
    guides = DeDiMPipeline.from_pretrained().face_encoder
    assert ours.name == "ours"
    for encoder in (ours.encoder.encoder, guides):
        assert torch.equal(*(next(each.parameters()) for each in (encoder, guides)))
    assert ours.encoder(torch.zeros(2, 3, 112, 112)).ndim == 2
    assert not any(weight.requires_grad for weight in ours.encoder.parameters())


def test_panel_shows_before_after_and_difference() -> None:
    before = torch.zeros(3, 3, 112, 112)
    panel = np.asarray(make_panel(before, before + 2 / 127.5, ["a", "b", "c"]))
    assert panel.shape == (2 * (224 + 18), 2 * 672 + 12, 3)
    assert panel[100, 100].tolist() == [128] * 3  # 127.5 rounds to even
    assert panel[100, 300].tolist() == [130] * 3
    assert panel[100, 600].tolist() == [144] * 3  # 127.5 + 8 * 2, to even
    assert panel[300, 800].tolist() == [255] * 3  # no fourth face
    with pytest.raises(
        ValueError, match=r"expected N > 0 faces of one shape and N labels, got \[3, 3, 112, 112\]"
    ):
        make_panel(before, before, ["a"])


def test_names_and_notes_on_the_rank_panel_have_room() -> None:
    name = "dedim:fast@h=0.42+max_rounds=20"
    faces = torch.ones(1, 3, 112, 112)
    short, long, noted = (
        np.asarray(make_rank_panel({method: faces}, {method: [1]}, notes))
        for method, notes in (("a", None), (name, None), (name, {name: "18 UNet calls"}))
    )
    assert short.shape == (254, 130 + 224, 3)
    left = long.shape[1] - 224
    assert left > 130
    assert noted.shape == long.shape
    ink = [(panel[:, :left] < 128).any(axis=(1, 2)).sum() for panel in (long, noted)]
    assert ink[1] > ink[0], "a line more"
    assert (long[:, left - 8 : left] == 255).all(), "the name ends before the face"


def test_rank_panel_has_a_row_a_method_and_the_ranks_below() -> None:
    faces = torch.zeros(3, 3, 112, 112)
    panel = np.asarray(make_rank_panel({"a": faces, "b": faces + 1}, {"a": [1, 1, 1], "b": [2, 30, 999]}))
    assert panel.shape == (2 * (224 + 18 + 12), 130 + 3 * (224 + 12) - 12, 3)
    assert panel[100, 200].tolist() == [128] * 3
    assert panel[400, 200].tolist() == [255] * 3
    assert (panel[254 + 224 : 254 + 242, 130:] < 128).any()  # the numbers
    for ranks in ({"a": [1, 1]}, {"b": [1, 1, 1]}):
        with pytest.raises(ValueError, match="rows, ranks: expected the same N > 0 faces and N ranks"):
            make_rank_panel({"a": faces}, ranks)
