"""The demo page: choose a photo, click on faces, see what changed and what recognisers make of it.

`dedim demo` starts it on this computer; ``spaces/app.py`` is the same page as a Hugging Face Space. It needs
the extra ``demo``. Gradio is told here, before its first import, to send no statistics.
"""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
