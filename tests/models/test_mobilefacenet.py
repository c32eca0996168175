"""Settings of the recogniser, and weights that were saved before some of them were there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffusers_dedim import MobileFaceNet


def convolutions(network: MobileFaceNet) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())


def test_the_stem_mixes_channels_where_asked_for() -> None:
    plain, mixing = MobileFaceNet(), MobileFaceNet(stem_pointwise=True)
    assert (convolutions(plain), convolutions(mixing)) == (50, 51)
    extra = set(mixing.state_dict()) - set(plain.state_dict())
    assert {name.rsplit(".", 2)[0] for name in extra} == {"stem.2"}


@pytest.mark.parametrize(("dim", "mixes"), [(512, False), (128, True)])
def test_settings_are_saved_with_the_weights(tmp_path: Path, dim: int, mixes: bool) -> None:
    network = MobileFaceNet(dim, stem_pointwise=mixes).eval()
    network.save_pretrained(tmp_path)
    again = MobileFaceNet.from_pretrained(tmp_path).eval()
    crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        embeddings = again(crops)
        assert torch.equal(embeddings, network(crops))
    assert embeddings.shape == (2, dim)


def test_weights_of_an_earlier_version_load_unchanged(tmp_path: Path) -> None:
    network = MobileFaceNet().eval()
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    del settings["stem_pointwise"]
    path.write_text(json.dumps(settings))
    again = MobileFaceNet.from_pretrained(tmp_path)
    assert again.config.stem_pointwise is False
    assert set(again.state_dict()) == set(network.state_dict())
