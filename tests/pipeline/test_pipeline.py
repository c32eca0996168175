from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from toys import MEAN_FACE, ToyEncoder, ToyLandmarker, face_at, in_bytes, seeded, tiny_preset, tiny_unet

from diffusers_dedim import DeDiMPipeline, LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.faces import align_face, landmark_mask, whole_crop
from diffusers_dedim.pipeline.output import measure_faces

Pixels = NDArray[np.uint8]
# Settings that no toy face can reach, and that every one reaches at once.
UNREACHABLE, EASY = tiny_preset(threshold=0.001, max_rounds=1), tiny_preset(threshold=0.999, max_rounds=1)

pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")


def protect(pipe: DeDiMPipeline, image: Any, **changes: Any) -> Any:
    """As uint8 arrays, unless another type is asked for."""
    settings = {"preset": EASY, "aligned": True, "generator": seeded(0)[0], **changes}
    out = pipe(image, **settings)
    return out if "output_type" in changes else in_bytes(out)


@pytest.fixture(scope="module")
def protected_photo() -> tuple[Pixels, Any]:
    """A real photo through the real detector, once."""
    photo = np.ascontiguousarray(astronaut())
    pipe = DeDiMPipeline(tiny_unet(), make_scheduler(), ToyEncoder(), ToyLandmarker())
    pipe.set_progress_bar_config(disable=True)
    return photo, protect(pipe, Image.fromarray(photo), aligned=False, output_type="pil")


def test_a_photo_keeps_its_size_and_changes_in_the_face_only(protected_photo: tuple[Pixels, Any]) -> None:
    photo, out = protected_photo
    (image,), (face,) = out.images, out.faces
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (512, 512))
    changed = (np.asarray(image) != photo).any(axis=2)
    y, x = np.nonzero(changed)
    assert len(x) > 200
    # the mask's discs reach 10 crop px, here about 11 photo px, beyond the landmarks; bilinear adds one
    low, high = face.landmarks.min(axis=0) - 13, face.landmarks.max(axis=0) + 13
    assert (low <= (x.min(), y.min())).all()
    assert ((x.max(), y.max()) <= high).all()


def test_the_record_of_a_face(protected_photo: tuple[Pixels, Any]) -> None:
    _, out = protected_photo
    (face,) = out.faces
    x0, y0, x1, y1 = face.box
    centre = face.landmarks.mean(axis=0)
    assert x0 < centre[0] < x1
    assert y0 < centre[1] < y1
    assert face.landmarks.shape == (51, 2)
    assert face.image_index == 0
    assert (face.rounds, face.unet_calls, face.reached_threshold) == (1, 2, True)
    assert face.similarity_before == pytest.approx(1, abs=1e-5)  # a float32 unit vector with itself
    assert face.similarity < face.similarity_before
    assert face.probability == pytest.approx((face.similarity + 1) / 2, abs=1e-12)


def test_the_returned_similarity_is_that_of_the_returned_image(pipe: DeDiMPipeline, crop: Pixels) -> None:
    out = protect(pipe, crop)
    before, after = (
        pipe.face_encoder(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1)
        for image in (crop, out.images[0])
    )
    # the whole crop goes through a resampling of weight 1; float32 rounding is all that is left
    assert float((before * after).sum()) == pytest.approx(out.faces[0].similarity, abs=1e-5)


def test_pixels_outside_the_mask_keep_their_bits(pipe: DeDiMPipeline, crop: Pixels) -> None:
    mask = landmark_mask(MEAN_FACE[None])[0, 0].numpy() > 0
    image = protect(pipe, crop).images[0]
    np.testing.assert_array_equal(image[~mask], crop[~mask])
    assert (image[mask] != crop[mask]).mean() > 0.5


