"""What Gradio keeps of photos in memory, session by session, and that it goes.

Gradio 6.31 keeps the last value of every component of a session, here the faces before and after, until
``state_session_capacity`` newer sessions have come; and what is in a ``State`` for an hour once the page was closed,
whatever time the ``State`` itself has to live.
"""

from __future__ import annotations

import threading
import time

import gradio as gr
from gradio.state_holder import SessionState


def forget_photos(demo: gr.Blocks, age: float) -> None:
    """Delete the values that Gradio keeps of all sessions, and let opened photos go when they are ``age`` seconds old.

    Nothing on the page reads these values back: Gradio needs them only for links that this page does not offer. The
    opened photo and what the page shows stay as they are; Gradio looks for opened photos to delete every second.

    Args:
        demo: the page; nothing happens before it was launched.
        age: seconds; so long an opened photo may stay also where its page was closed.
    """
    holder = getattr(demo, "state_holder", None)
    if holder is None:
        return
    for name in list(holder.session_data):
        session = holder.session_data.get(name)
        if session is not None:
            session.config_values = SessionState(demo).config_values
            session.STATE_TTL_WHEN_CLOSED = age


def keep_forgetting(demo: gr.Blocks, every: float, age: float) -> None:
    """Call `forget_photos` every so many seconds, in the background, as long as the process runs."""

    def work() -> None:
        while True:
            time.sleep(every)
            forget_photos(demo, age)

    threading.Thread(target=work, name="dedim-forget", daemon=True).start()
