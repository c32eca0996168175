"""The page itself: which event of which card calls what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from diffusers_dedim.demo import events, layout
from diffusers_dedim.demo.api import add_api
from diffusers_dedim.demo.handlers import QUEUE_SIZE, DemoHandlers, Upload
from diffusers_dedim.demo.layout import PeopleCard, ResultCard, SettingsCard, UploadCard

HERE = Path(__file__).parent
EXAMPLE = HERE / "examples" / "astronaut.jpg"
DELETE_CACHE = (300, 1800)
"""Every 5 minutes, files older than 30 minutes are deleted: uploads, shown copies, results. What Gradio keeps in memory
goes at the same times (`sessions`)."""

INTRO = """# Make faces harder to match

Choose photos, and who on them. They come back at their own size, with those faces changed a little, so that face
recognition **matches them less**. It does not make anybody anonymous: people who know the person will recognise
them, and other recognisers may too.
"""
PRIVACY = (
    "Photos are processed {where}. They are not logged, and are deleted within 35 minutes (of the end of a run, where "
    "one takes longer). Camera, date and place (EXIF) are not written to the result."
)
SHOW_RESULT = "() => document.getElementById('result')?.scrollIntoView({behavior: 'smooth', block: 'start'})"
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
# what is chosen or clicked during the answer to the one before counts too
_LAST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}


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
        opened, done = (gr.State(None, time_to_live=DELETE_CACHE[1]) for _ in range(2))
        corner, pictured = gr.State(None), gr.State(None)
        upload, people = layout.upload_card(), layout.people_card()
        settings, result = layout.settings_card(handlers.strengths), layout.result_card()
        gr.Markdown(PRIVACY.format(where=where), elem_classes="dd-privacy")
        _wire_photos(handlers, opened, corner, pictured, upload, people, settings, result)
        _wire_people(handlers, opened, corner, pictured, people)
        _wire_run(handlers, opened, done, people, settings, result)
        demo.unload(events.leaving(handlers))
        add_api(handlers, result.download.GRADIO_CACHE)
    demo.queue(max_size=QUEUE_SIZE)
    return demo


def _wire_photos(
    handlers: DemoHandlers,
    opened: gr.State,
    corner: gr.State,
    pictured: gr.State,
    upload: UploadCard,
    people: PeopleCard,
    settings: SettingsCard,
    result: ResultCard,
) -> None:
    open_photos = events.opening(handlers)
    outputs = [
        opened,
        upload.problem,
        upload.photos,
        upload.card,
        people.card,
        settings.card,
        result.card,
        people.sentence,
        people.problems,
        people.portraits,
        people.chosen,
        people.which,
        people.picture,
        people.drawn,
        corner,
        pictured,
    ]
    # no limit: whoever waits for the detector is told so
    quiet = {"concurrency_limit": None, **_QUIET}

    def on_photos(payload: Any) -> Any:
        yield from open_photos(upload.read(payload))

    upload.photos.change(on_photos, [upload.photos], outputs, preprocess=False, **quiet)

    def on_example() -> Any:
        yield from open_photos([Upload(str(EXAMPLE), EXAMPLE.name)])

    upload.example.click(on_example, None, outputs, **quiet)
    people.back.click(events.closed, None, [*outputs, settings.other, settings.status], queue=False, **_QUIET)


def _wire_people(
    handlers: DemoHandlers, opened: gr.State, corner: gr.State, pictured: gr.State, people: PeopleCard
) -> None:
    drawing, redraw = gr.State(False), gr.State("")
    shown = [opened, people.chosen, people.which]
    # One event draws, whatever for: of two the first may answer last. And on what the user does alone, not on every
    # change: the same picture written twice is cut off where it is being sent.
    gr.on(
        [people.chosen.input, people.which.input, redraw.change],
        events.redrawing(handlers),
        [*shown, corner],
        [people.picture, pictured, people.drawn],
        **_LAST,
    )
    people.drawing.expand(lambda: True, None, [drawing], queue=False, **_QUIET)
    people.drawing.collapse(lambda: False, None, [drawing], queue=False, **_QUIET)
    outputs = [opened, people.portraits, people.chosen, redraw, corner, people.drawn]
    people.picture.select(events.clicking(handlers), [*shown, corner, drawing, pictured], outputs, **_LAST)
    people.add.click(events.adding(handlers), [*shown, *people.edges], outputs, **_QUIET)


def _wire_run(
    handlers: DemoHandlers,
    opened: gr.State,
    done: gr.State,
    people: PeopleCard,
    settings: SettingsCard,
    result: ResultCard,
) -> None:
    buttons = [settings.run, settings.stop, people.back]
    start = [settings.status, result.card, *buttons]
    shown = [result.slider, result.change, result.scores]
    outputs = [settings.status, done, result.card, result.verdict, result.download, result.which, *shown]
    job = settings.run.click(events.starting(handlers), None, start, queue=False, **_QUIET).then(
        events.protecting(handlers, result.download.GRADIO_CACHE),
        [opened, people.chosen, settings.strength, settings.paper, settings.other],
        outputs,
        concurrency_limit=None,
        **_QUIET,  # the handlers have a line of their own
    )
    job.then(events.ended, None, buttons, queue=False, **_QUIET)
    job.then(None, js=SHOW_RESULT)
    settings.stop.click(events.stopping(handlers), None, [settings.stop], queue=False, **_QUIET)
    result.which.input(events.show_photo, [done, result.which], shown, **_LAST)
