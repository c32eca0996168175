"""`ModularPipelineBlocks` of the three steps: alone, together, with others between, and from a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import (
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from toys import face_at, seeded, tiny_preset, toy_pipeline

from diffusers_dedim.errors import NoFaceError
from diffusers_dedim.faces import cover_face
from diffusers_dedim.pipeline.blocks import DeDiMBlocks, FindFaces, PasteFaces, SampleFaces, paste_changes

PHOTO = np.random.default_rng(0).integers(40, 216, (150, 200, 3), dtype=np.uint8)
FACES = [face_at(10, 12, 80), face_at(100, 50, 90)]


def equipped(blocks: Any, pipe: Any = None) -> Any:
    """A modular pipeline of these blocks with toy networks and a detector that knows where the faces are."""
    pipe = pipe or toy_pipeline()
    modular = blocks.init_pipeline()
    names = set(modular.components) - {"face_detector"}
    modular.update_components(**{name: getattr(pipe, name) for name in names})
    if "face_detector" in modular.components:
        modular.face_detector = lambda photo: FACES
    return modular


def test_the_blocks_do_what_the_pipeline_does() -> None:
    pipe = toy_pipeline()
    pipe.face_detector = lambda photo: FACES
    settings = tiny_preset()
    with pytest.warns(UserWarning, match="stayed above"):
        expected = pipe(PHOTO, preset=settings, generator=seeded(3)[0], output_type="np")
    with pytest.warns(UserWarning, match="stayed above"):
        state = equipped(DeDiMBlocks(), pipe)(
            image=PHOTO, preset=settings, generator=seeded(3)[0], output_type="np"
        )
    (image,) = state.get("images")
    # the crops that are sampled are rounded to 8 bits here, and not there: rarely a level or two in the photo
    assert np.abs(image - expected.images[0]).mean() < 0.5 / 255
    outside = np.ones(PHOTO.shape[:2], bool)
    for face in FACES:
        x0, y0, x1, y1 = map(int, face.box)
        outside[y0 - 1 : y1 + 2, x0 - 1 : x1 + 2] = False
    assert np.array_equal(image[outside], (PHOTO / np.float32(255))[outside])
    assert state.get("similarities") == pytest.approx([face.similarity for face in expected.faces], abs=0.02)
    assert state.get("reached_threshold") == [face.reached_threshold for face in expected.faces]


class GreyChange(ModularPipelineBlocks):
    """Between sampling and pasting: only the brightness of what was changed."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam("crops", required=True), InputParam("protected_crops", required=True)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam("protected_crops")]

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        change = (block.protected_crops - block.crops).mean(1, keepdim=True)
        block.protected_crops = block.crops + change
        self.set_block_state(state, block)
        return components, state


def test_a_block_of_ones_own_goes_between() -> None:
    blocks = DeDiMBlocks()
    blocks.sub_blocks.insert("grey", GreyChange(), 2)
    assert list(blocks.sub_blocks) == ["find", "sample", "grey", "paste"]
    with pytest.warns(UserWarning, match="stayed above"):
        state = equipped(blocks)(image=PHOTO, preset=tiny_preset(), generator=seeded(0)[0])
    image = np.asarray(state.get("images")[0]).astype(int)
    change = image - PHOTO
    assert change.any()
    whole = ((image > 0) & (image < 255)).all(2)  # not cut off
    assert np.ptp(change, axis=2)[whole].max() <= 1  # the same in all colours, up to rounding


def test_faces_without_change_give_the_photo_back() -> None:
    blocks = SequentialPipelineBlocks.from_blocks_dict({"find": FindFaces(), "paste": PasteFaces()})
    found = equipped(FindFaces())(image=[PHOTO, PHOTO])
    assert [index for index, _ in found.get("aligned_faces")] == [0, 0, 1, 1]
    crops = found.get("crops")
    assert (crops.shape, crops.dtype) == ((4, 3, 112, 112), torch.float32)
    state = equipped(blocks)(image=[PHOTO, PHOTO], protected_crops=crops.clone(), output_type="np")
    assert all(np.array_equal(image, PHOTO / np.float32(255)) for image in state.get("images"))
    assert state.get("similarities") == pytest.approx([1.0] * 4)
    assert state.get("reached_threshold") == [False] * 4  # nothing was protected, and that is said


def test_sampling_alone_takes_anybodys_crops() -> None:
    crops = torch.rand(2, 3, 112, 112, generator=seeded(0)[0])
    with pytest.warns(UserWarning, match="stayed above"):
        changed = equipped(SampleFaces())(crops=crops, preset=tiny_preset(), output="protected_crops")
    assert changed.shape == crops.shape
    assert 0 <= changed.min() <= changed.max() <= 1


