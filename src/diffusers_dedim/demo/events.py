"""The page's events: from the actions of `DemoHandlers` to what Gradio's components take."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, NamedTuple

import gradio as gr

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.handlers import DemoHandlers, Upload
from diffusers_dedim.demo.people import OpenedPhotos
from diffusers_dedim.demo.protect import Progress
from diffusers_dedim.demo.queue import STOPPED
from diffusers_dedim.demo.results import PhotoView, RunView
from diffusers_dedim.demo.texts import DemoError

Updates = tuple[Any, ...]
WAITING = "Waiting for its turn."
STOP, STOPPING = "Stop", "Stopping"
PROGRESS_SECONDS = 0.3
SECOND_CORNER = "Now click on the opposite corner."


class Corner(NamedTuple):
    """Where a box begins that is being drawn: index of the photo, px of its picture."""

    photo: int
    x: float
    y: float


def opening(handlers: DemoHandlers) -> Callable[[Sequence[Upload]], Iterator[Updates]]:
    """Show who is on the photos, or why they cannot be used.

    Updates: opened, problem, the photo field, which is emptied after files that cannot be used, the cards of upload,
    people, settings and result; of the people's card sentence, problems, portraits, chosen, which, picture and drawn;
    corner and pictured.
    """

    def on_photos(uploads: Sequence[Upload]) -> Iterator[Updates]:
        if not uploads:  # the field was emptied
            yield (gr.skip(),) * 16
            return
        job = _Background(lambda report: handlers.open(uploads, report))
        for share, words in job.progress():
            yield gr.skip(), texts.render_progress(share, words), *(gr.skip(),) * 14
        try:
            opened: OpenedPhotos = job.result()
        except DemoError as error:
            problem = texts.render_message(str(error), "problem")
            yield None, problem, None, gr.skip(), *_hidden(3), *_nobody(), None, None
            return
        everybody = opened.everybody
        yield (
            opened,
            "",
            None,
            gr.update(visible=False),
            gr.update(visible=True),
            gr.update(visible=True),
            gr.update(visible=False),
            texts.render_message(texts.people_found(opened)),
            texts.list_problems(opened),
            *_people(opened, everybody),
            _pages([photo.number for photo in opened.photos]),
            handlers.picture(opened, everybody, 0),
            "",
            None,
            0,
        )

    return on_photos


def closed() -> Updates:
    """Back to the empty page; updates as `opening`, then the field of the second photo and the run's status."""
    return None, "", None, gr.update(visible=True), *_hidden(3), *_nobody(), None, None, None, ""


def redrawing(handlers: DemoHandlers) -> Callable[..., Updates]:
    """Draw the photo with its boxes anew, after a choice, a turn of the page or a click.

    Updates: picture, which photo it shows, drawn.
    """

    def on_change(
        opened: OpenedPhotos | None, chosen: Sequence[int], which: int | None, corner: Corner | None
    ) -> Updates:
        if opened is None:
            return gr.skip(), gr.skip(), texts.render_message(texts.GONE, "problem")
        photo = which or 0
        if corner is None:
            return handlers.picture(opened, chosen, photo), photo, gr.skip()
        if corner.photo != photo:
            return handlers.picture(opened, chosen, photo), photo, ""
        picture = handlers.picture(opened, chosen, photo, (corner.x, corner.y))
        return picture, photo, texts.render_message(SECOND_CORNER)

    return on_change


def clicking(handlers: DemoHandlers) -> Callable[..., Updates]:
    """A click on the picture: on a face, or on a corner of a box.

    Updates: opened, portraits, chosen, something new where there is something to draw, corner, drawn.
    """

    def on_click(
        opened: OpenedPhotos | None,
        chosen: Sequence[int],
        which: int | None,
        corner: Corner | None,
        drawing: bool,
        pictured: int | None,
        event: gr.SelectData,
    ) -> Updates:
        photo, (x, y) = which or 0, event.index
        if opened is None:
            return _gone()
        if pictured != photo:  # the click was on the photo before, whose picture is still there
            return (gr.skip(),) * 6
        if not drawing:
            chosen = handlers.toggle(opened, chosen, photo, x, y)
            return gr.skip(), gr.skip(), chosen, _new(), None, ""
        if corner is None or corner.photo != photo:  # what to do next is said once the corner is drawn
            return gr.skip(), gr.skip(), gr.skip(), _new(), Corner(photo, x, y), gr.skip()
        width, height = opened.photos[photo].shown.size
        box = corner.x / width, corner.y / height, x / width, y / height
        return _added(handlers, opened, chosen, photo, box)

    return on_click


def adding(handlers: DemoHandlers) -> Callable[..., Updates]:
    """A box by its edges in per cent; updates as `clicking`."""

    def on_add(
        opened: OpenedPhotos | None, chosen: Sequence[int], which: int | None, *edges: float | None
    ) -> Updates:
        if opened is None:
            return _gone()
        left, top, right, bottom = ((edge or 0) / 100 for edge in edges)
        return _added(handlers, opened, chosen, which or 0, (left, top, right, bottom))

    return on_add


def starting(handlers: DemoHandlers) -> Callable[[gr.Request], Updates]:
    """Updates: status, result card, the buttons run, stop and back."""

    def on_start(request: gr.Request) -> Updates:
        handlers.expect(str(request.session_hash))
        stop = gr.update(visible=True, interactive=True, value=STOP)
        return texts.render_progress(0.0, WAITING), *_hidden(2), stop, gr.update(interactive=False)

    return on_start


