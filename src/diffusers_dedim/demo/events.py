"""The page's events: from the actions of `DemoHandlers` to what Gradio's components take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.handlers import DemoError, DemoHandlers, ResultView
from diffusers_dedim.demo.photos import OpenedPhoto, mark_faces
from diffusers_dedim.demo.queue import STOPPED

Updates = tuple[Any, ...]
WAITING = "Waiting for its turn."
STOP, STOPPING = "Stop", "Stopping"
PROGRESS_SECONDS = 0.3


def opening(handlers: DemoHandlers) -> Callable[[str | None], Updates]:
    """Show the photo with its faces, or why it cannot be used.

    Updates: opened, problem, the cards of upload, faces, settings and result, sentence, picture, chosen, and the
    photo field, which is emptied after a file that cannot be used.
    """

    def on_photo(path: str | None) -> Updates:
        if path is None:  # the field was emptied
            return (gr.skip(),) * 10
        try:
            view = handlers.open(path)
        except DemoError as error:
            return (
                None,
                texts.render_message(str(error), "problem"),
                gr.skip(),
                *_hidden(3),
                "",
                None,
                gr.update(value=[]),
                None,
            )
        everybody = view.opened.everybody
        choices = [(f"Face {index + 1}", index) for index in everybody]
        return (
            view.opened,
            "",
            gr.update(visible=False),
            gr.update(visible=True),
            gr.update(visible=True),
            gr.update(visible=False),
            texts.render_message(view.sentence),
            view.picture,
            gr.update(choices=choices, value=everybody, visible=len(everybody) > 1),
            gr.skip(),
        )

    return on_photo


def closed() -> Updates:
    """Back to the empty page; updates as `opening`, then the field of the second photo."""
    return (None, "", gr.update(visible=True), *_hidden(3), "", None, gr.update(value=[]), None, None)


def toggling(handlers: DemoHandlers) -> Callable[..., list[int]]:
    """A click on the picture."""

    def on_click(opened: OpenedPhoto | None, chosen: Sequence[int], event: gr.SelectData) -> list[int]:
        if opened is None:
            return list(chosen)
        return handlers.toggle(opened, chosen, *event.index)

    return on_click


def redraw(opened: OpenedPhoto | None, chosen: Sequence[int]) -> Any:
    """Draw the boxes anew."""
    return gr.skip() if opened is None else mark_faces(opened, chosen)


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
        cache_dir: where the file to download is written, and deleted by age.

    Updates: status, result card, verdict, slider, change, download, scores.
    """

    def on_run(
        opened: OpenedPhoto | None,
        chosen: Sequence[int],
        preset: str,
        strength: str,
        other: str | None,
        request: gr.Request,
    ) -> Iterator[Updates]:
        session, progress = str(request.session_hash), deque([(0.0, "Starting")], maxlen=1)
        with ThreadPoolExecutor(max_workers=1) as pool:
            job = pool.submit(
                copy_context().run,
                handlers.protect,
                opened,
                chosen,
                preset,
                strength,
                other,
                session,
                lambda share, words: progress.append((share, words)),
            )
            try:
                while not wait([job], timeout=PROGRESS_SECONDS).done:
                    yield texts.render_progress(*progress[0]), *(gr.skip(),) * 6
            finally:
                handlers.stop(session)  # Gradio closes this generator where the user leaves
        try:
            yield _result(job.result(), cache_dir)
        except DemoError as error:
            yield _no_result(str(error))

    return on_run


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


def _result(view: ResultView, cache_dir: str) -> Updates:
    return (
        "",
        gr.update(visible=True),
        view.verdict,
        (view.before, view.after),
        view.change,
        _download(view, cache_dir),
        view.scores,
    )


def _no_result(sentence: str) -> Updates:
    kind = "info" if sentence == STOPPED else "problem"
    return (
        texts.render_message(sentence, kind),
        gr.update(visible=False),
        "",
        None,
        None,
        gr.update(value=None, visible=False),
        "",
    )


def _download(view: ResultView, cache_dir: str) -> Any:
    if view.data is None or view.file_name is None:
        return gr.update(value=None, visible=False)
    path = save_bytes_to_cache(view.data, view.file_name, cache_dir)
    left_out = len(view.result.left_out)
    label = "Download"
    if left_out:
        label += f" ({left_out} face{'' if left_out == 1 else 's'} left out, not protected)"
    elif any(score.still_matches for row in view.result.scores for score in row):
        label += " (see the scores first)"
    return gr.update(value=path, label=label, visible=True)


def _hidden(count: int) -> Updates:
    return tuple(gr.update(visible=False) for _ in range(count))