def test_no_face_is_an_error_and_lost_crops_are_too() -> None:
    modular = equipped(FindFaces())
    modular.face_detector = lambda photo: []
    with pytest.raises(NoFaceError, match="image 0: no face was found"):
        modular(image=PHOTO)
    found = equipped(FindFaces())(image=PHOTO)
    crops = found.get("crops")
    with pytest.raises(ValueError, match=r"protected_crops: expected \[2, 3, 112, 112\], one for each of 2"):
        paste_changes([PHOTO], found.get("aligned_faces"), crops, crops[:1])


def test_faces_that_cannot_be_changed_are_named() -> None:
    modular = equipped(FindFaces())
    lying = replace(FACES[0], reason="lies on its side")
    modular.face_detector = lambda photo: [lying, FACES[1], face_at(0, 0, 20)]
    with pytest.warns(
        UserWarning, match=r"2 faces are left UNPROTECTED \(lies on its side, is under 40 px\)"
    ):
        state = modular(image=PHOTO, small_faces="skip")
    assert [reason for _, _, reason in state.get("left_faces")] == ["lies on its side", "is under 40 px"]
    assert len(state.get("crops")) == 1
    modular.face_detector = lambda photo: [lying]
    with pytest.raises(NoFaceError, match="1 faces are left UNPROTECTED"):
        modular(image=PHOTO, small_faces="skip")
    assert [how for _, _, how in modular(image=PHOTO).get("covered_faces")] == ["blur"]
    with pytest.raises(ValueError, match=r"small_faces: expected one of .*, got 'hide'"):
        modular(image=PHOTO, small_faces="hide")


def test_what_cannot_be_changed_or_still_matches_is_covered_as_by_the_pipeline() -> None:
    pipe = toy_pipeline()
    small = face_at(0, 120, 20)
    pipe.face_detector = lambda photo: [*FACES, small]
    settings = tiny_preset()
    modular = equipped(DeDiMBlocks(), pipe)
    modular.face_detector = pipe.face_detector
    with pytest.warns(UserWarning, match="stayed above"):
        state = modular(image=PHOTO, preset=settings, fallback="pixelate", output_type="np")
    assert [how for _, _, how in state.get("covered_faces")] == ["blur"]
    assert state.get("reached_threshold") == [False, False]
    assert state.get("is_protected") == [True, True]
    covered = cover_face(PHOTO, small, "blur")
    image = (state.get("images")[0] * 255).round().astype(np.uint8)
    assert np.array_equal(image[130:140, 3:12], covered[130:140, 3:12])
    for face in FACES:
        x, y = face.landmarks.mean(0).astype(int)
        colours = np.unique(image[y - 6 : y + 6, x - 6 : x + 6].reshape(-1, 3), axis=0)
        assert len(colours) <= 4  # of the squares that meet there


def test_a_photo_of_small_faces_alone_is_covered() -> None:
    modular = equipped(DeDiMBlocks())
    modular.face_detector = lambda photo: [face_at(20, 20, 25)]
    state = modular(image=PHOTO, preset=tiny_preset(), output_type="np")
    expected = cover_face(PHOTO, face_at(20, 20, 25), "blur")
    assert np.array_equal((state.get("images")[0] * 255).round().astype(np.uint8), expected)
    assert state.get("similarities") == state.get("is_protected") == []


def test_the_blocks_load_from_a_folder_as_custom_code(tmp_path: Path) -> None:
    DeDiMBlocks().save_pretrained(tmp_path / "blocks")
    assert {path.name for path in (tmp_path / "blocks").iterdir()} == {"blocks.py", "modular_config.json"}
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(str(tmp_path / "blocks"), trust_remote_code=False)
    loaded = ModularPipelineBlocks.from_pretrained(str(tmp_path / "blocks"), trust_remote_code=True)
    assert type(loaded) is DeDiMBlocks


def test_the_parts_come_from_the_package_or_a_pipelines_folder(tmp_path: Path) -> None:
    from diffusers_dedim.models.weights import BUNDLED_WEIGHTS

    modular = DeDiMBlocks().init_pipeline()  # the bundled ones
    modular.load_components(names=["landmarker", "scheduler"])
    assert type(modular.landmarker).__name__ == "LandmarkRegressor"
    assert modular.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert modular.unet is None  # until it is asked for
    pipe = toy_pipeline()
    pipe.register_modules(landmarker=modular.landmarker)  # one that can be saved
    pipe.save_pretrained(tmp_path)
    modular = DeDiMBlocks().init_pipeline(str(tmp_path))
    modular.load_components(names=["unet", "landmarker"])
    assert tuple(modular.unet.config.block_out_channels) == (4, 8)
    assert modular._component_specs["landmarker"].pretrained_model_name_or_path == str(tmp_path)
    assert modular._component_specs["face_encoder"].pretrained_model_name_or_path == str(BUNDLED_WEIGHTS)
