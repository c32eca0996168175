from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hub_server
import huggingface_hub.constants
import pytest
import torch
from hub_runs import CARD, SECRETS, Dedim
from hub_server import FakeHub
from toys import MEAN_FACE, tiny_unet
from typer.testing import CliRunner, Result

from diffusers_dedim import DeDiMPipeline, LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.cli import main as cli


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):  # the others need no server and run by default
            item.add_marker(pytest.mark.hub)
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1"]))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub of one's own, which huggingface_hub in this process takes for the real one; logged in as a writer."""
    with hub_server.serve() as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("https://huggingface.co", server.url)
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
        huggingface_hub.close_session()  # it remembers that this process was offline
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def dedim() -> Dedim:
    """Run a command; whatever it prints, no token and no signed address may be in it."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert isinstance(result.exception, (SystemExit, type(None))), result.exception
        assert not [secret for secret in SECRETS if secret in result.output]
        return result

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of the shipped architectures with random weights, but landmarks where a face has them."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        landmarker = LandmarkRegressor()
        landmarker.mean_shape.copy_(MEAN_FACE)
        DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker).save_pretrained(folder)
    (folder / "LICENSE.md").write_text("# Licence of the toy weights\n")
    return folder


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "card.md"
    path.write_text(CARD)
    return path
