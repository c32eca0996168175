"""What the page is made of: Gradio's components in four cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from diffusers_dedim.demo import events
from diffusers_dedim.demo.files import uploaded_file
from diffusers_dedim.demo.handlers import MAX_BYTES, MAX_PHOTOS, Upload
from diffusers_dedim.demo.photos import MAX_DEMO_PIXELS
from diffusers_dedim.demo.texts import DemoError

SLIDER_HINT = '<p class="dd-hint">Drag the line: before on its left, after on its right.</p>'
CHANGE_HINT = '<p class="dd-hint">What changed, eight times enlarged. Grey is unchanged.</p>'
LIMITS = (
    f'<p class="dd-hint">Up to {MAX_PHOTOS} photos and {MAX_BYTES // 1_000_000} MB together, each up to '
    f"{MAX_DEMO_PIXELS // 1_000_000} megapixels. You can also take one with the camera, or paste one.</p>"
)
DRAW_HINT = (
    '<p class="dd-hint">Click on two opposite corners of the face in the photo above. Or say where it lies, '
    "in per cent of the photo.</p>"
)
_SOURCES: Any = ["upload", "webcam", "clipboard"]
_EDGES = {"left": 40, "top": 20, "right": 60, "bottom": 50}


@dataclass(frozen=True)
class UploadCard:
    """Step 1."""

    card: Any
    photos: Any
    problem: Any
    example: Any
    read: Callable[[Any], list[Upload]]


@dataclass(frozen=True)
class PeopleCard:
    """Step 2."""

    card: Any
    sentence: Any
    problems: Any
    portraits: Any
    chosen: Any
    which: Any
    picture: Any
    drawing: Any
    edges: tuple[Any, ...]
    add: Any
    drawn: Any
    heard: Any
    back: Any


@dataclass(frozen=True)
class SettingsCard:
    """Step 3."""

    card: Any
    strength: Any
    paper: Any
    other: Any
    read_other: Callable[[Any], Upload | None]
    run: Any
    stop: Any
    status: Any


@dataclass(frozen=True)
class ResultCard:
    """The result."""

    card: Any
    verdict: Any
    download: Any
    gone: Any
    which: Any
    slider: Any
    change: Any
    scores: Any


def upload_card() -> UploadCard:
    """Where photos come in."""
    with gr.Column(elem_classes="dd-card") as card:
        gr.Markdown("## 1. Choose photos")
        field = gr.Gallery(
            file_types=["image"],
            sources=_SOURCES,
            show_label=False,
            label="Photos",
            buttons=[],
            columns=4,
            height=260,
            interactive=True,
            elem_id="photos",
        )

        # not as the field's own preprocess: Gradio makes a new field for a session at its first update, `gr.skip()` too
        def read(payload: Any) -> list[Upload]:
            items = payload if isinstance(payload, list) else []
            images = [item.get("image") if isinstance(item, dict) else None for item in items]
            return [_uploaded("photos", image, field.GRADIO_CACHE) for image in images]

        problem = gr.HTML(elem_id="problem")
        gr.HTML(LIMITS)
        example = gr.Button("Try an example", size="sm", elem_id="example")
    return UploadCard(card, field, problem, example, read)


def people_card() -> PeopleCard:
    """Who is on the photos, and who of them is chosen."""
    with gr.Column(visible=False, elem_classes="dd-card") as card:
        gr.Markdown("## 2. Choose people")
        sentence = gr.HTML(elem_id="found")
        problems = gr.HTML(elem_id="problems")
        portraits = gr.HTML(elem_id="portraits")
        chosen = gr.CheckboxGroup(label="People to protect", elem_id="chosen")
        which = gr.Radio(label="Photo", elem_id="which", elem_classes="dd-pages")
        picture = gr.Image(
            format="jpeg",
            interactive=False,
            show_label=False,
            buttons=[],
            elem_id="faces",
            alt_text="The photo with a numbered box around each face",
        )
        with gr.Accordion("A face has no box? Draw one", open=False, elem_id="draw") as drawing:
            gr.HTML(DRAW_HINT)
            with gr.Row(elem_classes="dd-edges"):
                edges = tuple(
                    gr.Number(value, label=name.capitalize(), minimum=0, maximum=100, min_width=60)
                    for name, value in _EDGES.items()
                )
            add = gr.Button("Add this box", size="sm", elem_id="add")
        drawn = gr.HTML(elem_id="drawn")
        # how many clicks the ticks know of; in the page, so that it changes with the ticks
        heard = gr.Number(0, label="Clicks", interactive=False, visible="hidden", elem_id="heard")
        back = gr.Button("Use other photos", size="sm", elem_id="back")
    return PeopleCard(
        card, sentence, problems, portraits, chosen, which, picture, drawing, edges, add, drawn, heard, back
    )


def settings_card(strengths: Sequence[str]) -> SettingsCard:
    """How it is done."""
    with gr.Column(visible=False, elem_classes="dd-card") as card:
        gr.Markdown("## 3. Protect")
        strength = gr.Radio(
            [(name.capitalize(), name) for name in strengths if name != "paper"],
            value="standard",
            label="Strength",
            info="Stronger changes faces more, and recognisers match them less.",
            elem_id="strength",
        )
        with gr.Accordion("Check against another photo", open=False):
            hint = (
                "Whoever searches has other photos. Drop one of the same person here, to see how it compares"
            )
            other, read_other = _photo_field("other", hint)
        with gr.Accordion("More", open=False, visible="paper" in strengths):
            paper = gr.Checkbox(label="As in the paper: many minutes a face", elem_id="paper")
        run = gr.Button("Protect", variant="primary", elem_id="run")
        stop = gr.Button(events.STOP, visible=False, elem_id="stop")
        status = gr.HTML(elem_id="status")
    return SettingsCard(card, strength, paper, other, read_other, run, stop, status)


def result_card() -> ResultCard:
    """What came out."""
    with gr.Column(visible=False, elem_classes="dd-card", elem_id="result") as card:
        gr.Markdown("## Result")
        verdict = gr.HTML(elem_id="verdict")
        download = gr.DownloadButton("Download", variant="primary", visible=False, elem_id="download")
        gone = gr.HTML(elem_id="gone")
        which = gr.Radio(label="Photo", elem_id="result-which", elem_classes="dd-pages")
        with gr.Tabs():
            with gr.Tab("Compare"):
                slider = gr.ImageSlider(
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="slider",
                    max_height=720,
                )
                gr.HTML(SLIDER_HINT)
            with gr.Tab("Difference"):
                change = gr.Image(
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="change",
                    alt_text="The difference between before and after",
                )
                gr.HTML(CHANGE_HINT)
        scores = gr.HTML(elem_id="scores")
    return ResultCard(card, verdict, download, gone, which, slider, change, scores)


def _photo_field(elem_id: str, placeholder: str) -> tuple[gr.Image, Callable[[Any], Upload | None]]:
    """An image field, and what reads the uploaded file untouched: our own reader judges it and words the error."""
    field = gr.Image(
        type="filepath",
        image_mode=None,
        sources=_SOURCES,
        show_label=False,
        label="Another photo of the same person",
        buttons=[],
        height=200,
        elem_id=elem_id,
        placeholder=placeholder,
    )

    def read(payload: Any) -> Upload | None:
        return _uploaded(elem_id, payload, field.GRADIO_CACHE) if payload else None

    return field, read


def _uploaded(name: str, file: Any, cache_dir: str) -> Upload:
    """The page sends uploads; whoever joins the queue by hand may send the path of any file."""
    try:
        path = uploaded_file(name, file, cache_dir)
    except DemoError as error:
        raise gr.Error(str(error), print_exception=False) from None
    name_there = file.get("orig_name") if isinstance(file, dict) else getattr(file, "orig_name", None)
    return Upload(path, str(name_there or Path(path).name))
