from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
import toy_experiment as toy
from encoders.test_onnx_encoder import write_model
from onnx import TensorProto, helper
from toy_session import PEOPLE, Methods, ToyPipe
from typer.testing import CliRunner, Result

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.cli import common
from diffusers_dedim.cli import evaluate as command
from diffusers_dedim.cli import main as cli
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation import purification, report


def dedim(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Methods:
    """Toy methods, pipeline and detector behind the real command line; no figures."""
    made = Methods()
    monkeypatch.setattr(command, "make_method", made)
    monkeypatch.setattr(command, "FaceDetector", lambda device: toy.detect)
    monkeypatch.setattr(common, "load_pipeline", lambda weights, device: ToyPipe())
    monkeypatch.setattr(report, "to_png", lambda figure: b"")
    monkeypatch.setattr(report, "to_svg", lambda figure, label: "<svg></svg>")
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return toy.write_experiment(tmp_path / "e.parquet", PEOPLE, PEOPLE)


def test_evaluate_writes_results_and_goes_on(methods: Methods, data: Path, tmp_path: Path) -> None:
    arguments = (
        "evaluate",
        "--data",
        data,
        "--methods",
        "original, swap",
        "--seed",
        3,
        "-o",
        tmp_path / "out",
    )
    result = dedim(*arguments, "--limit", 2)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out' / 'report.html'}\n{tmp_path / 'out' / 'results.json'}\n" in result.stdout
    assert "swap: 2 probes, SSIM 0." in result.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["data"]["probes"] == 2
    assert found["run"]["seed"] == 3
    assert found["run"]["command"].startswith("dedim evaluate")
    assert [entry["name"] for entry in found["recognisers"]] == ["white"], "black boxes are the user's files"
    again = dedim(*arguments)
    assert again.exit_code == 2
    assert "the output folder is not empty; go on with a stopped evaluation (--resume" in again.stderr
    assert dedim(*arguments, "--resume", "--gallery", "both").exit_code == 0
    kinds = [rate["gallery"] for rate in json.loads((tmp_path / "out" / "results.json").read_text())["rates"]]
    assert kinds == ["unprotected", "protected"] * 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["probes"] == 3


def test_targets_and_gallery_are_the_same_for_every_limit(
    methods: Methods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TARGETS", 1)
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green"], ["red", "green", "blue"])
    for limit in (1, 2):
        experiment = command._read(data, 0, limit, reserve=True)
        assert [record.person for record in experiment.spare] == ["blue"]
        assert len(experiment.protocol.probes) == limit


def test_bad_input_is_one_line_and_costs_nothing(methods: Methods, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    alone = toy.write_experiment(tmp_path / "alone.parquet", ["red", "green"], ["red"])
    _write_onnx(tmp_path / "small.onnx", size=96)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    cases = [
        (
            ("--data", alone),
            "1 probe(s) without a gallery image of the same person: 'green' (alone.parquet row 1)",
        ),
        (("--data", tmp_path / "gone"), "there is no file or folder"),
        (("--data", data, "--methods", "typo"), "got 'typo'"),
        (("--data", data, "--methods", "swap,swap"), "each named once"),
        (("--data", data, "--black-box", "unknown"), "recogniser: expected 'dlib', 'NAME=FILE.onnx'"),
        (("--data", data, "--black-box", f"a={tmp_path / 'small.onnx'}"), "got input 'face' [1, 3, 96, 96]"),
        (("--data", data, "--lpips", tmp_path / "none.pth"), "lpips: there is no file"),
        (("--data", data, "--adaptive", tmp_path / "none.json"), "none.json is no result of python -m"),
        (("--data", data, "--purifier", tmp_path), "--purifier: it is for --robustness; give that too"),
        (("--data", data, "--attacks", "jpeg-75"), "--attacks: it is for --robustness; give that too"),
        (
            ("--data", data, "--methods", "swap", "--panel", tmp_path / "gone.png"),
            "gone.png (panel of 'gone')",
        ),
        (("--data", data, "--targets", tmp_path / "none"), "targets: there is no file or folder"),
        (("--data", data, "--limit", 0), "--limit"),
        ((), "--data"),
    ]
    for words, text in cases:
        result = dedim("evaluate", *words, "-o", out)
        assert result.exit_code == 2, (words, result.output)
        assert text in " ".join(result.stderr.split()), (words, result.stderr)
        assert "Traceback" not in result.output
    both = dedim(
        "evaluate",
        "--data",
        data,
        "-o",
        out,
        "--black-box",
        tmp_path / "broken.onnx",
        "--black-box",
        "x=none.onnx",
    )
    assert "onnxruntime cannot read it" in both.stderr
    assert "there is no ONNX file 'none.onnx'" in both.stderr, "all of them at once"
    assert methods.calls == []


def test_another_white_box_guides(
    data: Path, tmp_path: Path, pipe: DeDiMPipeline, methods: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    class Stopped(command.Session):
        def run(self, *_: object) -> None:
            seen.append(self.pipe)

    monkeypatch.setattr(common, "load_pipeline", lambda weights, device: pipe)
    monkeypatch.setattr(command, "Session", Stopped)
    arguments = ("evaluate", "--data", data, "--methods", "original", "-o", tmp_path / "out", "--white-box")
    assert dedim(*arguments, write_model(tmp_path / "guide.onnx")).exit_code == 0
    guide = seen[0].face_encoder
    assert type(seen[0]) is DeDiMPipeline
    assert seen[0].unet is pipe.unet
    crops = torch.zeros(1, 3, 112, 112, requires_grad=True)
    assert guide(crops).requires_grad, "it has to guide"
    _write_onnx(tmp_path / "small.onnx", size=96)
    result = dedim(*arguments, tmp_path / "small.onnx")
    assert result.exit_code == 2
    assert "[1, 3, 96, 96]" in " ".join(result.stderr.split())


def test_interrupt_is_told(
    methods: Methods, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Session, "run", stop)
    result = dedim("evaluate", "--data", data, "--methods", "original", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "go on with --resume" in result.stderr


def test_interrupt_while_models_load_is_told_and_the_same_command_goes_on(
    methods: Methods, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = (
        "evaluate",
        "--data",
        data,
        "--methods",
        "original",
        "--black-box",
        "dlib",
        "-o",
        tmp_path / "out",
    )
    for module, name in (
        (common, "load_pipeline"),
        (command, "load_black_boxes"),
        (command, "read_experiment"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            result = dedim(*words)
        assert result.exit_code == 130
        assert result.stderr == "Stopped before anything new was measured; give the same command again.\n"
    monkeypatch.setattr(command, "load_black_boxes", lambda _: [])
    assert dedim(*words).exit_code == 0


def test_help_lists_methods() -> None:
    result = dedim("evaluate", "--help")
    assert result.exit_code == 0
    assert "tip-im" in result.stdout


def _write_onnx(path: Path, size: int) -> None:
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, size, size])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3])
    node = helper.make_node("ReduceMean", ["face"], ["embedding"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph([node], "toy", [face], [embedding])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_attacks_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"jpeg-75": object(), "purifier": object()}
    monkeypatch.setattr(purification, "make_attacks", lambda pipe, **_: dict(known))
    assert command._load_transforms(None, 0, None, None) == known
    assert command._load_transforms(None, 0, None, "purifier, jpeg-75") == known
    assert list(command._load_transforms(None, 0, None, "purifier")) == ["purifier"]
    with pytest.raises(DeDiMError, match="--attacks: expected some of jpeg-75, purifier, got 'jpg'"):
        command._load_transforms(None, 0, None, "jpeg-75,jpg")
