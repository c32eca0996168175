from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_pipeline as fake
import pytest
from encoders.test_onnx_encoder import write_model
from fake_pipeline import FakePipeline, photo_array
from PIL import Image
from typer.testing import CliRunner, Result

from diffusers_dedim.cli import common
from diffusers_dedim.cli import main as cli
from diffusers_dedim.cli import run as command
from diffusers_dedim.models import BUNDLED_WEIGHTS
from diffusers_dedim.runs import report
from diffusers_dedim.runs.manifest import MANIFEST_NAME


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake_pipe = FakePipeline()
    monkeypatch.setattr(command, "_load", lambda *_: fake_pipe)
    return fake_pipe


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.fromarray(photo_array()).save(tmp_path / "in" / name)
    return tmp_path / "in"


def dedim(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_run_protects_a_folder(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    (source / "notes.txt").write_text("no photo")
    result = dedim("run", source, "-o", tmp_path / "out", "--report", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "2 of 2 photos protected (2 faces)" in result.stdout
    assert "1 other files (no photos, or links to folders) were passed over." in result.stdout
    assert f"Report, to be kept private: {tmp_path / 'out' / 'report.html'}" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a.jpg",
        "b.png",
        "report.html",
        "dedim-manifest.jsonl",
    }


def test_a_run_has_an_album_unless_it_is_refused(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    dedim("run", source, "-o", tmp_path / "out")
    dedim("run", source, "-o", tmp_path / "alone", "--no-album")
    assert [keywords["album"] is None for keywords in pipe.keywords] == [False, True]
    both = dedim("run", source, "-o", tmp_path / "none", "--no-album", "--keep-album", tmp_path / "a")
    assert both.exit_code == 2
    assert "leave out one of --keep-album and --no-album" in " ".join(both.stderr.split())


def test_failures_are_listed_and_the_status_is_1(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    Image.fromarray(photo_array(fake.NOT_REACHED)).save(source / "c.png")
    (source / "d[red].jpg").write_bytes(b"")
    result = dedim("run", source, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 4 photos protected" in result.stdout
    assert "2 not protected:" in result.stderr
    assert "  c.png: 1 of 1 faces still match (similarity 0.40); not written\n" in result.stderr
    assert "  d[red].jpg: the file is empty (0 bytes); not written\n" in result.stderr
    again = dedim("run", source, "-o", tmp_path / "out", "--overwrite", "--allow-partial")
    assert again.exit_code == 1
    assert "(similarity 0.40); written as c.not-protected.png\n" in again.stderr


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_report_that_cannot_be_written_hides_no_unprotected_photo(
    pipe: FakePipeline, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    Image.fromarray(photo_array(fake.NO_FACE)).save(source / "c.png")
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_pieces", full)
        result = dedim("run", source, "-o", tmp_path / "out", "--report")
    assert result.exit_code == 1, result.output
    assert "2 of 3 photos protected" in result.stdout
    assert "  c.png: no face was found, so nothing was protected; not written\n" in result.stderr
    assert "The report was not written (" in result.stderr
    (source / "c.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_pieces", full)
        assert dedim("run", source, "-o", tmp_path / "out", "--report", "--resume").exit_code == 1
    assert dedim("run", source, "-o", tmp_path / "out", "--report", "--resume").exit_code == 0


def test_a_report_of_somebody_elses_is_not_replaced(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dedim("run", source, "-o", out)
    (out / "report.html").write_text("my own page")
    for word in ("--resume", "--overwrite"):
        result = dedim("run", source, "-o", out, "--report", word)
        assert result.exit_code == 2
        assert "report.html: is no report of a run and would be replaced; move it away" in result.stderr
    assert (out / "report.html").read_text() == "my own page"
    assert len(pipe.calls) == 1  # it is said before the work
    (out / "report.html").unlink()
    for _ in range(2):  # and a run's own is
        assert dedim("run", source, "-o", out, "--report", "--resume").exit_code == 0


def test_the_help_tells_every_exit_status() -> None:
    text = " ".join(dedim("run", "--help").stdout.split())
    for words in ("0 all photos protected", "1 some not", "2 an error ended the run", "130 Ctrl-C"):
        assert words in text


def test_resume_after_the_end_loads_no_pipeline(
    pipe: FakePipeline, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dedim("run", source, "-o", tmp_path / "out")
    monkeypatch.setattr(command, "_load", lambda *_: pytest.fail("nothing is left to do"))
    result = dedim("run", source, "-o", tmp_path / "out", "--resume", "--report")
    assert result.exit_code == 0, result.output
    assert "2 of all settled by an earlier run" in result.stdout


def test_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    result = dedim("run", source, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert f"{source / 'a.jpg'} -> {tmp_path / 'out' / 'a.jpg'}" in result.stdout
    assert "2 photos to protect. Nothing was written." in result.stdout
    assert not (tmp_path / "out").exists()


def test_dry_run_and_run_pass_over_the_same_files(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    for name in ("IMG_0001", "scan.pic", "live.livp", "clip.swf"):
        (source / name).write_bytes(b"anything")
    dry = dedim("run", source, "-o", tmp_path / "out", "--dry-run")
    real = dedim("run", source, "-o", tmp_path / "out")
    others = "4 other files (no photos, or links to folders) {} passed over."
    assert others.format("would be") in dry.stdout
    assert others.format("were") in real.stdout


def test_how_photos_are_written_may_be_chosen(pipe: FakePipeline, source: Path, tmp_path: Path) -> None:
    os.utime(source / "a.jpg", (1e9, 1e9))
    done = dedim(
        *("run", source, "-o", tmp_path / "out", "--keep-times", "--quality", "30", "--max-megapixels", "1")
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "a.jpg").stat().st_mtime == pytest.approx(1e9, abs=2)
    small = dedim("run", source, "-o", tmp_path / "small", "--max-megapixels", "0.001")
    assert small.exit_code == 1
    assert "raise it (--max-megapixels) if you trust the file" in " ".join(small.stderr.split())


def test_usage_errors_are_one_line_and_status_2(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    cases = [
        (["run", source, "-o", source], "output equals input"),
        (["run", tmp_path / "empty", "-o", out], "Error: no photos in"),
        (["run", tmp_path / "gone", "-o", out], "gone: no such file or folder"),
        (
            ["run", source, "-o", out, "--threshold", "1.5"],
            "Error: threshold must be a probability between 0 and 1",
        ),
        (["run", source, "-o", out, "--quality", "fine"], "Error: quality must be"),
        (["run", source, "-o", out, "--quality", "0"], "Error: quality must be"),
        (
            ["run", source, "-o", out, "--max-megapixels", "0"],
            "Error: max_megapixels must be a number above 0",
        ),
        (["run", source, "-o", out, "--max-rounds", "0"], "Error: max_rounds must be at least 1, got 0"),
        (["run", source, "-o", out, "--resume", "--overwrite"], "exclude each other"),
        (["run", source, "-o", out, "--batch-size", "0"], "--batch-size"),
        (["run", source, "-o", out, "--small-faces", "drop"], "--small-faces"),
        (["run", source, "-o", out, "--crf", "52"], "--crf"),
        (["run", source], "--out"),
        (["run", "-o", out], "PATH"),
        (["sample", "-o", tmp_path / "a.jpg"], "a.jpg: the picture is written as PNG"),
        (["sample", "-o", tmp_path / "no" / "a.png"], "its folder does not exist"),
    ]
    for arguments, text in cases:
        result = dedim(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert text in " ".join(result.stderr.split()), arguments
        assert "Traceback" not in result.output
    assert not out.exists()


def test_unknown_preset_and_weights_stop_the_run_before_it_begins(source: Path, tmp_path: Path) -> None:
    result = dedim("run", source, "-o", tmp_path / "out", "--preset", "quick")
    assert result.exit_code == 2
    assert "preset: expected one of ['fast'" in result.stderr
    (tmp_path / "weights").mkdir()
    result = dedim("run", source, "-o", tmp_path / "out", "--weights", tmp_path / "weights")
    assert result.exit_code == 2
    assert f"weights {tmp_path / 'weights'} cannot be loaded:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_device_and_no_pipeline_is_told_in_one_line(source: Path, tmp_path: Path) -> None:
    run = ("run", source, "-o", tmp_path / "out")
    for more in ((), ("--ray", 1)):
        result = dedim(*run, "--device", "gpu", *more)
        assert result.exit_code == 2, result.output
        assert "device 'gpu' cannot be used: " in result.stderr
    bundled, weights = BUNDLED_WEIGHTS, tmp_path / "weights"
    shutil.copytree(bundled, weights)
    index = json.loads((weights / "model_index.json").read_text())
    other = {"scheduler": ["diffusers", "LCMScheduler"]}
    for changed, text in (({**index, **other}, "LCMScheduler"), ({"unet": index["unet"]}, "_class_name")):
        (weights / "model_index.json").write_text(json.dumps(changed))
        result = dedim(*run, "--weights", weights, "--device", "cpu")
        assert result.exit_code == 2, result.output
        assert f"weights {weights} cannot be loaded: " in result.stderr
        assert text in result.stderr
    assert not (tmp_path / "out").exists()


def test_another_recogniser_guides_a_run_and_the_manifest_says_so(source: Path, tmp_path: Path) -> None:
    file = write_model(tmp_path / "mean colour.onnx")
    run = ("run", source, "-o", tmp_path / "out", "--max-rounds", 1)
    for guide, words in (("none.onnx", "there is no ONNX file"), ("x.bin", "guide: expected 'own'")):
        result = dedim(*run, "--guide", "own", "--guide", guide)
        assert result.exit_code == 2
        assert f"--guide: {'path' if 'none' in guide else 'guide'}" in result.stderr
        assert words in result.stderr
    dedim(*run, "--guide", f"colour={file}")
    header = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text().splitlines()[0])
    assert header["settings"]["guides"] == f"colour={file}"
    refused = dedim(*run, "--resume")
    assert refused.exit_code == 2
    assert "guides was" in refused.stderr


def test_another_detector_finds_the_faces_and_the_manifest_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = FakePipeline()
    pipe.face_detector, pipe.set_progress_bar_config = None, lambda **_: None
    monkeypatch.setattr(common, "load_pipeline", lambda *_: pipe)
    run = ("run", source, "-o", tmp_path / "out")
    result = dedim(*run, "--detector", "nobody")
    assert result.exit_code == 2
    assert "detector: expected one of mtcnn, centerface, scrfd, or MODULE:NAME" in result.stderr
    assert dedim(*run, "--detector", "fake_pipeline:photo_array").exit_code == 0
    assert pipe.face_detector is photo_array
    header = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text().splitlines()[0])
    assert header["settings"]["detector"] == "fake_pipeline:photo_array"
    refused = dedim(*run, "--resume")
    assert refused.exit_code == 2
    assert "detector was" in refused.stderr


def test_a_dry_run_knows_the_presets(source: Path, tmp_path: Path) -> None:
    result = dedim("run", source, "-o", tmp_path / "out", "--dry-run", "--preset", "quick")
    assert result.exit_code == 2
    assert "preset: expected one of ['fast'" in result.stderr


def test_an_error_of_several_lines_is_readable_in_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise ValueError("wrong weights:\n\tMissing key: a\n\n\tSize of b\r\nis 3,\nnot 4\x1b[31m")

    monkeypatch.setattr(command, "_load", load)
    result = dedim("run", source, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == "Error: wrong weights: Missing key: a; Size of b; is 3, not 4?[31m\n"


def test_a_name_that_the_console_cannot_print_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(cli, "app", lambda **_: print("\u5bb6.png"))
    cli.main()
    console.flush()
    assert console.buffer.getvalue().split() == [b"?.png"]


def test_interrupt_is_told_and_can_be_resumed(
    pipe: FakePipeline, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakePipeline, "__call__", stop)
    result = dedim("run", source, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "go on with --resume" in result.stderr
    monkeypatch.undo()
    monkeypatch.setattr(command, "_load", lambda *_: FakePipeline())
    assert dedim("run", source, "-o", tmp_path / "out", "--resume").exit_code == 0


def test_sample_draws_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    small = SimpleNamespace(unet=unet, scheduler=DDPMScheduler())
    monkeypatch.setattr(common, "load_pipeline", lambda weights, device: small)
    arguments = ("sample", "-n", 5, "--steps", 2, "--seed", 3)
    assert dedim(*arguments, "-o", tmp_path / "a.png").exit_code == 0
    assert dedim(*arguments, "-o", tmp_path / "b.png").exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").size == (16, 24)
    again = dedim(*arguments, "-o", tmp_path / "a.png")
    assert again.exit_code == 2
    assert "is there already; give --overwrite" in again.stderr


def test_train_is_mounted() -> None:
    result = dedim("train", "--help")
    assert result.exit_code == 0
    assert "encoder" in result.stdout
    assert "landmarks" in result.stdout


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from diffusers_dedim.cli.main import app\n"
        "for arguments in (['--help'], ['run', '--help'], ['--version']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "print([name for name in ('torch', 'diffusers', 'huggingface_hub', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert dedim("--version").stdout.startswith("dedim 0.")


def test_ray_is_given_the_run_and_a_missing_package_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from diffusers_dedim.runs.records import RunResult, RunSettings

    seen: dict[str, object] = {}

    def fake_run(
        paths: list[Path], out: Path, settings: RunSettings, load: object, **options: object
    ) -> RunResult:
        seen.update(options, paths=paths, album=settings.album)
        return RunResult(out, settings, (), (), 0, 0, 1.0)

    from diffusers_dedim.runs.ray import driver

    monkeypatch.setattr(driver, "run_ray", fake_run)
    words = ["run", str(source), "--out", str(tmp_path / "out"), "--device", "cpu", "--ray", "2"]
    assert dedim(*words, "--parquet").exit_code == 0
    assert seen["workers"] == 2
    assert (seen["output"], seen["accelerators"], seen["paths"]) == ("parquet", 0, [source])
    assert seen["album"]  # is wanted, so that the run can say that there is none
    assert dedim(*words, "--no-album").exit_code == 0
    assert not seen["album"]

    def absent(*_: object, **__: object) -> RunResult:
        raise ImportError('needs the package; run: pip install "diffusers-dedim[ray]"')

    monkeypatch.setattr(driver, "run_ray", absent)
    result = dedim(*words)
    assert result.exit_code == 2
    assert 'pip install "diffusers-dedim[ray]"' in result.stderr
    for option in (("--report",), ("--keep-album", str(tmp_path / "a"))):
        assert "no --report, --dry-run or --keep-album" in " ".join(dedim(*words, *option).stderr.split())
