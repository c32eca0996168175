"""Cards and staged folders; no server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.cards import (
    card_path,
    copy_pictures,
    eval_results_yaml,
    package_folder,
    read_card,
    render_card,
)
from diffusers_dedim.hub.kinds import Model
from diffusers_dedim.hub.staging import stage_model


@pytest.mark.parametrize("model", list(Model))
def test_the_cards_are_fit_for_the_hub(model: Model) -> None:
    card = read_card(model, None)
    text = render_card(card, model, "me/x", shared=True)
    again = ModelCard(text)
    assert again.data.library_name == "diffusers"
    assert (again.data.license, again.data.license_link) == ("other", "LICENSE.md")
    assert (again.data.pipeline_tag == "image-to-image") == (model is Model.pipeline)
    links = set(re.findall(r"\]\(([^)]+)\)", again.text))
    assert {link for link in links if not link.startswith(("https://", "images/"))} <= {
        "LICENSE.md",
        "#training-data-of-all-three",
    }
    assert "## Training data" in again.text
    assert "## Rules" not in again.text
    assert '"me/x"' in again.text
    assert "REPO_ID" not in text
    results = yaml.safe_load(eval_results_yaml(card) or "")
    assert [entry["value"] for entry in results] == [
        result.metric_value for result in again.data["eval_results"]
    ]
    tasks = [(entry["dataset"]["id"], entry["dataset"]["task_id"]) for entry in results]
    assert len(set(tasks)) == len(tasks) > 0
    for entry in results:  # a number in the metadata must be one of the card's own text
        value = f"{entry['value']:g}"
        assert value in again.text or f"{entry['value']:.2f}" in again.text, entry


def test_a_card_without_results(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_text("---\nlibrary_name: diffusers\npipeline_tag: image-to-image\nlicense: mit\n---\n# Card\n")
    assert eval_results_yaml(read_card(Model.unet, path)) is None


def test_pictures_of_a_card_go_with_it(tmp_path: Path) -> None:
    card, folder = tmp_path / "card.md", tmp_path / "out"
    card.write_text("![a curve](images/a.png) ![](https://x.org/b.png) [text](images/c.png)")
    folder.mkdir()
    with pytest.raises(DeDiMError, match=r"shows images/a\.png, which is not beside it"):
        copy_pictures(card, folder)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"picture")
    copy_pictures(card, folder)
    assert [path.read_bytes() for path in folder.rglob("*.png")] == [b"picture"]
    for model in Model:
        copy_pictures(card_path(model, None), folder)  # those of our cards are there


def test_a_missing_card_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DeDiMError, match=r"card .*none\.md: cannot be read"):
        read_card(Model.unet, tmp_path / "none.md")
    with pytest.raises(DeDiMError, match="nowhere: not in the installed package and not beside its source"):
        package_folder("nowhere")


def test_staging_twice_gives_the_same_bytes(weights: Path, card: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        stage_model(Model.pipeline, "me/x", folder, weights=weights, card=card)
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert first == second
    assert len(first) == 17


def test_a_weight_too_large_for_float16_is_refused(weights: Path, card: Path, tmp_path: Path) -> None:
    source = tmp_path / "weights" / "face_encoder"
    source.mkdir(parents=True)
    name = "diffusion_pytorch_model.safetensors"
    (source / "config.json").write_bytes((weights / "face_encoder" / "config.json").read_bytes())
    tensors = load_file(weights / "face_encoder" / name)
    key = next(key for key, value in tensors.items() if value.dtype == torch.float32)
    tensors[key].flatten()[0] = 1e6
    save_file(tensors, source / name)
    (tmp_path / "out").mkdir()
    with pytest.raises(DeDiMError, match=r"a weight is not finite in torch\.float16"):
        stage_model(Model.encoder, "me/x", tmp_path / "out", weights=source.parent, card=card)
