from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline, photo_array
from PIL import Image
from toy_demo import BoxPipeline, MeanEncoder, toy_face, toy_handlers

from diffusers_dedim.demo import protect as scores
from diffusers_dedim.demo.handlers import DemoHandlers, Upload
from diffusers_dedim.demo.protect import Protector, Score, ScoreScale, StepWatcher
from diffusers_dedim.demo.queue import StoppedError
from diffusers_dedim.demo.results import RunView
from diffusers_dedim.demo.texts import DemoError
from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.images.files import decode_photo

FACES = [toy_face(20, 30, 60), toy_face(120, 40, 50), toy_face(180, 0, 18)]


class OtherEncoder(MeanEncoder):
    fingerprint = "other"


@pytest.fixture
def path(tmp_path: Path) -> str:
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    exif.get_ifd(0x8825)[1] = "N"
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "holiday.jpg", exif=exif, quality=95)
    return str(tmp_path / "holiday.jpg")


@dataclass
class Single:
    """The result of a run on one photo, its pictures opened."""

    run: RunView

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run if hasattr(self.run, name) else self.run.photos[0], name)

    def pixels(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(getattr(self.run.photos[0], name)).convert("RGB"))

    @property
    def data(self) -> bytes | None:
        return Path(self.run.download).read_bytes() if self.run.download else None


def protect(handlers: DemoHandlers, path: str, chosen: list[int], **changes: Any) -> Single:
    arguments = {"strength": "standard", "other": None, "session": "s", "folder": str(Path(path).parent)}
    return Single(handlers.protect(handlers.open([Upload(path)]), chosen, **{**arguments, **changes}))


def test_everybody_is_chosen_at_first_and_a_click_finds_one(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES)
    opened = handlers.open([Upload(path)])
    assert opened.everybody == [0, 1, 2]
    assert handlers.person_at(opened, 0, 40, 50) == 0
    assert handlers.person_at(opened, 0, 5, 5) is None
    assert handlers.person_at(opened, 0, 185, 5) == 2  # small, to be blurred
    assert handlers.picture(opened, [0], 0).size == (200, 120)


def test_only_the_chosen_face_changes_and_the_other_is_told(path: str) -> None:
    view = protect(toy_handlers(lambda _: FACES), path, [1])
    before, after = view.pixels("before"), view.pixels("after")
    assert abs(before[35:85, 25:75].astype(int) - after[35:85, 25:75]).mean() < 3  # JPEG only
    assert abs(before[45:85, 125:165].astype(int) - after[45:85, 125:165]).mean() > 30
    assert [name for name, _ in view.left_out] == ["Person 1", "A small face"]
    assert "Person 1 and A small face" in view.verdict
    assert "were left out and are <strong>not protected</strong>." in view.verdict
    assert view.verdict.count("<img") == 2  # whoever was joined to the wrong person is seen
    assert "One face was changed, and is below" in view.verdict
    assert Path(view.download).name == "dedim-some-faces.jpg"
    assert view.label == "Download (2 faces left out, not protected)"


def test_the_file_is_what_is_shown_and_has_no_metadata(path: str) -> None:
    view = protect(toy_handlers(lambda _: FACES[:2]), path, [0, 1])
    assert Path(view.download).name == "dedim.jpg"  # nothing of the upload's name
    np.testing.assert_array_equal(decode_photo(view.data).pixels, view.pixels("after"))
    assert b"Exif" not in view.data
    assert b"Exif" in Path(path).read_bytes()
    assert "2 faces were changed, and are below" in view.verdict
    assert view.run.label == "Download"


def test_a_face_above_the_threshold_gives_no_file(path: str) -> None:
    view = protect(toy_handlers(lambda _: FACES[:1], reached=False), path, [0])
    assert view.data is None
    assert view.file_name is None
    assert "<strong>Not protected.</strong>" in view.verdict
    assert "so this picture is not offered as a file" in view.verdict
    assert "Try again: each run starts from new noise." in view.verdict
    assert "tronger" not in view.verdict  # a lower threshold is harder to reach
    assert "above the threshold: not protected" in view.scores


