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
# what is chosen or clicked during the answer to the one before counts too: the last of them, or each
_LAST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
_EACH: dict[str, Any] = {**_QUIET, "trigger_mode": "multiple", "concurrency_limit": None}


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
        pictured = gr.State(None)
        upload, people = layout.upload_card(), layout.people_card()
        settings, result = layout.settings_card(handlers.strengths), layout.result_card()
        gr.Markdown(PRIVACY.format(where=where), elem_classes="dd-privacy")
        _wire_photos(handlers, opened, pictured, upload, people, settings, result)
        _wire_people(handlers, opened, pictured, people)
        _wire_run(handlers, opened, done, people, settings, result)
        demo.unload(events.leaving(handlers))
        add_api(handlers, result.download.GRADIO_CACHE)
    demo.queue(max_size=QUEUE_SIZE)
    return demo


def _wire_photos(
    handlers: DemoHandlers,
    opened: gr.State,
    pictured: gr.State,
    upload: UploadCard,
    people: PeopleCard,
    settings: SettingsCard,
    result: ResultCard,
) -> None:
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
        people.heard,
        pictured,
    ]
    open_photos = events.opening(handlers, people.picture.GRADIO_CACHE)

    def on_photos(payload: Any, before: Any, request: gr.Request) -> Any:
        if payload is not None:  # the page has emptied the field; after a visitor it is a list
            yield from open_photos(upload.read(payload), before, request)
        else:
            yield (gr.skip(),) * len(outputs)

    upload.photos.change(on_photos, [upload.photos, opened], outputs, preprocess=False, **_EACH)

    def on_example(before: Any, request: gr.Request) -> Any:
        yield from open_photos([Upload(str(EXAMPLE), EXAMPLE.name)], before, request, own=False)

    upload.example.click(on_example, [opened], outputs, **_EACH)
    back = [*outputs, settings.other, settings.status]
    people.back.click(events.going_back(handlers), [opened], back, queue=False, **_QUIET)


def _wire_people(handlers: DemoHandlers, opened: gr.State, pictured: gr.State, people: PeopleCard) -> None:
    drawing, redraw = gr.State(False), gr.State("")
    # not preprocessed: choices that are on their way while the page goes back are no error
    shown = [opened, people.chosen, people.heard, people.which]
    # One event draws, whatever for: of two the first may answer last. And on what the user does alone: what the page
    # changes by itself comes with its picture.
    gr.on(
        [people.chosen.input, people.which.input, redraw.change],
        events.redrawing(handlers, people.picture.GRADIO_CACHE),
        shown,
        [people.picture, pictured, people.drawn],
        preprocess=False,
        **_LAST,
    )
    people.drawing.expand(lambda: True, None, [drawing], queue=False, **_QUIET)
    people.drawing.collapse(lambda: False, None, [drawing], queue=False, **_QUIET)
    outputs = [people.portraits, people.chosen, people.heard, redraw, people.drawn]
    people.picture.select(
        events.clicking(handlers), [*shown, drawing, pictured], outputs, preprocess=False, **_EACH
    )
    people.add.click(events.adding(handlers), [*shown, *people.edges], outputs, preprocess=False, **_EACH)


def _wire_run(
    handlers: DemoHandlers,
    opened: gr.State,
    done: gr.State,
    people: PeopleCard,
    settings: SettingsCard,
    result: ResultCard,
) -> None:
    buttons = [settings.run, settings.stop, people.back]
    start = [settings.status, result.card, result.gone, *buttons]
    shown = [result.slider, result.change, result.scores]
    outputs = [settings.status, done, result.card, result.verdict, result.download, result.which, *shown]
    cache = result.download.GRADIO_CACHE
    job = settings.run.click(events.starting(handlers), None, start, queue=False, **_QUIET).then(
        events.protecting(handlers, cache, settings.read_other),
        [opened, people.chosen, people.heard, settings.strength, settings.paper, settings.other],
        outputs,
        preprocess=False,
        concurrency_limit=None,
        **_QUIET,  # the handlers have a line of their own
    )
    job.then(events.ended, None, buttons, queue=False, **_QUIET)
    job.then(None, js=SHOW_RESULT)
    result.download.click(
        events.fetching(cache), [result.download], [result.gone], queue=False, preprocess=False, **_QUIET
    )
    settings.stop.click(events.stopping(handlers), None, [settings.stop], queue=False, **_QUIET)
    result.which.input(events.show_photo, [done, result.which], shown, **_LAST)
