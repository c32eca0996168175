"""The page itself: Gradio's components in four cards, which event calls what, its endpoint and its theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_bytes_to_cache
from gradio.themes.utils import colors, sizes

from diffusers_dedim.demo import events
from diffusers_dedim.demo.files import uploaded_file
from diffusers_dedim.demo.handlers import QUEUE_SIZE, DemoError, DemoHandlers
from diffusers_dedim.demo.protect import STRENGTHS
from diffusers_dedim.demo.texts import PRESET_LABELS, score_table

_TEAL = colors.Color(
    name="teal",
    c50="#eef7f6",
    c100="#d6ebe9",
    c200="#aed7d4",
    c300="#7fbfbb",
    c400="#4ba39e",
    c500="#2a857f",
    c600="#1f6f6b",
    c700="#1a5a57",
    c800="#174846",
    c900="#133a38",
    c950="#0a2423",
)
_STONE = colors.Color(
    name="stone",
    c50="#faf9f7",
    c100="#f6f5f2",
    c200="#e9e7e1",
    c300="#d6d3cb",
    c400="#a9adb0",
    c500="#6b747b",
    c600="#4b545b",
    c700="#333a40",
    c800="#1e2327",
    c900="#191d20",
    c950="#15181b",
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO_FONTS = ("ui-monospace", "SF Mono", "Consolas", "monospace")

_DESCRIPTION = (
    "Protect faces of one photo. Returns the file and its scores; raises an error, and returns no file, where a "
    "chosen face stayed above the threshold. faces: numbers from left to right, from 1; none for all. "
    "treatment: a face under 40 px is blurred, the others are changed. note: what was wrong with the second "
    "photo. It lowers automatic matching; it does not make anybody anonymous."
)

HERE = Path(__file__).parent
EXAMPLE = HERE / "examples" / "astronaut.jpg"
DELETE_CACHE = (300, 1800)
"""Every 5 minutes, files older than 30 minutes are deleted: uploads, shown copies, results. What Gradio keeps in memory
goes at the same times (`sessions`)."""

INTRO = """# Make faces harder to match