def test_the_written_file_must_be_below_the_threshold_too(path: str) -> None:
    """A pipeline that claims success while the picture still matches is not believed."""
    handlers = toy_handlers(lambda _: FACES[:1], reached=False)
    handlers.protector.pipe.__class__ = Liar
    view = protect(handlers, path, [0])
    assert view.data is None
    assert [card.reached for card in view.faces] == [False]


def test_what_cannot_be_changed_is_blurred_and_said_so(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES)
    handlers.protector.pipe.__class__ = Blurring
    view = protect(handlers, path, [0, 2])
    keywords = handlers.protector.pipe.keywords[0]
    assert (keywords["small_faces"], keywords["fallback"]) == ("blur", "blur")
    assert view.data is not None  # whatever the score of what is blurred
    assert [(card.changed, card.reached) for card in view.faces] == [(True, True), (False, True)]
    assert "threshold; 1 was blurred." in " ".join(view.verdict.split())
    assert "blurred: under 40 px" in view.scores
    assert view.table["faces"][1]["reason"] == "under 40 px"


class Blurring(BoxPipeline):
    def __call__(self, photos: list[Image.Image], **keywords: Any) -> Any:
        out = super().__call__(photos, **keywords)
        out.faces[1] = replace(
            out.faces[1], treatment="blurred", reached_threshold=False, reason="under 40 px"
        )
        return out


class Liar(BoxPipeline):
    def __call__(self, photos: list[Image.Image], **keywords: Any) -> Any:
        out = super().__call__(photos, **keywords)
        out.faces = [replace(face, reached_threshold=True) for face in out.faces]
        return out


def test_the_strength_is_the_preset(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES[:1])
    for strength in ("gentler", "standard", "stronger", "paper"):
        protect(handlers, path, [0], strength=strength)
    asked = [call["preset"] for call in handlers.protector.pipe.keywords]
    assert asked == ["gentle", "fast", "strong", "paper"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"chosen": []}, "Choose at least one person."),
        ({"chosen": [0], "strength": "much"}, "strength: expected one of ['gentler', 'standard', 'stronger'"),
        ({"chosen": [0], "strength": ["paper"]}, "got ['paper']."),
    ],
)
def test_wrong_choices_are_told(path: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DemoError, match=re.escape(text)):
        protect(toy_handlers(lambda _: FACES), path, **changes)


def test_a_session_that_has_ended_is_told() -> None:
    with pytest.raises(DemoError, match="The photos are not here any more; please choose them again"):
        toy_handlers(lambda _: FACES).protect(None, [0], "standard", None, "s", "")


def test_an_unexpected_error_names_its_type_only(path: str) -> None:
    handlers = DemoHandlers(Protector(FakePipeline()), lambda _: FACES, lambda _: FACES)
    with pytest.raises(
        DemoError, match=r"Something went wrong here \(\w+Error\), and nothing was protected"
    ) as caught:
        protect(handlers, path, [0])
    assert "holiday" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_stop_ends_the_run_of_its_session_only(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES[:1], pause=0.02, rounds=100)
    shares: list[float] = []

    def report(share: float, words: str) -> None:
        shares.append(share)
        handlers.stop("somebody else")
        if len(shares) == 5:
            threading.Thread(target=handlers.stop, args=("s",)).start()

    start = time.monotonic()
    with pytest.raises(DemoError, match=r"Stopped\. Nothing was changed\."):
        protect(handlers, path, [0], report=report)
    assert time.monotonic() - start < 10  # of 20 s
    assert shares[:5] == sorted(shares[:5])
    handlers.stop("s")  # nothing runs: nothing happens
    handlers.protector.pipe.rounds = 1
    assert protect(handlers, path, [0]).data is not None


