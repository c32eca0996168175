"""Where the page's files and opened photos lie, and that they go: uploads are faces.

Gradio's own ``delete_cache`` is on too, but not enough: in Gradio 6.31 a component that was ever updated for a
session forgets which files it wrote, and those would stay until the folder is cleared by hand.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_dedim.atomic import sha256, write_atomic

if (
    TYPE_CHECKING
):  # at run time where they are used: the folder is made, and its end arranged, before Gradio is loaded
    import gradio as gr
    from PIL import Image

_log = logging.getLogger(__name__)
_ENVIRONMENT = "GRADIO_TEMP_DIR"
_OUR_FOLDER = re.compile(r"dedim-demo-(?:(?P<process>\d+)-)?\w+")
_LEFT_SECONDS = 86_400.0  # a server that runs touches its folder every few minutes
_made: set[Path] = set()


def uploaded_file(name: str, file: Any, cache_dir: str) -> str:
    """The path of an upload. Gradio checks only what is marked as a file: an unmarked path may name any file here.

    Args:
        name: of the field or argument, for the error.
        file: what came: anything with a ``path``, as a key or an attribute.
        cache_dir: where Gradio puts uploads.

    Raises:
        DemoError: it names no file below ``cache_dir``.
    """
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", None)
    try:
        resolved = Path(path or "").resolve()
        is_upload = resolved.is_relative_to(Path(cache_dir).resolve()) and resolved.is_file()
    except (TypeError, ValueError, OSError):  # no text, or no name that a file can have
        is_upload = False
    if not is_upload:
        from diffusers_dedim.demo.texts import DemoError

        raise DemoError(
            f"{name}: expected an uploaded file; with gradio_client, wrap its path or address in handle_file(...)."
        )
    return str(resolved)


def new_path(folder: str | os.PathLike[str], name: str) -> Path:
    """A place for a file that is handed out under this name; in a folder of its own that nobody can guess.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     new_path(folder, "dedim.jpg").name
        'dedim.jpg'
    """
    return Path(tempfile.mkdtemp(dir=folder)) / name


def keep_picture(folder: str | os.PathLike[str], image: Image.Image) -> str:
    """Write a picture that the page shows, and say where: the same picture always at the same place.

    It may be being sent to somebody else from there: they get the old file or the new one, whole. Left to itself,
    Gradio empties the file and writes it again.

    Args:
        folder: where; files in it are deleted by age.
        image: without metadata.
    """
    file = BytesIO()
    image.save(file, "JPEG")
    place = Path(folder) / sha256(file.getvalue())
    place.mkdir(exist_ok=True)
    write_atomic(place / "picture.jpeg", file.getvalue())
    return str(place / "picture.jpeg")


def forget_photos(demo: gr.Blocks, age: float) -> None:
    """Delete the values that Gradio keeps of all sessions, and let opened photos go when they are ``age`` seconds old.

    Nothing on the page reads these values back: Gradio needs them only for links that this page does not offer. The
    opened photo and what the page shows stay as they are; Gradio looks for opened photos to delete every second.

    Args:
        demo: the page; nothing happens before it was launched.
        age: seconds; so long an opened photo may stay also where its page was closed.
    """
    from gradio.state_holder import SessionState

    holder = getattr(demo, "state_holder", None)
    if holder is None:
        return
    for name in list(holder.session_data):
        session = holder.session_data.get(name)
        if session is not None:
            session.config_values = SessionState(demo).config_values
            session.STATE_TTL_WHEN_CLOSED = age


def keep_forgetting(
    demo: gr.Blocks, every: float, age: float, also: Callable[[float], object] = lambda age: None
) -> None:
    """Call `forget_photos` every so many seconds, in the background, as long as the process runs.

    Args:
        demo, age: see `forget_photos`.
        every: seconds.
        also: gets the age each time: forgets what is held elsewhere.
    """
    _repeat("dedim-forget", every, lambda: forget_photos(demo, age), lambda: also(age))


def make_private_folder() -> Path:
    """Make a folder that only this user can read, and tell Gradio to keep its files there.

    It lies in ``GRADIO_TEMP_DIR`` or the system's temporary folder, and goes when this process ends by itself. Those
    that killed servers left there go now.
    """
    parent = os.environ.get(_ENVIRONMENT)
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    delete_left_folders(Path(parent or tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"dedim-demo-{os.getpid()}-", dir=parent))
    _made.add(folder)
    os.environ[_ENVIRONMENT] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def delete_left_folders(parent: Path) -> None:
    """Delete this user's folders of servers that did not end by themselves.

    The process in the folder's name is gone, or the folder was not touched for a day: another process may have the
    number by now, and a process of another container cannot be seen.
    """
    for folder in parent.glob("dedim-demo-*"):
        match = _OUR_FOLDER.fullmatch(folder.name)
        with suppress(OSError):  # gone in the meantime
            if match and _is_own(folder) and _is_left(folder, match["process"]):
                shutil.rmtree(folder, ignore_errors=True)


def end_by_signals() -> None:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, end this process as Ctrl+C does, so that its files go.

    A signal that is ignored, as ``nohup`` has it for SIGHUP, stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def delete_old_files(folder: Path, age: float) -> int:
    """Delete every file in a folder that is older than ``age`` seconds, and say how many.

    Example:
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = (Path(name) / "photo.jpg").write_bytes(b"")
        ...     delete_old_files(Path(name), 60), delete_old_files(Path(name), -1)
        (0, 1)
    """
    # os.walk passes over a folder that goes away while it is read; rglob of Python 3.11 ends in an error there
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return sum(_delete_if_old(path, age) for path in files)


def keep_deleting(folder: Path, every: float, age: float) -> None:
    """Call `delete_old_files` every so many seconds, in the background, as long as the process runs.

    The folder itself is touched, which tells other servers that it is in use.
    """
    _repeat("dedim-delete", every, lambda: _touch(folder), lambda: delete_old_files(folder, age))


def _repeat(name: str, every: float, *tasks: Callable[[], object]) -> None:
    """Do these every so many seconds in a thread, again also after one that failed: photos must not stay."""

    def work() -> None:
        while True:
            time.sleep(every)
            for task in tasks:
                _attempt(name, task)

    threading.Thread(target=work, name=name, daemon=True).start()


def _attempt(name: str, task: Callable[[], object]) -> None:
    try:
        task()
    except Exception as error:
        _log.warning("%s failed: %s", name, type(error).__name__)  # its words may name a visitor's file


def _touch(folder: Path) -> None:
    with suppress(OSError):
        os.utime(folder)


def _delete_if_old(path: Path, age: float) -> bool:
    try:
        if path.is_file() and time.time() - path.lstat().st_ctime > age:
            path.unlink()
            return True
    except OSError:  # gone in the meantime, which is what was wanted
        pass
    return False


def _is_own(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


def _is_left(folder: Path, process: str | None) -> bool:
    if time.time() - folder.stat().st_mtime > _LEFT_SECONDS:
        return True
    return process is not None and folder not in _made and not _runs(int(process))


def _runs(process: int) -> bool:
    if os.name != "posix":  # where os.kill would end it
        return True
    if process == os.getpid():  # the folder is an earlier process's, which had our number
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
