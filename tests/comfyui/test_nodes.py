"""The node pack of comfyui/, held to what ComfyUI asks of one; `comfy` is a stub of the few calls that are used."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from toys import face_at, tiny_preset, toy_pipeline

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.errors import NoFaceError, NotProtectedError
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS

PACK = Path(__file__).parents[2] / "comfyui"
NODES = {"DeDiMLoad", "DeDiMProtectFaces"}
TYPES = {"IMAGE", "MASK", "STRING", "INT", "BOOLEAN", "DEDIM"}


class Interrupted(Exception):
    """Stands for ComfyUI's InterruptProcessingException."""


class ComfyStub:
    """What the nodes use of ComfyUI: a bar, a stop button, a device."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.stop_after: int | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = self.shown

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None) -> None:
                assert total == self.total
                shown.append((value, self.total))

        utils, management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")
        utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
        management.get_torch_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
        management.processing_interrupted = self.stopped  # type: ignore[attr-defined]
        management.throw_exception_if_processing_interrupted = self.throw  # type: ignore[attr-defined]
        package = ModuleType("comfy")
        package.utils, package.model_management = utils, management  # type: ignore[attr-defined]
        for module in (package, utils, management):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def stopped(self) -> bool:
        return self.stop_after is not None and len(self.shown) >= self.stop_after

    def throw(self) -> None:
        if self.stopped():
            raise Interrupted


def load_pack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As ComfyUI loads a folder of custom_nodes: by its path, whatever it is called."""
    name = "custom_nodes_dedim"
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for loaded in (name, f"{name}.nodes"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> ComfyStub:
    stub = ComfyStub()
    stub.install(monkeypatch)
    return stub


# No face of toy networks falls that far.
HOPELESS = tiny_preset(threshold=0.0999, guidance_scale=400.0)


@pytest.fixture
def pack(comfy: ComfyStub, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = load_pack(monkeypatch)
    preset = tiny_preset(threshold=0.9999, guidance_scale=400.0)
    nodes = sys.modules[f"{module.__name__}.nodes"]
    monkeypatch.setattr(nodes, "STRENGTHS", {"gentler": preset, "standard": preset})
    yield module
    for name in [name for name in sys.modules if name.startswith(module.__name__)]:
        monkeypatch.delitem(sys.modules, name)


def photos(*, count: int = 1) -> torch.Tensor:
    """Floats that are no multiples of 1/255, as a decoder makes them."""
    return 0.2 + 0.6 * torch.rand(count, 120, 160, 3, generator=torch.Generator().manual_seed(0))


def protect(pack: ModuleType, images: torch.Tensor, faces: Any = None, **settings: Any) -> Any:
    pipe = toy_pipeline()
    found = iter(faces if faces is not None else [[face_at(20, 15, 80)]] * len(images))
    pipe.face_detector = lambda photo: next(found)
    words = {"strength": "standard", "seed": 0, "without_a_face": "stop"}
    words |= {"not_protected": "stop", "album": False}
    return pack.NODE_CLASS_MAPPINGS["DeDiMProtectFaces"]().protect(pipe, images, **{**words, **settings})


def test_the_nodes_keep_comfyuis_contract(pack: ModuleType) -> None:
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == NODES
    for node in pack.NODE_CLASS_MAPPINGS.values():
        assert node.CATEGORY == "image/DeDiM"
        assert callable(getattr(node(), node.FUNCTION))
        assert set(node.RETURN_TYPES) <= TYPES
        assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
        assert "does not make anybody anonymous" in node.DESCRIPTION
        inputs = node.INPUT_TYPES()["required"]
        given = list(inspect_names(getattr(node, node.FUNCTION)))
        assert list(inputs) == given  # ComfyUI calls with these names
        for kind, *options in inputs.values():
            if isinstance(kind, list):
                assert all(isinstance(word, str) for word in kind)
            else:
                assert kind in TYPES
            default = options[0].get("default") if options else None
            assert default is None or not isinstance(kind, list) or default in kind
    json.dumps({name: node.INPUT_TYPES() for name, node in pack.NODE_CLASS_MAPPINGS.items()})  # as it is sent


def inspect_names(function: Any) -> tuple[str, ...]:
    return function.__code__.co_varnames[1 : function.__code__.co_argcount]


def test_the_honest_sentence_is_the_pages(pack: ModuleType) -> None:
    from diffusers_dedim.demo.app import INTRO

    sentence = sys.modules[f"{pack.__name__}.nodes"].NOT_ANONYMOUS
    assert sentence in " ".join(INTRO.split())
    assert sentence in " ".join((PACK / "README.md").read_text().split())


def test_a_face_changes_and_the_rest_keeps_its_bits(pack: ModuleType, comfy: ComfyStub) -> None:
    images = photos(count=2)
    out, changed, scores = protect(pack, images)
    assert (out.shape, out.dtype, changed.shape) == (images.shape, images.dtype, images.shape[:3])
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out[changed == 0], images[changed == 0])
    assert (out[changed == 1] != images[changed == 1]).any()
    report = json.loads(scores)
    assert "does not make anybody anonymous" in report["about"]
    assert [row["status"] for row in report["images"]] == ["protected"] * 2
    (face,) = report["images"][0]["faces"]
    assert face["protected"]
    assert face["similarity"] < 1
    values = [value for value, _ in comfy.shown]
    assert values == sorted(values)
    assert comfy.shown[-1][0] == comfy.shown[-1][1]


def test_an_image_gets_the_same_result_alone_and_in_a_batch(pack: ModuleType) -> None:
    images = photos(count=2)
    alone, together = protect(pack, images[:1], seed=5)[0], protect(pack, images, seed=5)[0]
    # another batch size adds in another order: a level, seldom
    assert (alone[0] - together[0]).abs().max() <= 1.5 / 255
    assert not torch.equal(protect(pack, images[:1], seed=6)[0], alone)


def test_an_album_is_of_one_batch(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    stream = DeDiMPipeline.stream

    def watched(pipe: Any, items: Any, **settings: Any) -> Any:
        given.append(settings["album"])
        return stream(pipe, items, **settings)

    monkeypatch.setattr(DeDiMPipeline, "stream", watched)
    for album in (False, True, True):
        protect(pack, photos(), album=album)
    assert given[0] is None
    assert given[1] is not given[2]
    assert [len(album) for album in given[1:]] == [1, 1]


def test_alpha_is_kept(pack: ModuleType) -> None:
    images = torch.cat([photos(), torch.rand(1, 120, 160, 1)], dim=3)
    out, _, _ = protect(pack, images)
    assert torch.equal(out[..., 3], images[..., 3])


def test_an_image_without_a_face_stops_or_passes(pack: ModuleType) -> None:
    images, faces = photos(count=2), [[face_at(20, 15, 80)], []]
    with pytest.raises(
        NoFaceError, match="image 2 of 2: no face was found, so nothing was protected"
    ) as caught:
        protect(pack, images, faces)
    assert "set without_a_face to “pass it on unchanged”" in str(caught.value)
    out, changed, scores = protect(pack, images, faces, without_a_face="pass it on unchanged")
    assert torch.equal(out[1], images[1])
    assert not changed[1].any()
    assert [row["status"] for row in json.loads(scores)["images"]] == [
        "protected",
        "no face found: unchanged",
    ]


def test_a_face_that_still_matches_never_leaves_the_node(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    monkeypatch.setattr(nodes, "STRENGTHS", {"standard": HOPELESS})
    with pytest.raises(NotProtectedError, match=r"image 1 of 1 is NOT protected: 1 of 1 faces still match"):
        protect(pack, photos())
    out, changed, scores = protect(pack, photos(), not_protected="give a black image")
    assert not out.any()
    assert changed.all()
    (row,) = json.loads(scores)["images"]
    assert row["status"].startswith("NOT protected, given as a black image")
    assert not row["faces"][0]["protected"]


def test_what_cannot_be_changed_is_blurred_where_that_is_wanted(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    monkeypatch.setattr(nodes, "STRENGTHS", {"standard": HOPELESS})
    faces = [[face_at(20, 15, 80), face_at(120, 80, 30)]]
    out, changed, scores = protect(pack, photos(), faces, not_protected="blur the face")
    large, small = json.loads(scores)["images"][0]["faces"]
    assert (large["treatment"], small["treatment"]) == ("blurred", "blurred")
    assert large["protected"]
    assert "threshold" in large["reason"]
    assert changed[0, 95, 135]  # the small one, too
    assert out.std() > 0


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(120, 160, 3), r"expected a batch \[B, H, W, 3\] of colour images, got \[120, 160, 3\]"),
        (torch.zeros(1, 120, 160, 1), r"got \[1, 120, 160, 1\]"),
        ("photo.png", "got str"),
        (torch.full((1, 120, 160, 3), 200.0), r"expected values in \[0, 1\], got 200 to 200"),
        (torch.full((1, 120, 160, 3), float("nan")), r"expected values in \[0, 1\], got nan"),
    ],
)
def test_what_is_no_batch_of_images_is_said(pack: ModuleType, images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        protect(pack, images, faces=[])


def test_the_stop_button_stops_in_the_middle_of_a_face(pack: ModuleType, comfy: ComfyStub) -> None:
    comfy.stop_after = 1
    with pytest.raises(Interrupted):
        protect(pack, photos(count=3))
    assert len(comfy.shown) == 1


def test_loading_says_what_a_folder_lacks(pack: ModuleType, tmp_path: Path) -> None:
    node = pack.NODE_CLASS_MAPPINGS["DeDiMLoad"]
    assert node.VALIDATE_INPUTS("") is True
    assert node.VALIDATE_INPUTS("me/dedim") is True  # a Hub id, as far as one can see
    assert node.VALIDATE_INPUTS(str(BUNDLED_WEIGHTS)) is True
    assert "holds no pipeline" in node.VALIDATE_INPUTS(str(tmp_path))
    before = node.IS_CHANGED(str(tmp_path), "auto")
    assert before == node.IS_CHANGED(str(tmp_path), "auto")
    (tmp_path / "unet.safetensors").write_bytes(b"new")
    assert node.IS_CHANGED(str(tmp_path), "auto") != before


def test_a_saved_pipeline_is_loaded_for_the_device(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    pipe = toy_pipeline()

    def load(source: Any, **options: Any) -> Any:
        asked.append((source, options))
        return pipe

    monkeypatch.setattr(sys.modules[f"{pack.__name__}.nodes"].DeDiMPipeline, "from_pretrained", load)
    assert pack.NODE_CLASS_MAPPINGS["DeDiMLoad"]().load("  ", "auto") == (pipe,)
    assert asked[0][0] is None
    assert set(asked[0][1]) == {"dtype"}


def test_it_works_without_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("comfy", "comfy.utils", "comfy.model_management"):
        monkeypatch.setitem(sys.modules, name, None)
    module = load_pack(monkeypatch)
    assert sys.modules[f"{module.__name__}.nodes"].model_management is None


def test_the_workflow_fits_the_nodes(pack: ModuleType) -> None:
    workflow = json.loads((PACK / "example_workflow.json").read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert {node["type"] for node in nodes.values()} >= NODES
    for number, start, out, end, slot, kind in workflow["links"]:
        assert number in nodes[start]["outputs"][out]["links"]
        assert nodes[end]["inputs"][slot]["link"] == number
        assert nodes[start]["outputs"][out]["type"] == kind
    for node in nodes.values():
        made = pack.NODE_CLASS_MAPPINGS.get(node["type"])
        if made is None:
            continue
        assert [out["type"] for out in node["outputs"]] == list(made.RETURN_TYPES)
        values = iter(node["widgets_values"])
        for name, (kind, *options) in made.INPUT_TYPES()["required"].items():
            if not isinstance(kind, list) and kind in ("DEDIM", "IMAGE"):
                assert name in {each["name"] for each in node["inputs"]}
                continue
            value = next(values)
            assert not isinstance(kind, list) or value in kind, name
            if options and options[0].get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
        assert list(values) == []


def test_the_scores_are_those_of_the_result(pack: ModuleType) -> None:
    """A box in photo px, and rounds that were run."""
    _, _, scores = protect(pack, photos())
    (face,) = json.loads(scores)["images"][0]["faces"]
    assert np.allclose(face["box"], face_at(20, 15, 80).box)
    assert face["rounds"] >= 1