def test_stop_reaches_a_run_that_is_on_its_way(path: str) -> None:
    """Between the click on the button and the first step, or while others are before it."""
    handlers = toy_handlers(lambda _: FACES[:1])
    handlers.expect("s")
    handlers.expect("s")  # a double click
    handlers.stop("s")
    with pytest.raises(DemoError, match=r"^Stopped\. Nothing was changed\.$"):
        protect(handlers, path, [0])
    handlers.expect("s")
    assert protect(handlers, path, [0]).data is not None
    handlers.expect("s")
    handlers.leave("s")
    assert not handlers._running


def test_one_photo_at_a_time_also_for_programs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = toy_handlers(lambda _: FACES[:1], rounds=10**6, pause=0.001)  # it ends when it is stopped
    waiting: list[str] = []

    def report(share: float, words: str) -> None:
        if words.startswith("Waiting"):
            waiting.append(words)
            handlers.stop("first")

    with ThreadPoolExecutor(2) as pool:
        handlers.expect("first")
        first = pool.submit(protect, handlers, path, [0], session="first")
        while not handlers.protector.pipe.keywords:
            time.sleep(0.001)
        handlers.protector.pipe.rounds = 1  # of those that come now
        second = pool.submit(protect, handlers, path, [0], session="second", report=report)
        with pytest.raises(DemoError, match="Stopped"):
            first.result(60)
        assert second.result(60).data is not None
    assert set(waiting) == {"Waiting: 1 photo before this one"}
    monkeypatch.setattr(handlers._line, "_longest", -1)
    with pytest.raises(
        DemoError, match=r"photos are waiting here already\. Please try again in some minutes\."
    ):
        handlers.protect_file(Upload(path), "standard", str(Path(path).parent))


def test_a_run_that_takes_too_long_is_ended() -> None:
    watcher = StepWatcher(lambda share, words: None, threading.Event(), 10, 2, max_seconds=0.0)
    time.sleep(0.01)
    with pytest.raises(
        StoppedError, match="Stopped after 0 seconds, the longest this page computes for one photo"
    ):
        watcher(None, 0, 99, {})


def test_progress_tells_the_round_and_never_full() -> None:
    seen: list[tuple[float, str]] = []
    watcher = StepWatcher(lambda *told: seen.append(told), threading.Event(), 2, 2, None)  # type: ignore[arg-type]
    tensors: dict[str, torch.Tensor] = {"sample": torch.zeros(1)}
    for step in (0, 1, 0, 1, 0):  # a third round, of another batch of faces
        assert watcher(None, step, 0, tensors) is tensors
    assert [share for share, _ in seen] == [0.25, 0.5, 0.75, 0.99, 0.99]
    assert seen[2][1] == "Round 2 of at most 2; most photos need fewer"


def test_a_second_photo_is_compared_with_the_face_most_like_it(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES[:2], unseen=Recogniser.of("unseen", OtherEncoder(seed=3)))
    view = protect(handlers, path, [0, 1], other=Upload(path))  # its largest face is the first
    table = [
        [(score["recogniser"], score["against"]) for score in face["scores"]] for face in view.table["faces"]
    ]
    assert table == [
        [("guide", "itself"), ("guide", "other"), ("unseen", "itself"), ("unseen", "other")],
        [("guide", "itself"), ("unseen", "itself")],
    ]
    other = view.table["faces"][0]["scores"][1]
    assert other["before"] == pytest.approx(1, abs=1e-4)  # the very same photo; rounded
    assert other["after"] < 0.5
    assert "The second photo shows several faces; the largest was compared." in view.verdict
    assert "against your second photo" in view.scores
    assert "<b>unseen</b> had no part in it" in view.scores


