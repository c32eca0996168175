"""The page's events: from the actions of `DemoHandlers` to what Gradio's components take."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from contextvars import copy_context
from typing import Any

import gradio as gr

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.choice import Choice, Corner
from diffusers_dedim.demo.drawn import Box
from diffusers_dedim.demo.files import keep_picture, uploaded_file
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
_OPENING = 16  # updates of `opening`


def opening(handlers: DemoHandlers, folder: str) -> Callable[..., Iterator[Updates]]:
    """Show who is on the photos, or why they cannot be used. What was opened or chosen before is put away.

    Updates: opened, problem, the photo field, which is emptied after files that cannot be used and at once where the
    photos are not its own, the cards of upload, people, settings and result; of the people's card sentence, problems,
    portraits, chosen, which, picture, drawn and heard; pictured.

    Args:
        handlers: the page's actions.
        folder: where pictures go.
    """

    def on_photos(
        uploads: Sequence[Upload], before: Choice | None, request: gr.Request, own: bool = True
    ) -> Iterator[Updates]:
        _put_away(handlers, before, request)
        files = [upload.path for upload in uploads]
        with handlers.openings.begin(str(request.session_hash), files) as turn:
            if turn is None:
                yield (gr.skip(),) * _OPENING
                return
            if not uploads:  # the visitor took them back
                yield gr.skip(), "", *(gr.skip(),) * (_OPENING - 2)
                return
            field, cards = gr.skip() if own else None, (gr.update(visible=True), *_hidden(3))
            job = _Background(lambda report: handlers.open(uploads, report))
            with closing(job.progress()) as progress:
                for share, words in progress:
                    if turn.is_overtaken:
                        return
                    said = texts.render_progress(share, words)
                    yield gr.skip(), said, field, *cards, *(gr.skip(),) * (_OPENING - 7)
                    field, cards = gr.skip(), (gr.skip(),) * 4
            if not turn.is_overtaken:
                yield _opened(handlers, folder, job)

    return on_photos


def _opened(handlers: DemoHandlers, folder: str, job: _Background) -> Updates:
    try:
        opened: OpenedPhotos = job.result()
    except DemoError as error:
        problem = texts.render_message(str(error), "problem")
        return None, problem, None, gr.update(visible=True), *_hidden(3), *_nobody(), None
    everybody = opened.everybody
    return (
        Choice(opened),
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
        keep_picture(folder, handlers.picture(opened, everybody, 0)),
        "",
        0,
        0,
    )


def going_back(handlers: DemoHandlers) -> Callable[[Choice | None, gr.Request], Updates]:
    """Back to the empty page, whatever is under way.

    Updates as `opening`, then the field of the second photo and the run's status.
    """

    def on_back(choice: Choice | None, request: gr.Request) -> Updates:
        _put_away(handlers, choice, request)
        with handlers.openings.begin(str(request.session_hash)):
            cards = gr.update(visible=True), *_hidden(3)
            return gr.skip(), "", None, *cards, *_nobody(), None, None, ""

    return on_back


def _put_away(handlers: DemoHandlers, choice: Choice | None, request: gr.Request) -> None:
    """Other photos are wanted; a run of these, which may have been asked for in the same moment, ends unseen."""
    if choice is not None and not choice.is_away:
        choice.put_away()
        handlers.stop(str(request.session_hash))


def redrawing(handlers: DemoHandlers, folder: str) -> Callable[..., Updates]:
    """Draw the photo with its boxes anew, after a choice, a turn of the page or a click.

    Updates: picture, which photo it shows, drawn.
    """

    def on_change(choice: Choice | None, ticked: Any, heard: Any, which: int | None) -> Updates:
        if choice is None:
            return gr.skip(), gr.skip(), texts.render_message(texts.GONE, "problem")
        with choice:
            (opened, chosen), corner, photo = choice.settle(ticked, heard), choice.corner, which or 0
        if photo >= len(opened.photos):  # they were put away
            return (gr.skip(),) * 3
        here = corner is not None and corner.photo == photo
        picture = handlers.picture(opened, chosen, photo, (corner.x, corner.y) if corner and here else None)
        words: Any = gr.skip()
        if corner is not None:
            words = texts.render_message(SECOND_CORNER) if here else ""
        return (gr.skip(),) * 3 if choice.is_away else (keep_picture(folder, picture), photo, words)

    return on_change


def clicking(handlers: DemoHandlers) -> Callable[..., Updates]:
    """A click on the picture: on a face, or on a corner of a box.

    Updates: portraits, chosen, how many clicks that heeds, something new where there is something to draw, drawn.
    """

    def on_click(
        choice: Choice | None,
        ticked: Any,
        heard: Any,
        which: int | None,
        drawing: bool,
        pictured: int | None,
        event: gr.SelectData,
    ) -> Updates:
        photo, (x, y) = which or 0, event.index
        if choice is None:
            return _gone()
        if pictured != photo:  # the click was on the photo before, whose picture is still there
            return (gr.skip(),) * 5
        with choice:
            opened, _ = choice.settle(ticked, heard)
            if choice.is_away:
                return (gr.skip(),) * 5
            corner, choice.corner = choice.corner, None
            if not drawing:
                return _toggled(handlers, choice, ticked, heard, (photo, x, y))
            if corner is None or corner.photo != photo:  # what to do next is said once the corner is drawn
                choice.corner = Corner(photo, x, y)
                return gr.skip(), gr.skip(), gr.skip(), _new(), gr.skip()
            width, height = opened.photos[photo].shown.size
            box = corner.x / width, corner.y / height, x / width, y / height
            return _added(handlers, choice, ticked, heard, photo, box)

    return on_click


def adding(handlers: DemoHandlers) -> Callable[..., Updates]:
    """A box by its edges in per cent; updates as `clicking`."""

    def on_add(
        choice: Choice | None, ticked: Any, heard: Any, which: int | None, *edges: float | None
    ) -> Updates:
        if choice is None:
            return _gone()
        left, top, right, bottom = ((edge or 0) / 100 for edge in edges)
        with choice:
            choice.corner = None
            return _added(handlers, choice, ticked, heard, which or 0, (left, top, right, bottom))

    return on_add


def starting(handlers: DemoHandlers) -> Callable[[gr.Request], Updates]:
    """Updates: status, result card, whether its file is gone, the buttons run, stop and back."""

    def on_start(request: gr.Request) -> Updates:
        handlers.expect(str(request.session_hash))
        hidden, stop = gr.update(visible=False), gr.update(visible=True, interactive=True, value=STOP)
        return texts.render_progress(0.0, WAITING), hidden, "", hidden, stop, gr.update(interactive=False)

    return on_start


def ended() -> Updates:
    """After every end of a run, good or bad; updates: the buttons run, stop and back.

    Only this brings the run button back: before the run's last message has come Gradio would ignore a new one.
    """
    return gr.update(visible=True), gr.update(visible=False), gr.update(interactive=True)


def protecting(
    handlers: DemoHandlers, cache_dir: str, read_other: Callable[[Any], Upload | None]
) -> Callable[..., Iterator[Updates]]:
    """Run, and show the result or why there is none.

    Args:
        handlers: the page's actions.
        cache_dir: where the file to download and the pictures are written, and deleted by age.
        read_other: the field of the second photo -> its upload.

    Updates: status, done, result card, verdict, download, which, slider, change, scores.
    """

    def on_run(
        choice: Choice | None,
        ticked: Any,
        heard: Any,
        strength: str,
        paper: bool,
        other: Any,
        request: gr.Request,
    ) -> Iterator[Updates]:
        session, name = str(request.session_hash), "paper" if paper else strength

        def work(report: Progress) -> RunView:
            opened, chosen = (None, []) if choice is None else choice.settle(ticked, heard)
            return handlers.protect(opened, chosen, name, read_other(other), session, cache_dir, report)

        if choice is not None and choice.is_away:  # other photos were wanted before this began
            yield _no_result("")
            return
        # Gradio closes this generator where the user leaves
        job = _Background(work, lambda: handlers.stop(session))
        with closing(job.progress()) as progress:
            for share, words in progress:
                if choice is not None and choice.is_away:
                    break
                yield texts.render_progress(share, words), *(gr.skip(),) * 8
        yield _no_result("") if choice is not None and choice.is_away else _outcome(job)

    return on_run


def _outcome(job: _Background) -> Updates:
    try:
        return _result(job.result())
    except DemoError as error:
        kind = "info" if str(error) == STOPPED else "problem"
        return _no_result(texts.render_message(str(error), kind))


def _no_result(status: str) -> Updates:
    hidden, nothing = gr.update(visible=False), gr.update(value=None, visible=False)
    return status, None, hidden, "", nothing, hidden, None, None, ""


def fetching(cache_dir: str) -> Callable[[Any], str]:
    """The button for the file was clicked: say so where there is none any more, for the browser says nothing.

    Updates: whether the file is gone.
    """

    def on_download(file: Any) -> str:
        try:
            uploaded_file("file", file, cache_dir)
        except DemoError:
            return texts.render_message(texts.FILE_GONE, "problem")
        return ""

    return on_download


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

    def progress(self) -> Generator[tuple[float, str], None, None]:
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


def _toggled(
    handlers: DemoHandlers, choice: Choice, ticked: Any, heard: Any, point: tuple[int, float, float]
) -> Updates:
    opened, _ = choice.settle(ticked, heard)
    person = handlers.person_at(opened, *point)
    if person is not None:
        choice.toggle(person)
    _, chosen = choice.settle(ticked, heard)
    return gr.skip(), chosen, choice.count, _new(), ""


def _added(handlers: DemoHandlers, choice: Choice, ticked: Any, heard: Any, photo: int, box: Box) -> Updates:
    opened, _ = choice.settle(ticked, heard)
    if photo >= len(opened.photos):  # they were put away
        return (gr.skip(),) * 5
    try:
        opened, person, words = handlers.draw(opened, photo, box)
    except DemoError as error:
        problem = texts.render_message(str(error), "problem")
        return gr.skip(), gr.skip(), gr.skip(), _new(), problem
    choice.add(opened, person)
    if choice.is_away:
        return (gr.skip(),) * 5
    return *_people(*choice.settle(ticked, heard)), choice.count, _new(), texts.render_message(words)


def _new() -> str:
    """Another value each time: what hangs on it is done again."""
    return secrets.token_hex(4)


def _gone() -> Updates:
    """Updates as `clicking` of a page that was open for so long that its photos were deleted."""
    return *(gr.skip(),) * 4, texts.render_message(texts.GONE, "problem")


def _people(opened: OpenedPhotos, chosen: Sequence[int]) -> Updates:
    """Updates: portraits, chosen."""
    choices = [(label, index) for index, label in enumerate(texts.people_labels(opened))]
    return texts.render_portraits(opened), gr.update(
        choices=choices, value=list(chosen), visible=bool(choices)
    )


def _nobody() -> Updates:
    """Updates of the people's card: sentence, problems, portraits, chosen, which, picture, drawn, heard."""
    return "", "", "", gr.update(choices=[], value=[]), gr.update(choices=[], value=None), None, "", 0


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
