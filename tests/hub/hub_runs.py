"""What the tests of this folder share: the type of a command, a toy card, and a way to run fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hub_server
from typer.testing import Result

from diffusers_dedim.cli import main as cli

SOURCE = str(Path(cli.__file__).parents[2])
Dedim = Callable[..., Result]
SECRETS = (*hub_server.USERS, "X-Amz-Signature")

CARD = """---
library_name: diffusers
license: other
license_name: toy
license_link: ../weights/LICENSE.md
pipeline_tag: image-to-image
model-index:
  - name: Toy
    results:
      - task: {type: image-to-image}
        dataset: {type: lfw, name: LFW}
        metrics:
          - {type: psnr, value: 30.5, name: "PSNR, dB"}
---

# Toy

See [the other](unet.md), [the licence](../weights/LICENSE.md) and [a page](https://example.org/a).
"""


def run_fresh(script: str, hub_url: str, home: Path, *words: str, **environment: str) -> str:
    """Run Python in a new process that takes the server for the Hub; returns what it printed."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": SOURCE,
        **environment,
    }
    env.pop("HF_TOKEN", None)
    result = subprocess.run(
        [sys.executable, "-c", script, *words], env=env, capture_output=True, text=True, timeout=600, cwd=home
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout + result.stderr