def test_a_match_with_another_recogniser_is_told_first(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool's own threshold was reached, and still nobody may think that this is all."""
    monkeypatch.setitem(scores.SCALES, "other", ScoreScale(-1.2, -1.1))  # every cosine lies above
    handlers = toy_handlers(lambda _: FACES[:2], unseen=Recogniser.of("unseen", OtherEncoder(seed=3)))
    view = protect(handlers, path, [0, 1])
    assert view.data is not None
    assert "<strong>Changed, but still matched.</strong>" in view.verdict
    assert "would still match person 1 and person 2. Try “Stronger”." in " ".join(view.verdict.split())
    assert "dd-good" not in view.verdict
    assert view.run.label == "Download (see the scores first)"
    for strength in ("stronger", "paper"):
        assert "Try" not in protect(handlers, path, [0, 1], strength=strength).verdict


def test_a_second_photo_that_cannot_be_used_is_left_aside(path: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no photo")
    text = Upload(str(tmp_path / "text.png"))
    view = protect(toy_handlers(lambda _: FACES[:1]), path, [0], other=text)
    assert view.data is not None
    assert "The second photo was left aside. This file could not be used: not a photo" in view.verdict
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    black = Upload(str(tmp_path / "black.png"))
    view = protect(toy_handlers(lambda pixels: FACES[:1] if pixels.any() else []), path, [0], other=black)
    assert "The second photo was left aside. No face was found in it." in view.verdict


def test_without_an_unseen_recogniser_the_page_says_so(path: str) -> None:
    view = protect(toy_handlers(lambda _: FACES[:1]), path, [0])
    assert "No recogniser that had no part in the change is\ninstalled here" in view.scores
    assert "This is not anonymity." in view.scores
    assert "we have measured no line" in view.scores


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1.0, 0.2, "Below the line: it would no longer take the two for the same person."),
        (1.0, 0.5, "Above the line: it would still take the two for the same person."),
        (0.3, 0.1, "Below the line, but it was so before the change too: this pair says little."),
    ],
)
def test_the_verdict_on_a_score(before: float, after: float, verdict: str) -> None:
    from diffusers_dedim.demo.texts import _bar

    bar = _bar(Score("dlib", "other", before, after, ScoreScale(0.0, 0.5)))
    assert bar.verdict == verdict
    assert bar.line_at is not None
    assert (bar.after_at >= bar.line_at) is (after >= 0.5)


def test_a_score_on_the_line_matches() -> None:
    assert Score("x", "itself", 1.0, 0.5, ScoreScale(0.0, 0.5)).still_matches


def test_the_unseen_recogniser_is_dlib_or_cached_facenet_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[str] = []

    def load(spec: str) -> str:
        loaded.append(spec)
        if spec == "dlib":
            raise ImportError("no dlib")
        return spec

    monkeypatch.setattr(scores, "load_recogniser", load)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert scores.load_unseen() is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "20180402-114759-vggface2.pt").write_bytes(b"")
    assert scores.load_unseen() == f"facenet={tmp_path}/checkpoints/20180402-114759-vggface2.pt"
    assert loaded == ["dlib", "dlib", loaded[-1]]


def test_programs_number_faces_from_one_and_get_no_unprotected_file(path: str) -> None:
    folder, handlers = str(Path(path).parent), toy_handlers(lambda _: FACES)

    def numbers(*more: Any) -> list[int]:
        view = handlers.protect_file(Upload(path), "standard", folder, *more)
        return [face["face"] for face in view.photos[0].table["faces"]]

    assert numbers([2]) == [2]
    assert numbers() == [1, 2, 3]
    with pytest.raises(DemoError, match="Face 9 cannot be chosen"):
        numbers([9])
    failing = toy_handlers(lambda _: FACES[:1], reached=False)
    with pytest.raises(DemoError, match=r"Not protected, so there is no file: 1 of 1 faces still match"):
        failing.protect_file(Upload(path), "standard", folder)
    with pytest.raises(DemoError, match="No face was found in this photo, so there is nothing to protect"):
        toy_handlers(lambda _: []).protect_file(Upload(path), "standard", folder)


def test_the_scales_are_those_of_known_fingerprints() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in scores.SCALES if key != "toy")
    assert all(-1 < scale.strangers < scale.line < 1 for scale in scores.SCALES.values())
    assert photo_array().shape[2] == 3
