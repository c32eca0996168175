from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from tiny_task import TinyTask, loop_config
from torch import nn

from diffusers_dedim import MobileFaceNet
from diffusers_dedim.training.accelerator import make_optimizer
from diffusers_dedim.training.arcface import ArcFaceNet
from diffusers_dedim.training.loop import train


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixing = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.activation = nn.PReLU(32)


def test_adamw_is_the_default() -> None:
    optimizer = make_optimizer(Network(), loop_config("out", learning_rate=3e-4, weight_decay=1e-3))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 3e-4
    assert optimizer.defaults["weight_decay"] == 1e-3


def test_muon_takes_the_weights_that_mix_channels() -> None:
    model = Network()
    mixing, others = make_optimizer(model, loop_config("out", optimizer="muon")).param_groups
    assert [id(weight) for weight in mixing["params"]] == [id(model.mixing.weight)]
    assert len(others["params"]) == 4  # its bias, the depthwise convolution and its bias, the PReLU
    assert others["use_fallback"]


def test_class_centres_are_left_to_adamw() -> None:
    model = ArcFaceNet(MobileFaceNet(16), identities=32)
    mixing, others = make_optimizer(model, loop_config("out", optimizer="muon")).param_groups
    assert id(model.centres) in {id(weight) for weight in others["params"]}
    assert id(model.encoder.head[2][0].weight) in {id(weight) for weight in mixing["params"]}


def test_a_step_of_muon_is_as_long_as_one_of_adamw() -> None:
    """All singular values of the step are alike, and its mean size is a fifth of the rate (Liu et al. 2025)."""
    model = Network()
    optimizer = make_optimizer(
        model, loop_config("out", optimizer="muon", learning_rate=1e-2, weight_decay=0)
    )
    before = model.mixing.weight.detach().clone()
    model.mixing.weight.grad = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    step = (model.mixing.weight.detach() - before).flatten(1)
    values = torch.linalg.svdvals(step)
    assert float(values.max() / values.min()) < 2.5  # Newton-Schulz in five steps is rough by design
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2e-2, rel=0.25)


def test_a_run_with_muon_learns_and_resumes(tmp_path: Path) -> None:
    config = loop_config(str(tmp_path), optimizer="muon", max_steps=20)
    train(TinyTask(config, width=16), config)
    config = loop_config(str(tmp_path), optimizer="muon", max_steps=60)
    metrics = train(TinyTask(config, width=16), config, resume=True)
    assert metrics["mse"] < 1.0  # the variance of what is to be learnt is 16


def test_without_timm_the_command_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ImportError, match=re.escape("--optimizer muon needs the package 'timm.optim'")):
        make_optimizer(Network(), loop_config("out", optimizer="muon"))
