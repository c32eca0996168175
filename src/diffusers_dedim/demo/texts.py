"""What the page says: errors in plain words, and the result with its scores."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from PIL import Image

from diffusers_dedim.demo.people import OpenedPhotos, portrait
from diffusers_dedim.demo.photos import MAX_DEMO_PIXELS
from diffusers_dedim.demo.protect import GUIDE_NAME, ProtectedPhoto, Score
from diffusers_dedim.errors import NoFaceError, UnreadablePhotoError
from diffusers_dedim.faces import Face
from diffusers_dedim.faces.find import MIN_FACE_SIZE
from diffusers_dedim.images.files import MAX_PIXELS
from diffusers_dedim.runs.report import data_uri, face_square

if TYPE_CHECKING:
    from diffusers_dedim.demo.results import PhotoView

_BAR_ROOM = 0.35  # of the way from strangers to 1, kept free below strangers
_NO_SCALE_RANGE = (-0.25, 1.0)
GONE = "The photos are not here any more; please choose them again."
FILE_GONE = "The file is not here any more: it is deleted after half an hour. Please choose the photos again."


class DemoError(Exception):
    """Carries a sentence for the user."""


@contextmanager
def plain_words() -> Iterator[None]:
    """Turn every error into a `DemoError`: a traceback would name the user's file."""
    try:
        yield
    except DemoError:
        raise
    except ValueError as error:  # DeDiMError is one
        raise DemoError(explain(error)) from None
    except Exception as error:
        raise DemoError(
            f"Something went wrong here ({type(error).__name__}), and nothing was protected. Please try again."
        ) from None


@dataclass(frozen=True)
class ScoreBar:
    """One score as the page draws it; places are percent of the bar's width."""

    who: str
    against: str
    before: str
    after: str
    before_at: float
    after_at: float
    line: str | None
    line_at: float | None
    verdict: str
    is_match: bool | None


@dataclass(frozen=True)
class FaceCard:
    """One face, and what was done to it."""

    who: str
    before: str
    after: str
    changed: bool
    reached: bool
    done: str
    bars: tuple[ScoreBar, ...]

    @property
    def still(self) -> bool:
        """Whether some recogniser would still match it."""
        return any(bar.is_match for bar in self.bars)


def explain(error: Exception) -> str:
    """Say in plain words what was wrong with a photo; nothing of its name or content.

    Example:
        >>> explain(UnreadablePhotoError("the file is empty (0 bytes)"))
        'This file could not be used: the file is empty (0 bytes).'
    """
    if isinstance(error, NoFaceError):
        return (
            "No face was found in this photo, so there is nothing to protect. Faces that are small, covered or "
            "turned away are sometimes missed; if you see one, the photo is not protected."
        )
    if isinstance(error, UnreadablePhotoError):
        reason = str(error)
        return f"This file could not be used: {_too_large(reason) if 'too large' in reason else reason}."
    return str(error)


def people_found(opened: OpenedPhotos) -> str:
    """Who was found, in a few sentences.

    Args:
        opened: at least one photo.
    """
    photos, people = opened.photos, [person for person in opened.people if not person.small]
    small = sum(len(person.faces) for person in opened.people if person.small)
    where = f" on {len(photos)} photos" if len(photos) > 1 else ""
    said = []
    if people:
        who = "One person" if len(people) == 1 else f"{len(people)} people"
        said.append(f"{who}{where}.")
    if len(opened.people) > 1:
        said.append("Untick whom to leave as they are.")
    if small:
        faces = "One face is" if small == 1 else f"{small} faces are"
        said.append(f"{faces} too small to be changed, under {MIN_FACE_SIZE} pixels, and will be blurred.")
    empty = [photo.number for photo in photos if not photo.faces]
    if empty:
        which = (
            f" in {'photo' if len(empty) == 1 else 'photos'} {join_words(empty)}" if len(photos) > 1 else ""
        )
        said.append(f"No face was found{which}. If you see one, draw a box around it below.")
    return " ".join(said)