Choose a photo, and who in it. It comes back at its own size, with those faces changed a little, so that face
recognition **matches them less**. It does not make anybody anonymous: people who know the person will recognise
them, and other recognisers may too.
"""
PRIVACY = (
    "Photos are processed {where}. They are not logged, and are deleted within 35 minutes (of the end of a run, where "
    "one takes longer). Camera, date and place (EXIF) are not written to the result."
)
SLIDER_HINT = '<p class="dd-hint">Drag the line: before on its left, after on its right.</p>'
CHANGE_HINT = '<p class="dd-hint">The difference, eight times enlarged. Grey is unchanged.</p>'
SHOW_RESULT = "() => document.getElementById('result')?.scrollIntoView({behavior: 'smooth', block: 'start'})"
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}


@dataclass(frozen=True)
class UploadCard:
    """Step 1."""

    card: Any
    photo: Any
    problem: Any
    example: Any


@dataclass(frozen=True)
class FacesCard:
    """Step 2."""

    card: Any
    sentence: Any
    picture: Any
    chosen: Any
    back: Any


@dataclass(frozen=True)
class SettingsCard:
    """Step 3."""

    card: Any
    strength: Any
    preset: Any
    other: Any
    run: Any
    stop: Any
    status: Any


@dataclass(frozen=True)
class ResultCard:
    """The result."""

    card: Any
    verdict: Any
    slider: Any
    change: Any
    download: Any
    scores: Any


def build_demo(handlers: DemoHandlers, where: str) -> gr.Blocks:
    """Lay out the page.

    Args:
        handlers: its actions.
        where: where photos are processed, e.g. "on this computer".
    """
    title = "dedim: make faces harder to match"
    demo: gr.Blocks = gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_CACHE)
    with demo:
        gr.Markdown(INTRO, elem_classes="dd-intro")
        opened = gr.State(None, time_to_live=DELETE_CACHE[1])
        upload, faces, settings, result = (
            _upload_card(),
            _faces_card(),
            _settings_card(handlers.presets),
            _result_card(),
        )
        gr.Markdown(PRIVACY.format(where=where), elem_classes="dd-privacy")
        _wire_photo(handlers, opened, upload, faces, settings, result)
        _wire_run(handlers, opened, faces, settings, result)
        demo.unload(events.leaving(handlers))
        add_api(handlers, result.download.GRADIO_CACHE)
    demo.queue(max_size=QUEUE_SIZE)
    return demo


def add_api(handlers: DemoHandlers, cache_dir: str) -> None:
    """Add the endpoint to the page that is being built.

    Args:
        handlers: the page's actions.
        cache_dir: where Gradio puts uploads, and where results are written; deleted by age. No other file is read.
    """

    def protect(
        photo: FileData,
        preset: str = handlers.presets[0],
        strength: str = "standard",
        faces: list[int] | None = None,
        second_photo: FileData | None = None,
    ) -> tuple[FileData, dict[str, Any]]:
        try:
            path = uploaded_file("photo", photo, cache_dir)
            other = None if second_photo is None else uploaded_file("second_photo", second_photo, cache_dir)
            view = handlers.protect_file(path, preset, strength, faces, other)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None
        result = save_bytes_to_cache(view.data or b"", view.file_name or "", cache_dir)
        return FileData(path=result), score_table(view.result, view.note)

    gr.api(  # type: ignore[attr-defined]  # in its __all__, but not re-exported by name
        protect,
        api_name="protect",
        api_description=_DESCRIPTION,
        concurrency_limit=None,  # the handlers have a line, which it shares with the page
    )


def make_theme() -> gr.themes.Base:
    """A Gradio theme that loads no font from anywhere."""
    theme = gr.themes.Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=_STONE,
        text_size=sizes.text_md,
        radius_size=sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO_FONTS,
    )
    return theme.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_900",
    )


def _upload_card() -> UploadCard:
    with gr.Column(elem_classes="dd-card") as card:
        gr.Markdown("## 1. Choose a photo")
        photo = _photo_upload("photo", "Drop a photo here, or click to choose one", 260)
        problem = gr.HTML(elem_id="problem")
        gr.HTML(
            '<p class="dd-hint">You can also take one with the camera or paste one: the small signs above.</p>'
        )
        example = gr.Button("No photo at hand? Try an astronaut", size="sm", elem_id="example")
    return UploadCard(card, photo, problem, example)


def _faces_card() -> FacesCard:
    with gr.Column(visible=False, elem_classes="dd-card") as card:
        gr.Markdown("## 2. Choose the faces")
        sentence = gr.HTML(elem_id="faces-found")
        picture = gr.Image(
            format="jpeg",
            interactive=False,
            show_label=False,
            buttons=[],
            elem_id="faces",
            alt_text="Your photo with a numbered box around each face",
        )
        chosen = gr.CheckboxGroup(label="Faces to change", elem_id="chosen")
        back = gr.Button("Use another photo", size="sm", elem_id="back")
    return FacesCard(card, sentence, picture, chosen, back)


def _settings_card(presets: Sequence[str]) -> SettingsCard:
    with gr.Column(visible=False, elem_classes="dd-card") as card:
        gr.Markdown("## 3. Protect")
        strength = gr.Radio(
            [(name.capitalize(), name) for name in STRENGTHS],
            value="standard",
            label="Strength",
            info="How far the match score must fall before a face is done. Stronger changes the face more.",
            elem_id="strength",
        )
        preset = gr.Radio(
            [(PRESET_LABELS.get(name, name.capitalize()), name) for name in presets],
            value=presets[0],
            label="Preset",
            visible=len(presets) > 1,
            elem_id="preset",
            info="The score that is aimed for, and how often it is tried; the strength above is added to it.",
        )
        with gr.Accordion("Check against a second photo of the same person (optional)", open=False):
            hint = "Whoever searches has another photo. Drop one here to see how it compares"
            other = _photo_upload("other", hint, 200)
        run = gr.Button("Protect the chosen faces", variant="primary", elem_id="run")
        stop = gr.Button(events.STOP, visible=False, elem_id="stop")
        status = gr.HTML(elem_id="status")
    return SettingsCard(card, strength, preset, other, run, stop, status)


def _result_card() -> ResultCard:
    with gr.Column(visible=False, elem_classes="dd-card", elem_id="result") as card:
        gr.Markdown("## Result")
        verdict = gr.HTML(elem_id="verdict")
        with gr.Tabs():
            with gr.Tab("Before and after"):
                slider = gr.ImageSlider(
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="slider",
                    max_height=720,
                )
                gr.HTML(SLIDER_HINT)
            with gr.Tab("What changed"):
                change = gr.Image(
                    format="png",
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="change",
                    alt_text="The difference between before and after",
                )
                gr.HTML(CHANGE_HINT)
        download = gr.DownloadButton("Download", variant="primary", visible=False, elem_id="download")
        scores = gr.HTML(elem_id="scores")
    return ResultCard(card, verdict, slider, change, download, scores)


def _photo_upload(elem_id: str, placeholder: str, height: int) -> gr.Image:
    """An image field that hands over the uploaded file untouched: our own reader judges it and words the error."""
    field = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        show_label=False,
        buttons=[],
        height=height,
        elem_id=elem_id,
        placeholder=placeholder,
    )

    def uploaded_path(payload: Any) -> str | None:
        if payload is None or payload.path is None:
            return None
        try:  # the page sends uploads; whoever joins the queue by hand may send the path of any file
            return uploaded_file(elem_id, payload, field.GRADIO_CACHE)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from None

    # not in a subclass: Gradio writes a .pyi file beside the source of every class of components
    field.preprocess = uploaded_path  # type: ignore[method-assign]
    return field


def _wire_photo(
    handlers: DemoHandlers,
    opened: gr.State,
    upload: UploadCard,
    faces: FacesCard,
    settings: SettingsCard,
    result: ResultCard,
) -> None:
    open_photo = events.opening(handlers)
    outputs = [
        opened,
        upload.problem,
        upload.card,
        faces.card,
        settings.card,
        result.card,
        faces.sentence,
        faces.picture,
        faces.chosen,
        upload.photo,
    ]
    progress = {"show_progress_on": [upload.photo], "concurrency_limit": 2, **PRIVATE}
    upload.photo.change(open_photo, [upload.photo], outputs, **progress)
    upload.example.click(lambda: open_photo(str(EXAMPLE)), None, outputs, **progress)
    faces.back.click(events.closed, None, [*outputs, settings.other], queue=False, **_QUIET)
    faces.picture.select(events.toggling(handlers), [opened, faces.chosen], [faces.chosen], **_QUIET)
    faces.chosen.change(events.redraw, [opened, faces.chosen], [faces.picture], **_QUIET)


def _wire_run(
    handlers: DemoHandlers, opened: gr.State, faces: FacesCard, settings: SettingsCard, result: ResultCard
) -> None:
    buttons = [settings.run, settings.stop, faces.back]
    start = [settings.status, result.card, *buttons]
    outputs = [
        settings.status,
        result.card,
        result.verdict,
        result.slider,
        result.change,
        result.download,
        result.scores,
    ]
    job = settings.run.click(events.starting(handlers), None, start, queue=False, **_QUIET).then(
        events.protecting(handlers, result.download.GRADIO_CACHE),
        [opened, faces.chosen, settings.preset, settings.strength, settings.other],
        outputs,
        concurrency_limit=None,
        **_QUIET,  # the handlers have a line of their own
    )
    job.then(events.ended, None, buttons, queue=False, **_QUIET)
    job.then(None, js=SHOW_RESULT)
    settings.stop.click(events.stopping(handlers), None, [settings.stop], queue=False, **_QUIET)
