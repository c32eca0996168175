"""Where the page's files lie, and that they go: uploads are faces.

Gradio's own ``delete_cache`` is on too, but not enough: in Gradio 6.31 a component that was ever updated for a
session forgets which files it wrote, and those would stay until the folder is cleared by hand.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

_ENVIRONMENT = "GRADIO_TEMP_DIR"


def make_private_folder() -> Path:
    """Make a folder that only this user can read, and tell Gradio to keep its files there.

    It lies in ``GRADIO_TEMP_DIR`` or the system's temporary folder, and goes when this process ends by itself.
    """
    parent = os.environ.get(_ENVIRONMENT)
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="dedim-demo-", dir=parent))
    os.environ[_ENVIRONMENT] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def delete_old_files(folder: Path, age: float) -> int:
    """Delete every file in a folder that is older than ``age`` seconds, and say how many.

    Example:
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = (Path(name) / "photo.jpg").write_bytes(b"")
        ...     delete_old_files(Path(name), 60), delete_old_files(Path(name), -1)
        (0, 1)
    """
    return sum(_delete_if_old(path, age) for path in list(folder.rglob("*")))


def keep_deleting(folder: Path, every: float, age: float) -> None:
    """Call `delete_old_files` every so many seconds, in the background, as long as the process runs."""

    def work() -> None:
        while True:
            time.sleep(every)
            delete_old_files(folder, age)

    threading.Thread(target=work, name="dedim-delete", daemon=True).start()


def _delete_if_old(path: Path, age: float) -> bool:
    try:
        if path.is_file() and time.time() - path.lstat().st_ctime > age:
            path.unlink()
            return True
    except OSError:  # gone in the meantime, which is what was wanted
        pass
    return False