def list_problems(opened: OpenedPhotos) -> str:
    """The files that cannot be used, as HTML; empty where there are none."""
    return render_message(
        " ".join(f"Photo {number} ({name}): {why}" for number, name, why in opened.problems), "problem"
    )


def people_labels(opened: OpenedPhotos) -> list[str]:
    """What stands beside each person's tick."""
    labels = []
    for person, tag in zip(opened.people, opened.names, strict=True):
        count = len(person.faces)
        photos = f", {count} photos" if count > 1 else ""
        labels.append(f"{count} small, blurred" if person.small else f"Person {tag}{photos}")
    return labels


def render_portraits(opened: OpenedPhotos) -> str:
    """A style sheet that puts each person's picture beside its tick: Gradio's ticks take words alone."""
    pictures = [portrait(opened, person) for person in opened.people]
    rules = [
        f"#chosen label:nth-of-type({index}) {{ --dd-portrait: url({_webp(picture)}); "
        f"--dd-shape: {picture.width} / {picture.height}; }}"
        for index, picture in enumerate(pictures, 1)
    ]
    return f"<style>{' '.join(rules)}</style>" if rules else ""


def who(tag: str) -> str:
    """What the page calls a face that is tagged so.

    Example:
        >>> who("2"), who("small")
        ('Person 2', 'A small face')
    """
    return "A small face" if tag == "small" else f"Person {tag}"


def face_cards(result: ProtectedPhoto, faces: Sequence[Face], names: Sequence[str]) -> tuple[FaceCard, ...]:
    """What was done to each chosen face.

    Args:
        result: of their photo.
        faces: all faces of the photo.
        names: what each is called.
    """
    before, after = Image.fromarray(result.photo.pixels), Image.fromarray(result.pixels)
    return tuple(
        FaceCard(
            names[index],
            data_uri(face_square(before, faces[index].box)),
            data_uri(face_square(after, faces[index].box)),
            result.treatments[row] == "changed",
            result.reached[row],
            _done(result, row),
            tuple(_bar(score) for score in result.scores[row]),
        )
        for row, index in enumerate(result.chosen)
    )


def render_scores(result: ProtectedPhoto, cards: Sequence[FaceCard], unseen: str | None) -> str:
    """The scores of a photo, and what they mean, as HTML.

    Args:
        result: of the photo.
        cards: its faces.
        unseen: name of the unseen recogniser, or None where none is installed.
    """
    return _render(
        "demo_scores.html",
        cards=cards,
        result=result,
        unseen=unseen,
        has_lines=any(bar.line for card in cards for bar in card.bars),
        has_other=any(score.against == "other" for row in result.scores for score in row),
    )


def render_verdict(views: Sequence[PhotoView], advice: str = "") -> str:
    """What became of the photos, as HTML.

    Args:
        views: of all of them.
        advice: what to try where another recogniser still matches; see `advise`.
    """
    return _render("demo_verdict.html", **_summary(views), advice=advice)


def render_report(views: Sequence[PhotoView]) -> str:
    """The page beside the photos in the ZIP: what was done to each face, and what is not protected or left out."""
    return _render("demo_report.html", **_summary(views))


def _summary(views: Sequence[PhotoView]) -> dict[str, object]:
    done = [view for view in views if view.file_name]
    cards = [card for view in done for card in view.faces]
    return {
        "views": views,
        "done": done,
        "missing": [view for view in views if not view.file_name],
        "changed": sum(card.changed for card in cards),
        "covered": sum(not card.changed for card in cards),
        "still": [view for view in done if any(card.still for card in view.faces)],
        "left_out": [view for view in done if view.left_out],
        "join": join_words,
    }


def advise(strength: str) -> str:
    """What to try next where a face was changed and is still matched; empty where nothing stronger is left.

    Example:
        >>> advise("standard")
        'Try “Stronger”.'
        >>> advise("stronger")
        ''
    """
    return "Try “Stronger”." if strength in ("gentler", "standard") else ""