def test_the_feather_counts_once(pipe: DeDiMPipeline, crop: Pixels) -> None:
    """Line 9 blends with the mask; pasting back must not multiply by it again."""

    def brighten(pipeline: Any, index: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prev_sample": tensors["x_org"] + 40 / 127.5}

    image = protect(
        pipe,
        crop,
        preset=tiny_preset(guidance_scale=0, mask_feather=6.0, threshold=0.999, max_rounds=1),
        callback_on_step_end=brighten,
        callback_on_step_end_tensor_inputs=["x_org"],
    ).images[0]
    mask = landmark_mask(MEAN_FACE[None], feather=6.0)[0, 0].numpy()
    # 8-bit rounding is half a level; float32 coordinates of the resampling cost a little of the slope
    np.testing.assert_allclose(image.astype(float) - crop, 40 * mask[..., None].repeat(3, 2), atol=0.6)


@pytest.mark.parametrize(
    ("output_type", "kind"), [("pil", Image.Image), ("np", np.ndarray), ("pt", torch.Tensor)]
)
def test_output_types_hold_the_same_pixels(
    pipe: DeDiMPipeline, crop: Pixels, output_type: str, kind: type
) -> None:
    expected = protect(pipe, crop).images[0]
    (image,) = protect(pipe, crop, output_type=output_type).images
    assert isinstance(image, kind)
    if isinstance(image, torch.Tensor):
        assert image.shape == (3, 112, 112)
        image = image.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        assert (image.dtype, image.max() <= 1) == (np.float32, True)
        image = (image * 255).round()
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_what_another_pipeline_gives_goes_in_and_what_comes_out_goes_on(
    pipe: DeDiMPipeline, crop: Pixels
) -> None:
    """Floats in [0, 1], as diffusers' image processor hands them from one pipeline to the next."""
    processor = VaeImageProcessor(do_resize=False)
    latents = processor.preprocess(Image.fromarray(crop))  # [1, 3, 112, 112] in [-1, 1]
    (expected,) = protect(pipe, crop).images
    for output_type in ("np", "pt"):
        given = processor.postprocess(latents, output_type=output_type)
        out = protect(pipe, given, output_type=output_type)
        assert len(out.images) == 1
        back = processor.postprocess(processor.preprocess(out.images), output_type="pil")
        np.testing.assert_array_equal(np.asarray(back[0]), expected)
    with pytest.raises(ValueError, match=re.escape("give (image + 1) / 2 of one in [-1, 1].")):
        protect(pipe, latents)


def test_return_dict_false_gives_the_tuple(pipe: DeDiMPipeline, crop: Pixels) -> None:
    images, faces = protect(pipe, crop, return_dict=False)
    assert (len(images), len(faces)) == (1, 1)


def test_same_seed_same_image(pipe: DeDiMPipeline, crop: Pixels) -> None:
    first, again, other = (
        protect(pipe, crop, generator=generator).images[0] for generator in seeded(1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_global_seed_counts_where_no_generator_is_given(pipe: DeDiMPipeline, crop: Pixels) -> None:
    images = []
    for _ in range(2):
        torch.manual_seed(3)
        images.append(protect(pipe, crop, generator=None).images[0])
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_equals_singles(pipe: DeDiMPipeline, crop: Pixels, batch_size: int) -> None:
    crops = [crop, crop[::-1].copy(), crop[:, ::-1].copy()]
    together = protect(pipe, crops, generator=seeded(1, 2, 3), batch_size=batch_size)
    assert [face.image_index for face in together.faces] == [0, 1, 2]
    for index, generator in enumerate(seeded(1, 2, 3)):
        alone = protect(pipe, crops[index], generator=generator)
        # convolutions of another batch size may add in another order: a value on .5 may round the other way
        difference = together.images[index].astype(int) - alone.images[0]
        assert abs(difference).max() <= 1
        assert (difference != 0).mean() < 1e-3
        assert together.faces[index].probability == pytest.approx(alone.faces[0].probability, abs=1e-4)


def test_several_faces_of_a_photo(pipe: DeDiMPipeline, crop: Pixels) -> None:
    photo = np.full((150, 320, 3), 128, np.uint8)
    photo[20:132, 20:132], photo[20:132, 180:292] = crop, crop[:, ::-1]
    pipe.face_detector = lambda _: [face_at(20, 20, 112), face_at(180, 20, 112)]
    out = protect(pipe, [photo, photo], aligned=False, generator=seeded(0, 0), batch_size=3)
    assert [face.image_index for face in out.faces] == [0, 0, 1, 1]
    assert [face.box[0] for face in out.faces] == [20, 180, 20, 180]
    for x in (20, 180):
        assert (out.images[0][20:132, x : x + 112] != photo[20:132, x : x + 112]).any()
    np.testing.assert_array_equal(out.images[0][:, 140:175], photo[:, 140:175])
    # the faces of both photos come from equal seeds, but sit in batches of 3 and 1: rounding only
    assert abs(out.images[0].astype(int) - out.images[1]).max() <= 1


def test_overlapping_faces_are_measured_when_all_are_done(pipe: DeDiMPipeline, crop: Pixels) -> None:
    photo = np.full((150, 200, 3), 128, np.uint8)
    photo[20:132, 20:132] = crop
    faces = [face_at(20, 20, 112), face_at(50, 20, 112)]
    pipe.face_detector = lambda _: faces
    out = protect(pipe, photo, aligned=False, batch_size=1)
    for face, result in zip(faces, out.faces, strict=True):
        before, after = (pipe.face_encoder(align_face(p, face).crop[None]) for p in (photo, out.images[0]))
        assert float((before * after).sum()) == pytest.approx(result.similarity, abs=1e-5)  # float32 rounding


def test_the_users_objects_are_left_alone(pipe: DeDiMPipeline, crop: Pixels) -> None:
    pixels, timesteps = crop.copy(), pipe.scheduler.timesteps.clone()
    image = protect(pipe, pixels).images[0]
    np.testing.assert_array_equal(pixels, crop)
    assert not np.shares_memory(image, pixels)
    assert torch.equal(pipe.scheduler.timesteps, timesteps)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(
    pipe: DeDiMPipeline, crop: Pixels, mode: type[torch.enable_grad]
) -> None:
    expected = protect(pipe, crop)
    with mode():
        out = protect(pipe, crop)
    np.testing.assert_array_equal(out.images[0], expected.images[0])


def test_a_face_above_the_threshold_is_said_aloud_at_the_users_line(
    pipe: DeDiMPipeline, crop: Pixels
) -> None:
    with pytest.warns(UserWarning, match="2 of 2 faces stayed above the threshold 0.001") as caught:
        out = pipe([crop, crop], preset=UNREACHABLE, aligned=True)
    assert [face.reached_threshold for face in out.faces] == [False, False]
    assert "they are NOT protected as asked" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_face_below_the_threshold_is_silent(pipe: DeDiMPipeline, crop: Pixels) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert protect(pipe, crop).faces[0].reached_threshold


def test_guidance_and_callbacks_are_the_users_to_replace(pipe: DeDiMPipeline, crop: Pixels) -> None:
    seen: list[tuple[str, int, int]] = []

    def guide(pipeline: Any, index: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline.face_encoder is pipe.face_encoder
        assert pipeline.scheduler.timesteps.tolist() == [19, 9]
        seen.append(("guidance", index, timestep))
        return tensors

    def watch(pipeline: Any, index: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        assert sorted(tensors) == ["prev_sample", "sample"]
        seen.append(("callback", index, timestep))
        return tensors

    replaced = protect(pipe, crop, guidance=guide, callback_on_step_end=watch)
    assert seen == [("guidance", 0, 19), ("callback", 0, 19), ("guidance", 1, 9), ("callback", 1, 9)]
    plain = protect(pipe, crop, guidance_scale=0)
    np.testing.assert_array_equal(replaced.images[0], plain.images[0])
    assert (protect(pipe, crop).images[0] != plain.images[0]).any()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"threshold": 1.0},
            ValueError,
            "threshold: expected a probability strictly between 0 and 1 (Eq. 4), got 1.0.",
        ),
        (
            {"threshold": 0.0},
            ValueError,
            "threshold: expected a probability strictly between 0 and 1 (Eq. 4), got 0.0.",
        ),
        ({"max_rounds": 0}, ValueError, "max_rounds: expected a whole number of at least 1, got 0."),
        ({"preset": "best"}, ValueError, "preset: expected one of"),
        (
            {"output_type": "latent"},
            ValueError,
            "output_type: expected one of ('pil', 'np', 'pt'), got 'latent'.",
        ),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0."),
        (
            {"small_faces": "ignore"},
            ValueError,
            "small_faces: expected one of ['blur', 'pixelate', 'skip', 'error'], got 'ignore'.",
        ),
        (
            {"fallback": "skip"},
            ValueError,
            "fallback: expected one of ['leave-out', 'blur', 'pixelate'], got 'skip'.",
        ),
        (
            {"num_inference_steps": 50},
            ValueError,
            "num_inference_steps: expected 1..20 (start_timestep), got 50.",
        ),
        ({"generator": seeded(1, 2)}, ValueError, "generator: expected one, or 1 (one a photo), got 2."),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator or a list of them, got int"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latents"]},
            ValueError,
            "callback_on_step_end_tensor_inputs: expected names out of ['sample', 'prev_sample'",
        ),
    ],
)
def test_wrong_arguments_are_refused(
    pipe: DeDiMPipeline, crop: Pixels, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        protect(pipe, crop, **changes)


def test_aligned_wants_crops(pipe: DeDiMPipeline) -> None:
    text = "image: aligned=True expects 112x112 crops, got 64x48; leave aligned=False for photos."
    with pytest.raises(ValueError, match=re.escape(text)):
        protect(pipe, np.zeros((48, 64, 3), np.uint8))


def test_no_face_is_an_error(pipe: DeDiMPipeline) -> None:
    with pytest.raises(NoFaceError, match=r"image 0: no face was found, so nothing was protected\."):
        protect(pipe, np.full((80, 80, 3), 128, np.uint8), aligned=False)


def test_a_small_face_may_be_an_error(pipe: DeDiMPipeline, crop: Pixels) -> None:
    pipe.face_detector = lambda _: [face_at(0, 0, 39.9), face_at(50, 50, 60)]
    text = (
        "image 0: 1 of 2 faces are smaller than 40 px (the smallest 40 px) and cannot be protected; use a "
        "larger photo, or small_faces='blur' to make them unrecognisable."
    )
    with pytest.raises(FaceTooSmallError, match=re.escape(text)):
        protect(pipe, crop, aligned=False, small_faces="error")


def test_a_small_face_may_be_skipped_aloud(pipe: DeDiMPipeline, crop: Pixels) -> None:
    pipe.face_detector = lambda _: [face_at(0, 0, 30), face_at(50, 50, 60)]
    with pytest.warns(UserWarning, match="1 of 2 faces are smaller than 40 px") as caught:
        out = in_bytes(pipe(crop, preset=EASY, small_faces="skip"))
    assert "left UNPROTECTED (small_faces='skip')" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [face.box[0] for face in out.faces] == [50]
    np.testing.assert_array_equal(out.images[0][:30, :30], crop[:30, :30])


def test_skipping_every_face_is_still_an_error(pipe: DeDiMPipeline, crop: Pixels) -> None:
    pipe.face_detector = lambda _: [face_at(0, 0, 30)]
    with pytest.raises(FaceTooSmallError, match="1 of 1 faces are smaller than 40 px"):
        protect(pipe, crop, aligned=False, small_faces="skip")


def two_faces(pipe: DeDiMPipeline, crop: Pixels, *, second: float = 112) -> Pixels:
    """A photo with a face left and right, the right one of another size if asked."""
    photo = np.full((150, 320, 3), 128, np.uint8)
    photo[20:132, 20:132], photo[20:132, 180:292] = crop, crop[:, ::-1]
    pipe.face_detector = lambda _: [face_at(20, 20, 112), face_at(180, 20, second)]
    return photo


def test_only_the_selected_faces_change(pipe: DeDiMPipeline, crop: Pixels) -> None:
    photo = two_faces(pipe, crop)
    out = protect(pipe, photo, aligned=False, select_faces=lambda face: face.box[0] > 100)
    assert [face.box[0] for face in out.faces] == [180]
    np.testing.assert_array_equal(out.images[0][:, :175], photo[:, :175])
    assert (out.images[0][20:132, 180:292] != photo[20:132, 180:292]).any()
    everyone = protect(pipe, photo, aligned=False, select_faces=lambda face: True)
    np.testing.assert_array_equal(
        everyone.images[0], protect(pipe, photo, aligned=False, select_faces=None).images[0]
    )


def test_a_small_face_that_is_not_selected_is_no_error(pipe: DeDiMPipeline, crop: Pixels) -> None:
    photo = two_faces(pipe, crop, second=30)
    out = protect(pipe, photo, aligned=False, select_faces=lambda face: face.box[0] < 100)
    assert [face.box[0] for face in out.faces] == [20]
    with pytest.raises(FaceTooSmallError, match="1 of 1 faces are smaller than 40 px"):
        protect(pipe, photo, aligned=False, small_faces="skip", select_faces=lambda face: face.box[0] > 100)


def test_selecting_no_face_is_an_error(pipe: DeDiMPipeline, crop: Pixels) -> None:
    text = (
        "image 0: select_faces chose none of the 2 faces found, so nothing was protected; let it return True "
        "for at least one."
    )
    with pytest.raises(NoFaceError, match=re.escape(text)):
        protect(pipe, two_faces(pipe, crop), aligned=False, select_faces=lambda face: False)
    text = "select_faces: needs faces to choose from, and aligned=True detects none; drop one."
    with pytest.raises(ValueError, match=re.escape(text)):
        protect(pipe, crop, select_faces=lambda face: True)


def real_networks() -> DeDiMPipeline:
    """The shipped architectures with random weights, but landmarks where a face has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        landmarker = LandmarkRegressor()
        landmarker.mean_shape.copy_(MEAN_FACE)
        pipeline = DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FRESH_PROCESS = """
import sys, numpy as np, torch
from diffusers_dedim import DeDiMPipeline, DeDiMPreset
folder, crop, out = sys.argv[1:]
pipe = DeDiMPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
preset = DeDiMPreset(20, 2, "log_probability", 100.0, 1, 0.999)
result = pipe(np.load(crop), preset=preset, aligned=True, generator=torch.Generator().manual_seed(0))
np.save(out, result.images[0])
"""


@pytest.mark.slow
def test_save_and_load_in_a_fresh_process(tmp_path: Path, crop: Pixels) -> None:
    pipe = real_networks()
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["face_encoder"] == ["diffusers_dedim", "MobileFaceNet"]
    assert sorted(key for key in index if not key.startswith("_")) == [
        "face_encoder",
        "landmarker",
        "scheduler",
        "unet",
    ]
    np.save(tmp_path / "crop.npy", crop)
    arguments = [str(tmp_path / name) for name in ("model", "crop.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *arguments], check=True, timeout=120)
    expected = protect(pipe, crop).images[0]
    difference = np.load(tmp_path / "out.npy").astype(int) - expected
    # another process may run another number of threads and add in another order
    assert abs(difference).max() <= 1
    assert (expected != crop).any()


def test_the_folder_is_also_a_plain_ddpm_pipeline(tmp_path: Path) -> None:
    real_networks().save_pretrained(tmp_path)
    plain = DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(plain.unet, UNet2DModel)
    assert plain.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    plain.set_progress_bar_config(disable=True)
    (image,) = plain(num_inference_steps=1).images
    assert image.size == (112, 112)


def test_a_recogniser_of_another_class_is_not_named_in_the_index(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert sorted(key for key in index if not key.startswith("_")) == ["scheduler", "unet"]
    assert not (tmp_path / "face_encoder").exists()


def test_any_module_may_be_a_part(pipe: DeDiMPipeline) -> None:
    """DiffusionPipeline asks its parts for device and dtype, which a plain nn.Module does not have."""
    assert pipe.device.type == "cpu"
    assert pipe.to("cpu", torch.float32) is pipe
    assert pipe.landmarker.dtype == torch.float32  # has no parameters at all
    assert isinstance(real_networks().face_encoder, MobileFaceNet)  # ours needs no wrapper


def test_components_may_be_given_by_name_and_dtype_is_the_denoisers(tmp_path: Path, crop: Pixels) -> None:
    real_networks().save_pretrained(tmp_path)
    encoder = ToyEncoder()
    pipe = DeDiMPipeline.from_pretrained(tmp_path, face_encoder=encoder, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.face_encoder.module is encoder
    assert pipe.unet.dtype == torch.bfloat16
    assert encoder.weight.dtype == pipe.landmarker.dtype == torch.float32
    assert protect(pipe, crop).faces[0].rounds == 1


def test_the_bar_shows_that_a_long_batch_is_alive(
    pipe: DeDiMPipeline, crop: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    pipe(crop, preset=tiny_preset(threshold=1e-9, max_rounds=2), aligned=True)
    shown = capsys.readouterr().err
    assert "step 1, 1 images" in shown
    assert "1/1" in shown


def test_a_pil_photo_keeps_its_transparency_and_profile(pipe: DeDiMPipeline, crop: Pixels) -> None:
    photo = Image.fromarray(crop)
    photo.putalpha(Image.fromarray(crop[..., 0]))
    photo.info["icc_profile"] = b"Display P3"
    (out,) = protect(pipe, photo, output_type="pil").images
    assert (out.mode, out.info["icc_profile"]) == ("RGBA", b"Display P3")
    np.testing.assert_array_equal(np.asarray(out)[..., 3], crop[..., 0])
    assert (np.asarray(out)[..., :3] != crop).any()


def test_scores_need_no_float64_on_the_device(
    pipe: DeDiMPipeline, crop: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apple's MPS has none; a tensor that has not gone through ``cpu()`` stands for one on it."""
    made: set[int] = set()
    to_double, to_cpu = torch.Tensor.double, torch.Tensor.cpu

    def double(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return to_double(tensor)

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        result = to_cpu(tensor)
        made.add(id(result))
        return result

    aligned = whole_crop(crop)
    landmarks, crops = pipe.landmarker(aligned.crop[None]), aligned.crop[None]
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "double", double)
    (record,) = measure_faces(
        [crop], [(0, aligned)], crops, landmarks, pipe.face_encoder, rounds=[1], unet_calls=[1], threshold=0.5
    )
    np.testing.assert_allclose(record.landmarks, MEAN_FACE.numpy(), atol=1e-4)  # float32 points


def test_faces_found_elsewhere_are_protected_instead_of_detected_ones(
    pipe: DeDiMPipeline, crop: Pixels
) -> None:
    pipe.face_detector = lambda _: pytest.fail("nothing is to be detected")
    photo = np.full((160, 300, 3), 120, np.uint8)
    photo[10:122, 10:122] = photo[30:142, 150:262] = crop
    faces = [face_at(150, 30, 112), face_at(10, 10, 112)]
    one = protect(pipe, photo, aligned=False, faces=faces)
    assert [face.box for face in one.faces] == [face.box for face in faces]  # in the order given
    two = protect(pipe, [photo, photo], aligned=False, faces=[faces[:1], faces[1:]])
    assert [(face.image_index, face.box) for face in two.faces] == [(0, faces[0].box), (1, faces[1].box)]
    with pytest.raises(NoFaceError, match="image 0: no face was found"):
        protect(pipe, photo, aligned=False, faces=[])


@pytest.mark.parametrize(
    ("faces", "error", "text"),
    [
        ([[face_at(0, 0, 112)]] * 3, ValueError, r"faces: expected a list for each of the 2 photos, got 3"),
        ([(0, 0, 112, 112), None], TypeError, r"faces: expected diffusers_dedim.faces.Face objects"),
    ],
)
def test_faces_that_do_not_fit_are_refused(
    pipe: DeDiMPipeline, crop: Pixels, faces: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        protect(pipe, [crop, crop], aligned=False, faces=faces)
    with pytest.raises(ValueError, match="faces: aligned=True says"):
        protect(pipe, [crop, crop], faces=faces)
