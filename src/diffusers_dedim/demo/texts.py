"""What the page says: errors in plain words, and the result with its scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader
from PIL import Image

from diffusers_dedim.demo.photos import MAX_DEMO_PIXELS, OpenedPhoto
from diffusers_dedim.demo.protect import GUIDE_NAME, ProtectedPhoto, Score
from diffusers_dedim.errors import NoFaceError, UnreadablePhotoError
from diffusers_dedim.faces.find import MIN_FACE_SIZE
from diffusers_dedim.runs.report import data_uri, face_square

PRESET_LABELS = {
    "fast": "Fast (recommended)",
    "gentle": "Gentle (changes the face less, hides it less)",
    "strong": "Strong (aims lower and tries longer; changes the face more)",
    "paper": "As in the paper (many minutes a face)",
}
_BAR_ROOM = 0.35  # of the way from strangers to 1, kept free below strangers
_NO_SCALE_RANGE = (-0.25, 1.0)


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
    """One changed face as the page draws it."""

    number: int
    before: str
    after: str
    reached: bool
    done: str
    bars: tuple[ScoreBar, ...]


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


def face_list(opened: OpenedPhoto) -> str:
    """One sentence about the faces found."""
    count, small = len(opened.faces), len(opened.small)
    text = "One face was found." if count == 1 else f"{count} faces were found."
    if small:
        are = "One is" if small == 1 else f"{small} are"
        text += f" {are} under {MIN_FACE_SIZE} pixels, too small to be changed, and will be blurred."
    if count > 1:
        text += " Click on a face to leave it out; click again to take it in."
    return text


def render_result(
    opened: OpenedPhoto, result: ProtectedPhoto, unseen: str | None, note: str = "", advice: str = ""
) -> tuple[str, str]:
    """The words above and below the picture, as HTML: what was reached and left out; what the scores mean.

    Args:
        opened: the photo as it was.
        result: what came out.
        unseen: name of the unseen recogniser, or None where none is installed.
        note: one more sentence, e.g. about the second photo.
        advice: what to try where another recogniser still matches; see `advise`.
    """
    before, after = Image.fromarray(opened.photo.pixels), Image.fromarray(result.pixels)
    cards = [
        FaceCard(
            index + 1,
            data_uri(face_square(before, opened.faces[index].box)),
            data_uri(face_square(after, opened.faces[index].box)),
            result.reached[row],
            _done(result, row),
            tuple(_bar(score) for score in result.scores[row]),
        )
        for row, index in enumerate(result.chosen)
    ]
    values = {
        "cards": cards,
        "result": result,
        "numbers": [card.number for card in cards],
        "blurred": [card.number for row, card in enumerate(cards) if result.treatments[row] != "changed"],
        "missed": [card.number for card in cards if not card.reached],
        "still": _still_matching(result),
        "left_out": join_numbers([index + 1 for index in result.left_out]),
        "left_out_count": len(result.left_out),
        "unseen": unseen,
        "has_lines": any(bar.line for card in cards for bar in card.bars),
        "has_other": any(score.against == "other" for row in result.scores for score in row),
        "notes": [*([note] if note else []), *opened.photo.notes],
        "advice": advice,
        "join": join_numbers,
    }
    verdict, scores = (
        _environment().get_template(f"demo_{part}.html").render(**values) for part in ("verdict", "scores")
    )
    return verdict, scores


def advise(preset: str, strength: str, presets: Sequence[str]) -> str:
    """What to try next where a face was changed and is still matched; empty where nothing stronger is left.

    Args:
        preset, strength: names of what was chosen.
        presets: names of those that are offered.

    Example:
        >>> advise("fast", "standard", ["fast", "strong"])
        'Try the strength “Stronger”.'
        >>> advise("strong", "stronger", ["fast", "strong"])
        ''
    """
    if strength != "stronger":
        return "Try the strength “Stronger”."
    next_one = {"gentle": "fast", "fast": "strong"}.get(preset, "")  # "paper" aims lower than "strong"
    if next_one in presets:
        return f"Try the preset “{PRESET_LABELS[next_one].partition(' (')[0]}”."
    return ""


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


def join_numbers(numbers: Sequence[int]) -> str:
    """``[1, 2, 3]`` -> ``"1, 2 and 3"``."""
    words = [str(number) for number in numbers]
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


def _done(result: ProtectedPhoto, row: int) -> str:
    """What became of a face, in a few words."""
    if result.treatments[row] != "changed":
        return f"{result.treatments[row]}, for it is too small to be changed"
    return "below the threshold" if result.reached[row] else "above the threshold: not protected"


def _too_large(reason: str) -> str:
    count = re.search(r"[=(] ?(\d+) pixels", reason)  # "60 x 40 = 2400 pixels", or Pillow's "(2400 pixels)"
    size = f" ({int(count[1]) / 1e6:.0f} megapixels)" if count else ""
    return (
        f"the photo is too large{size}. This page takes up to {MAX_DEMO_PIXELS // 1_000_000} megapixels; make "
        "it smaller first, or use the command dedim run, which takes up to 134"
    )


def _still_matching(result: ProtectedPhoto) -> list[int]:
    """Numbers of the faces that some recogniser would still match."""
    return [
        index + 1
        for row, index in enumerate(result.chosen)
        if any(score.still_matches for score in result.scores[row])
    ]


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


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("diffusers_dedim"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