def render_message(text: str, kind: str = "info") -> str:
    """A short message as HTML; ``kind`` is "info" or "problem"."""
    return (
        _environment()
        .from_string(
            '<p class="dd-message dd-{{ kind }}" role="{{ "alert" if kind == "problem" else "status" }}">{{ text }}</p>'
        )
        .render(text=text, kind=kind)
        if text
        else ""
    )


def render_progress(share: float, words: str) -> str:
    """A bar and what is being done, as HTML; ``share`` in [0, 1]."""
    return (
        _environment()
        .from_string(
            '<div class="dd-progress"><div class="dd-progress-bar" role="progressbar" aria-valuemin="0" '
            'aria-valuemax="100" aria-valuenow="{{ percent }}"><span style="width:{{ percent }}%"></span></div>'
            '<p class="dd-hint">{{ words }}</p></div>'
        )
        .render(percent=round(100 * share), words=words)
    )


def join_words(items: Sequence[object]) -> str:
    """``[1, 2, 3]`` -> ``"1, 2 and 3"``."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def score_table(result: ProtectedPhoto, note: str = "") -> dict[str, object]:
    """The result as plain values, for the API; faces are numbered from left to right, from 1.

    Args:
        result: what came out.
        note: what was wrong with the second photo, if anything.
    """
    faces = [
        {
            "face": index + 1,
            "treatment": result.treatments[row],
            "reason": result.reasons[row],
            "reached_threshold": result.reached[row] and result.treatments[row] == "changed",
            "scores": [
                {
                    "recogniser": score.recogniser,
                    "against": score.against,
                    "before": round(score.before, 4),
                    "after": round(score.after, 4),
                    "line": score.scale and score.scale.line,
                    "still_matches": score.still_matches,
                }
                for score in result.scores[row]
            ],
        }
        for row, index in enumerate(result.chosen)
    ]
    return {
        "faces": faces,
        "left_out_not_protected": [index + 1 for index in result.left_out],
        "seconds": round(result.seconds, 1),
        "note": note,
    }


def _webp(image: Image.Image) -> str:
    """The image, its transparency too, inside a URI."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _done(result: ProtectedPhoto, row: int) -> str:
    """What became of a face, in a few words."""
    if result.treatments[row] != "changed":
        return f"{result.treatments[row]}: {result.reasons[row] or 'it cannot be changed'}"
    return "changed" if result.reached[row] else "above the threshold: not protected"


def _too_large(reason: str) -> str:
    count = re.search(r"[=(] ?(\d+) pixels", reason)  # "60 x 40 = 2400 pixels", or Pillow's "(2400 pixels)"
    size = f" ({int(count[1]) / 1e6:.0f} megapixels)" if count else ""
    return (
        f"the photo is too large{size}. This page takes up to {MAX_DEMO_PIXELS // 1_000_000} megapixels; make "
        f"it smaller first, or use the command dedim run, which takes up to {MAX_PIXELS // 1_000_000}"
    )


def _bar(score: Score) -> ScoreBar:
    scale = score.scale
    low, high = (
        _NO_SCALE_RANGE if scale is None else (scale.strangers - _BAR_ROOM * (1 - scale.strangers), 1.0)
    )

    def place(value: float) -> float:
        return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 1)

    who = "This tool's own guides" if score.recogniser == GUIDE_NAME else score.recogniser
    against = "against the photo as it was" if score.against == "itself" else "against your second photo"
    return ScoreBar(
        who,
        against,
        f"{score.before:.2f}",
        f"{score.after:.2f}",
        place(score.before),
        place(score.after),
        f"{scale.line:.2f}" if scale else None,
        place(scale.line) if scale else None,
        _verdict(score),
        score.still_matches,
    )


def _verdict(score: Score) -> str:
    if score.scale is None:
        return "For this recogniser we have measured no line, so the number stands alone."
    if score.still_matches:
        return "Above the line: it would still take the two for the same person."
    if score.before < score.scale.line:
        return "Below the line, but it was so before the change too: this pair says little."
    return "Below the line: it would no longer take the two for the same person."


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("diffusers_dedim"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