def ended() -> Updates:
    """After every end of a run, good or bad; updates: the buttons run, stop and back.

    Only this brings the run button back: before the run's last message has come Gradio would ignore a new one.
    """
    return gr.update(visible=True), gr.update(visible=False), gr.update(interactive=True)


def protecting(handlers: DemoHandlers, cache_dir: str) -> Callable[..., Iterator[Updates]]:
    """Run, and show the result or why there is none.

    Args:
        handlers: the page's actions.
        cache_dir: where the file to download and the pictures are written, and deleted by age.

    Updates: status, done, result card, verdict, download, which, slider, change, scores.
    """

    def on_run(
        opened: OpenedPhotos | None,
        chosen: Sequence[int],
        strength: str,
        paper: bool,
        other: Upload | None,
        request: gr.Request,
    ) -> Iterator[Updates]:
        session, name = str(request.session_hash), "paper" if paper else strength
        job = _Background(
            lambda report: handlers.protect(opened, chosen, name, other, session, cache_dir, report),
            lambda: handlers.stop(session),  # Gradio closes this generator where the user leaves
        )
        for share, words in job.progress():
            yield texts.render_progress(share, words), *(gr.skip(),) * 8
        try:
            yield _result(job.result())
        except DemoError as error:
            kind = "info" if str(error) == STOPPED else "problem"
            hidden = gr.update(visible=False)
            nothing = gr.update(value=None, visible=False)
            yield texts.render_message(str(error), kind), None, hidden, "", nothing, hidden, None, None, ""

    return on_run


def show_photo(done: RunView | None, which: int | None) -> Updates:
    """Show one of the results; updates: slider, change, scores."""
    if done is None or which is None:
        return (gr.skip(),) * 3
    view = _worked_on(done)[which]
    return (view.before, view.after), view.change, view.scores


def stopping(handlers: DemoHandlers) -> Callable[[gr.Request], Any]:
    """Tell the run; what the page shows then comes from the run itself. Updates: stop button."""

    def on_stop(request: gr.Request) -> Any:
        handlers.stop(str(request.session_hash))
        return gr.update(interactive=False, value=STOPPING)

    return on_stop


def leaving(handlers: DemoHandlers) -> Callable[[gr.Request], None]:
    """The page was closed: nobody waits for its run any more."""

    def on_leave(request: gr.Request) -> None:
        handlers.leave(str(request.session_hash))

    return on_leave


class _Background:
    """Work in a thread beside the event, which tells how far it is."""

    def __init__(self, work: Callable[[Progress], Any], left: Callable[[], None] = lambda: None) -> None:
        self._told: deque[tuple[float, str]] = deque([(0.0, "Starting")], maxlen=1)
        self._left, self._gone = left, threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._job = self._pool.submit(copy_context().run, work, self._tell)

    def progress(self) -> Iterator[tuple[float, str]]:
        """Share of the work and words, from time to time, until it is done."""
        try:
            while not wait([self._job], timeout=PROGRESS_SECONDS).done:
                yield self._told[0]
        finally:
            self._gone.set()
            self._left()
            self._pool.shutdown(wait=False)  # Gradio closes this in its event loop, which must not wait

    def result(self) -> Any:
        """What the work gave, or its error."""
        return self._job.result()

    def _tell(self, share: float, words: str) -> None:
        if self._gone.is_set():  # nobody waits for it any more
            raise DemoError(STOPPED)
        self._told.append((share, words))


def _added(
    handlers: DemoHandlers, opened: OpenedPhotos, chosen: Sequence[int], photo: int, box: Any
) -> Updates:
    try:
        opened, chosen, words = handlers.draw(opened, chosen, photo, box)
    except DemoError as error:
        problem = texts.render_message(str(error), "problem")
        return gr.skip(), gr.skip(), gr.skip(), _new(), None, problem
    return opened, *_people(opened, chosen), _new(), None, texts.render_message(words)


def _new() -> str:
    """Another value each time: what hangs on it is done again."""
    return secrets.token_hex(4)


def _gone() -> Updates:
    """Updates as `clicking` of a page that was open for so long that its photos were deleted."""
    return *(gr.skip(),) * 5, texts.render_message(texts.GONE, "problem")


def _people(opened: OpenedPhotos, chosen: Sequence[int]) -> Updates:
    """Updates: portraits, chosen."""
    choices = [(label, index) for index, label in enumerate(texts.people_labels(opened))]
    return texts.render_portraits(opened), gr.update(
        choices=choices, value=list(chosen), visible=bool(choices)
    )


def _nobody() -> Updates:
    """Updates of the people's card: sentence, problems, portraits, chosen, which, picture, drawn."""
    return "", "", "", gr.update(choices=[], value=[]), gr.update(choices=[], value=None), None, ""


def _pages(numbers: Sequence[int]) -> Any:
    """Buttons for the photos with these numbers; none where there is one."""
    choices = [(str(number), index) for index, number in enumerate(numbers)]
    return gr.update(choices=choices, value=0 if choices else None, visible=len(choices) > 1)


def _worked_on(done: RunView) -> list[PhotoView]:
    return [view for view in done.photos if view.before is not None]


def _result(done: RunView) -> Updates:
    views = _worked_on(done)
    download = gr.update(value=done.download, label=done.label, visible=done.download is not None)
    shown = show_photo(done, 0) if views else (None, None, "")
    pages = _pages([view.number for view in views])
    return "", done, gr.update(visible=True), done.verdict, download, pages, *shown


def _hidden(count: int) -> Updates:
    return tuple(gr.update(visible=False) for _ in range(count))
