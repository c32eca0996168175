from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import ToyEncoder, tiny_unet

from benchmarks import samples
from benchmarks.samples import Features, load_features, measure_distances
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.cli.sample import draw_faces, face_grid
from diffusers_dedim.encoders import Recogniser

MARGIN = 8  # columns that no real face knows


def write_faces(path: Path, count: int, cut_off: int = 0, unknown: int = MARGIN) -> Path:
    """Coloured noise without its left margin; the first ``cut_off`` faces also lack their upper half."""
    rng = np.random.default_rng(0)
    images = []
    for index in range(count):
        pixels = rng.integers(0, 256, (112, 112, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pixels[:, :unknown, 3] = 0
        pixels[: 56 if index < cut_off else 0, :, 3] = 0
        images.append(Image.fromarray(pixels))
    data = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    data.to_parquet(str(path / "val-00000.parquet"))
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path, 8)


@pytest.fixture
def toy_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "load_recogniser", lambda name: Recogniser(name, ToyEncoder(), name))


def mean_colour() -> Features:
    return Features("mean colour", lambda crops: crops.float().mean(dim=(2, 3)), None)


def test_draws_shows_and_measures(
    pipe: DeDiMPipeline, faces: Path, tmp_path: Path, toy_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, file = tmp_path / "new" / "grid.png", tmp_path / "samples.json"
    words = ["--count", "3", "--steps", "2", "--seed", "5", "--data", str(faces), "--features", "one", "two"]
    samples.main([*words, "--grid", str(grid), "--json", str(file)], load_pipeline=lambda: pipe)
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert json.loads(file.read_text()) == results
    assert [row["features"] for row in results["distances"]] == ["face recogniser one", "face recogniser two"]
    row = results["distances"][0]
    assert (row["dimensions"], row["kid_kernel"]) == (16, "(1 x.y + 1)^3")
    assert {
        "kid",
        "kid_std_over_subsets",
        "fid",
        "floor_kid",
        "floor_kid_std_over_subsets",
        "floor_fid",
    } <= set(row)
    assert row["fid"] != row["floor_fid"]
    assert (results["faces"], results["reference_faces"], results["floor_faces"]) == (3, 4, 3)
    assert results["kid_subset_size"] == 3
    assert "too few faces for subsets of 100: KID is taken over subsets of 3" in err
    assert results["compared_area"] == pytest.approx((112 - MARGIN) / 112, abs=1e-4)  # rounded
    assert results["command"].startswith("python -m benchmarks.samples --count 3 ")
    assert {"seed", "steps", "data", "commit", "torch", "threads", "seconds_per_face"} <= set(results)
    np.testing.assert_array_equal(Image.open(grid), face_grid(draw_faces(pipe, 3, seed=5, steps=2)))


def test_the_same_seed_gives_the_same_values(faces: Path) -> None:
    real = samples.read_real_faces(str(faces))
    drawn = np.random.default_rng(1).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    first, again, other = (samples.compare(real, drawn, [mean_colour()], 2, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["distances"] != other["distances"]
    assert first["kid_subset_size"] == 2


def test_darker_faces_are_further_away_than_the_floor(faces: Path) -> None:
    real = samples.read_real_faces(str(faces))
    alike, darker = (samples.compare(real, real.pixels // by, [mean_colour()], 4, 0) for by in (1, 2))
    for name in ("kid", "fid"):
        floor = alike["distances"][0][f"floor_{name}"]
        assert darker["distances"][0][f"floor_{name}"] == floor
        assert darker["distances"][0][name] > 10 * abs(floor)
        assert abs(alike["distances"][0][name]) < darker["distances"][0][name]


def test_only_what_nearly_all_faces_know_is_compared(tmp_path: Path) -> None:
    real = samples.read_real_faces(str(write_faces(tmp_path, 101, cut_off=1)))
    assert real.left_out == 1  # of 101: the upper half is known to 99 % and stays
    assert len(real.pixels) == 100
    assert not real.area[:, :MARGIN].any()
    assert real.area[:, MARGIN:].all()
    drawn = np.random.default_rng(1).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    kept = samples.keep_area(drawn, real.area)
    np.testing.assert_array_equal(kept[:, :, MARGIN:], drawn[:, :, MARGIN:])
    for faces in (kept, real.pixels):  # the rest repeats the nearest column, in drawn and real faces alike
        edge = faces[:, :, MARGIN : MARGIN + 1].repeat(MARGIN, axis=2)
        np.testing.assert_array_equal(faces[:, :, :MARGIN], edge)


def test_what_real_faces_do_not_know_of_themselves_does_not_count(faces: Path) -> None:
    real = samples.read_real_faces(str(faces))
    drawn = np.random.default_rng(1).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    changed = drawn.copy()
    changed[:, :, :MARGIN] = 0
    assert samples.compare(real, drawn, [mean_colour()], 4, 0) == samples.compare(
        real, changed, [mean_colour()], 4, 0
    )


def test_too_few_real_faces_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data: expected at least 4 faces .* got 3 of 3 faces over 11648"):
        samples.read_real_faces(str(write_faces(tmp_path, 3)))


def test_real_faces_that_know_too_little_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 6 of 6 faces over 0 pixels in .*; give more, or whole, crops"):
        samples.read_real_faces(str(write_faces(tmp_path, 6, unknown=112)))


def normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def test_distances_are_those_of_their_formulas() -> None:
    real, drawn = normal(40, 0), normal(40, 1, shift=0.5)
    measured = measure_distances(real, drawn, gamma=0.7, subsets=2, subset_size=40, seed=0)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (0.7 * a @ b.T + 1) ** 3

    unlike = ~torch.eye(40, dtype=torch.bool)
    kid = (
        kernel(real, real)[unlike].mean()
        + kernel(drawn, drawn)[unlike].mean()
        - 2 * kernel(real, drawn).mean()
    )
    # float64 sums of another order
    assert measured["kid"] == pytest.approx(kid.item(), rel=1e-9)
    assert measured["kid_std_over_subsets"] == pytest.approx(0, abs=1e-9)  # each subset is the whole set
    moved = measure_distances(real, real + 2, gamma=None, subsets=1, subset_size=2, seed=0)
    assert moved["fid"] == pytest.approx(
        3 * 2**2, rel=1e-6
    )  # equal covariances: the squared distance of the means


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    measure_distances(normal(9, 0), normal(9, 1), gamma=None, subsets=2, subset_size=3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_given_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    whole = mean_colour().of(pixels)
    monkeypatch.setattr(samples, "_AT_ONCE", 2)
    assert whole.dtype == torch.float64
    assert torch.equal(mean_colour().of(pixels), whole)
    np.testing.assert_allclose(whole, pixels.mean(axis=(1, 2)), rtol=1e-5)  # float32 sums


def test_a_recogniser_gets_the_range_it_was_trained_on(toy_features: None) -> None:
    pixels = np.full((1, 112, 112, 3), 255, np.uint8)
    torch.testing.assert_close(
        load_features("toy").of(pixels), ToyEncoder()(torch.ones(1, 3, 112, 112)).detach().double()
    )


def test_other_words_for_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"--features: expected 'inception', .*got 'inceptoin'"):
        load_features("inceptoin")


def test_without_torchmetrics_its_command_is_named(
    monkeypatch: pytest.MonkeyPatch, toy_features: None
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"benchmarks.samples needs .*; run: pip install torchmetrics"):
        load_features("toy")


def test_without_torch_fidelity_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"--features inception needs .*; run: pip install torch-fidelity"):
        load_features("inception")


def fake_inception(monkeypatch: pytest.MonkeyPatch, *, error: Exception | None = None) -> list[object]:
    """torch-fidelity and torchmetrics whose Inception counts pixels, or cannot be had."""
    given: list[object] = []

    def distance(feature: int, feature_extractor_weights_path: str | None) -> SimpleNamespace:
        given.append(feature_extractor_weights_path)
        if error is not None:
            raise error
        return SimpleNamespace(inception=lambda crops: crops.float().mean(dim=(2, 3)))

    kernel = SimpleNamespace(KernelInceptionDistance=None)
    parts = {
        "torchmetrics.image.kid": kernel,
        "torch_fidelity.feature_extractor_inceptionv3": SimpleNamespace(
            URL_INCEPTION_V3="https://a.test/i.pth"
        ),
        "torchmetrics.image.fid": SimpleNamespace(FrechetInceptionDistance=distance),
    }
    monkeypatch.setattr(samples, "import_extra", lambda module, *_: parts[module])
    return given


def test_inception_takes_bytes_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = fake_inception(monkeypatch)
    features = load_features("inception")
    assert features.name == "Inception v3, 2048 numbers of the last pooling"
    assert features.gamma is None  # the published kernel
    assert features.of(np.full((1, 112, 112, 3), 200, np.uint8)).tolist() == [[200.0] * 3]
    (tmp_path / "i.pth").touch()
    load_features(f"inception={tmp_path / 'i.pth'}")
    assert given == [None, str(tmp_path / "i.pth")]
    with pytest.raises(FileNotFoundError, match=r"--features inception: there is no file 'gone.pth'"):
        load_features("inception=gone.pth")


def test_weights_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_inception(monkeypatch, error=URLError("no network"))
    advice = r"Get https://a.test/i.pth where there is a network and give --features inception=FILE.pth, or"
    with pytest.raises(RuntimeError, match=rf"weights could not be downloaded \(.*no network.*\). {advice}"):
        load_features("inception")
    file = tmp_path / "broken.pth"
    file.touch()
    fake_inception(monkeypatch, error=pickle.UnpicklingError("invalid load key"))
    with pytest.raises(RuntimeError, match=r"broken.pth cannot be read as its weights \(invalid load key\)"):
        load_features(f"inception={file}")


def test_missing_features_are_told_before_anything_is_drawn(
    pipe: DeDiMPipeline, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "draw_faces", lambda *_: pytest.fail("features first"))
    words = ["--data", str(faces), "--features", "foamliu=gone.onnx", "--grid", str(faces / "g.png")]
    with pytest.raises(FileNotFoundError, match=r"there is no ONNX file 'gone.onnx'"):
        samples.main(words, load_pipeline=lambda: pipe)


def test_a_denoiser_of_another_size_is_refused(pipe: DeDiMPipeline, faces: Path, toy_features: None) -> None:
    pipe.unet = tiny_unet(sample_size=64)
    with pytest.raises(ValueError, match=r"--weights: expected a denoiser of 112 px, .*, got one of 64 px"):
        samples.main(["--data", str(faces), "--features", "toy"], load_pipeline=lambda: pipe)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--count", "1"], "argument --count: expected at least 2, got 1"),
        (["--subset-size", "1"], "argument --subset-size: expected at least 2, got 1"),
        (["--grid", "a.jpg"], "--grid: expected a name that ends in .png, got a.jpg"),
    ],
)
def test_wrong_options_are_named(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        samples.main(words)
    assert text in capsys.readouterr().err
