"""`dedim publish` against the server of hub_server.py."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from hub_runs import Dedim
from hub_server import BREAKS, READER, STRANGER, FakeHub
from packaging.requirements import Requirement
from safetensors.torch import load

from diffusers_dedim.hub.kinds import KINDS, Model

ENCODER = {
    ".eval_results/dedim.yaml",
    "LICENSE.md",
    "README.md",
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
}


@pytest.fixture
def encoder(dedim: Dedim, weights: Path, card: Path) -> Dedim:
    """`dedim publish me/encoder --model encoder` of the toy weights, and more words."""
    words = ("publish", "me/encoder", "--model", "encoder", "--weights", weights, "--card", card)
    return lambda *more: dedim(*words, *more)


def test_a_network_is_published_with_both_variants_and_its_card(hub: FakeHub, encoder: Dedim) -> None:
    result = encoder()
    assert result.exit_code == 0, result.output
    assert "me/encoder (model, to be created):" in result.stdout
    assert "6 files to upload, 6.2 MB." in result.stdout
    assert f"Published: {hub.url}/me/encoder" in result.stdout
    repo = hub.repos["model", "me/encoder"]
    assert set(repo.files) == ENCODER | {".gitattributes"}
    assert not repo.private
    whole, half = (load(repo.files[f"diffusion_pytorch_model{infix}.safetensors"]) for infix in ("", ".fp16"))
    assert {str(value.dtype) for value in whole.values()} == {"torch.float32", "torch.int64"}
    assert {str(value.dtype) for value in half.values()} == {"torch.float16", "torch.int64"}
    assert all(
        (half[name] - value).abs().max() < 1e-3 * (1 + value.abs().max()) for name, value in whole.items()
    )
    text = repo.files["README.md"].decode()
    assert 'MobileFaceNet.from_pretrained("me/encoder")' in text
    assert "See the other, [the licence](LICENSE.md) and [a page](https://example.org/a)." in text
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["license_link"] == "LICENSE.md"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 30.5
    assert yaml.safe_load(repo.files[".eval_results/dedim.yaml"]) == [
        {"dataset": {"id": "lfw", "task_id": "psnr"}, "value": 30.5, "notes": "PSNR, dB"}
    ]


@pytest.mark.parametrize("model", [Model.pipeline, Model.unet, Model.landmarks])
def test_the_other_models(hub: FakeHub, dedim: Dedim, weights: Path, card: Path, model: Model) -> None:
    result = dedim("publish", "me/x", "--model", model.value, "--weights", weights, "--card", card)
    assert result.exit_code == 0, result.output
    files = hub.repos["model", "me/x"].files
    assert KINDS[model].class_names[0].encode() in files[KINDS[model].index]
    assert b"_name_or_path" not in b"".join(files[path] for path in files if path.endswith(".json"))
    for folder in set(KINDS[model].folders.values()) - {
        "visibility",
        "discriminator",
    }:  # these weights have none
        inside = {path for path in files if Path(path).parent == Path(folder)}
        assert len([path for path in inside if path.endswith(".safetensors")]) == (folder != "scheduler") * 2
    assert ("pipeline.py" in files) == (model is Model.pipeline)


def test_publishing_again_uploads_only_what_changed(
    hub: FakeHub, encoder: Dedim, card: Path, tmp_path: Path
) -> None:
    encoder()
    hub.log.clear()
    again = encoder()
    assert again.exit_code == 0
    assert f"Up to date: {hub.url}/me/encoder" in again.stdout
    assert "left      .gitattributes (only in the repository)" in again.stdout
    assert {method for method, _ in hub.log} <= {"GET", "HEAD"}
    other_card = tmp_path / "card.md"
    other_card.write_text(card.read_text() + "\nMore.\n")
    changed = encoder("--card", other_card)
    assert "  changed   README.md\n" in changed.stdout
    assert "1 files to upload, 0.0 MB." in changed.stdout
    assert hub.count("PUT", "/lfs/") == 0
    assert hub.count("POST", "/commit/") == 1
    assert b"More." in hub.repos["model", "me/encoder"].files["README.md"]


def test_a_dry_run_creates_nothing_and_needs_no_token(
    hub: FakeHub, encoder: Dedim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = encoder("--dry-run")
    assert result.exit_code == 0, result.output
    assert "  new       config.json\n" in result.stdout
    assert "Dry run: nothing was created or uploaded." in result.stdout
    assert not hub.repos
    assert {method for method, _ in hub.log} == {"GET"}


def test_private_is_private_and_never_guessed(hub: FakeHub, encoder: Dedim) -> None:
    assert encoder("--private").exit_code == 0
    assert hub.repos["model", "me/encoder"].private
    assert encoder("--private").exit_code == 0
    hub.repos["model", "me/encoder"].private = False  # on its settings page, say
    for words in ((), ("--dry-run",)):  # also where nothing would be uploaded
        result = encoder("--private", *words)
        assert result.exit_code == 2
        assert "me/encoder: is there already and is public; --private does not change that." in result.stderr
        assert "Up to date" not in result.stdout
    hub.add("model", "me/encoder", {})
    assert encoder("--private").exit_code == 2


def test_a_tag_names_what_was_published_and_is_never_moved(
    hub: FakeHub, encoder: Dedim, card: Path, tmp_path: Path
) -> None:
    first = encoder("--tag", "v1.0")
    assert first.exit_code == 0, first.output
    assert "Tagged: v1.0\nPublished: " in first.stdout
    repo = hub.repos["model", "me/encoder"]
    assert repo.refs["v1.0"] == repo.refs["main"]
    assert set(repo.commits[repo.refs["v1.0"]]) >= ENCODER, "the results, a commit of their own, are in it"
    assert "Tagged: v1.0-final\nUp to date: " in encoder("--tag", "v1.0-final").stdout
    other_card = tmp_path / "card.md"
    other_card.write_text(card.read_text() + "\nMore.\n")
    hub.log.clear()
    for words in ((), ("--dry-run",)):
        again = encoder("--card", other_card, "--tag", "v1.0", *words)
        assert again.exit_code == 2
        assert (
            "Error: me/encoder: has a tag or branch 'v1.0' already, which is not moved; choose"
            in again.stderr
        )
    assert {method for method, _ in hub.log} <= {"GET", "HEAD"}
    assert encoder("--card", other_card, "--tag", "v1.1").exit_code == 0
    assert repo.refs["v1.0"] != repo.refs["v1.1"] == repo.refs["main"]


@pytest.mark.parametrize("name", ["my tag", "main", "a..b", "-x", "v1.", "a/b", ""])
def test_a_name_that_is_no_tag(hub: FakeHub, encoder: Dedim, name: str) -> None:
    result = encoder(f"--tag={name}")
    assert result.exit_code == 2
    assert "Error: --tag: expected a name of letters, digits, ., _ and -, for instance v1.0" in result.stderr
    assert not hub.log


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "Error: no Hugging Face token was found: make one with write access at"),
        (
            "hf_wrong",
            "Error: me/encoder: the Hub does not accept the token (it may be mistyped, expired or revoked); make",
        ),
        (READER, "Error: me/encoder: the token has no right to write there. It needs the role 'write', or"),
        (
            STRANGER,
            "'me' must be your own name or an organisation that lets you write; make one with write access",
        ),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_tokens_that_do_not_do(
    hub: FakeHub,
    encoder: Dedim,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    message: str,
    exists: bool,
) -> None:
    if exists:
        hub.add("model", "me/encoder", {})
    monkeypatch.setenv("HF_TOKEN", token or "")
    result = encoder()
    assert result.exit_code == 2
    assert message in result.stderr
    assert "`hf auth login`" in result.stderr
    assert result.stderr.count("Error:") == 1
    assert "hf_wrong" not in result.output
    assert not exists or not hub.repos["model", "me/encoder"].files


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_variable_that_cannot_be_right_is_named(
    hub: FakeHub, encoder: Dedim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for token in ("hf_tökén", "hf_a b", "hf_\u2026"):
        monkeypatch.setenv("HF_TOKEN", token)
        result = encoder(*words)
        assert result.exit_code == 2
        assert (
            "Error: HF_TOKEN: holds no Hugging Face token, which has letters, digits, _ and -"
            in result.stderr
        )
        assert token not in result.output
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-token").write_text("hf_tökén", encoding="utf-8")  # as `hf auth login` keeps it
    assert f"Error: {tmp_path / 'no-token'}: holds no Hugging Face token" in encoder(*words).stderr
    for address in ("127.0.0.1:9", "huggingface.co", "https://", "ftp://huggingface.co"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        result = encoder(*words)
        assert result.exit_code == 2
        assert (
            f"HF_ENDPOINT: expected an address like https://huggingface.co, got {address!r}." in result.stderr
        )
    assert not hub.log


def test_a_name_taken_by_another_kind_of_repository(hub: FakeHub, encoder: Dedim) -> None:
    hub.add("space", "me/encoder", {})
    result = encoder()
    assert result.exit_code == 2
    assert "Error: me/encoder: the name is taken by a space repository; choose another name." in result.stderr
    assert list(hub.repos) == [("space", "me/encoder")]


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ({"config.json": b'{"_class_name": "LandmarkRegressor"}'}, "LandmarkRegressor"),
        ({"model_index.json": b'{"_class_name": "DeDiMPipeline"}'}, "DeDiMPipeline"),
        ({"config.json": b'{"model_type": "bert"}'}, "model with another config.json"),
    ],
)
def test_another_model_is_not_overwritten(
    hub: FakeHub, encoder: Dedim, index: dict[str, bytes], found: str
) -> None:
    repo = hub.add("model", "me/encoder", index)
    result = encoder()
    assert result.exit_code == 2
    assert (
        f"me/encoder: holds a {found} already, where EncoderEnsemble or MobileFaceNet is to go; choose another"
        in result.stderr
    )
    assert repo.files == index


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            ("adapter_config.json", "adapter_model.safetensors"),
            "adapter_config.json, adapter_model.safetensors",
        ),
        (("model.Q4_K_M.gguf",), "model.Q4_K_M.gguf"),
        (("diffusion_pytorch_model.safetensors",), "diffusion_pytorch_model.safetensors"),
        (("a/LICENSE", "b.bin", "c.bin", "d.bin"), "a/LICENSE, b.bin, c.bin, ..."),
    ],
)
def test_files_that_name_no_class_are_not_overwritten(
    hub: FakeHub, encoder: Dedim, files: tuple[str, ...], told: str
) -> None:
    """A LoRA, a GGUF, bare weights: they would lose their card, their licence or weights of the same name."""
    repo = hub.add("model", "me/encoder", {**dict.fromkeys(files, b"mine"), "README.md": b"My model."})
    for words in ((), ("--dry-run",)):
        result = encoder(*words)
        assert result.exit_code == 2
        assert f"me/encoder: holds other files already ({told}) and no config.json of Enc" in result.stderr
    assert repo.files["README.md"] == b"My model."


def test_a_repository_without_a_model_yet_is_free(hub: FakeHub, encoder: Dedim) -> None:
    hub.add(
        "model", "me/encoder", dict.fromkeys((".gitattributes", "README.md", "LICENSE", "LICENSE.txt"), b"")
    )
    assert encoder().exit_code == 0
    assert set(hub.repos["model", "me/encoder"].files) >= ENCODER


def test_a_network_that_goes_away_in_the_middle_is_gone_on_with(hub: FakeHub, encoder: Dedim) -> None:
    hub.break_after, hub.break_uploads = 1, BREAKS
    broken = encoder()
    assert broken.exit_code == 2
    assert f"Error: me/encoder: the connection to {hub.url} failed (" in broken.stderr
    assert "What has arrived is kept; run the same command again to go on." in broken.stderr
    assert set(hub.repos["model", "me/encoder"].files) == {".gitattributes"}, "a commit is whole or not there"
    assert len(hub.lfs) == 1
    hub.break_uploads = 0
    hub.log.clear()
    assert encoder().exit_code == 0
    assert hub.count("PUT", "/lfs/") == 1, "the large file that had arrived is not sent again"
    assert set(hub.repos["model", "me/encoder"].files) >= ENCODER


def test_a_network_that_goes_away_before_the_commit(hub: FakeHub, encoder: Dedim) -> None:
    hub.break_commits = 1
    broken = encoder()
    assert broken.exit_code == 2
    assert "run the same command again to go on" in broken.stderr
    hub.log.clear()
    assert encoder().exit_code == 0
    assert hub.count("PUT", "/lfs/") == 0


def test_no_hub_at_all(hub: FakeHub, encoder: Dedim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = encoder()
    assert result.exit_code == 2
    assert "me/encoder: the connection to http://127.0.0.1:9 failed (" in result.stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "me/encoder: HF_HUB_OFFLINE is set, so nothing can be published; unset it." in encoder().stderr


def test_results_that_the_hub_refuses_stop_nothing(hub: FakeHub, encoder: Dedim) -> None:
    hub.refuse_results = True
    result = encoder()
    assert result.exit_code == 0, result.output
    assert "Note: the Hub did not take .eval_results/dedim.yaml (lfw is not a benchmark)" in result.stdout
    assert "the same results are in the card." in result.stdout
    assert set(hub.repos["model", "me/encoder"].files) >= ENCODER - {".eval_results/dedim.yaml"}


@pytest.fixture
def space(tmp_path: Path) -> Path:
    folder = tmp_path / "space"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "app.pyc").write_bytes(b"")
    (folder / "app.py").write_text("import gradio\n")
    (folder / "requirements.txt").write_text("gradio>=6\n")
    (folder / "README.md").write_text("---\ntitle: DeDiM\nsdk: gradio\n---\n\nText.\n")
    return folder


def test_a_space_is_published(hub: FakeHub, dedim: Dedim, space: Path) -> None:
    words = ("publish-space", "me/demo", "--folder", space)
    result = dedim(*words, "--private")
    assert result.exit_code == 0, result.output
    assert f"Published: {hub.url}/spaces/me/demo" in result.stdout
    repo = hub.repos["space", "me/demo"]
    assert (repo.sdk, repo.private) == ("gradio", True)
    assert set(repo.files) == {".gitattributes", "README.md", "app.py", "requirements.txt"}
    (space / "app.py").write_text("import gradio as gr\n")
    again = dedim(*words)
    assert "1 files to upload" in again.stdout
    assert repo.files["app.py"] == b"import gradio as gr\n"


def test_a_space_that_lacks_something(hub: FakeHub, dedim: Dedim, space: Path) -> None:
    (space / "README.md").write_text("---\ntitle: DeDiM\n---\n")
    result = dedim("publish-space", "me/demo", "--folder", space)
    assert "expected a line like `sdk: gradio` between its --- lines." in result.stderr
    (space / "app.py").unlink()
    result = dedim("publish-space", "me/demo", "--folder", space)
    assert "a Space needs app.py, which is not there; give --folder." in result.stderr
    assert not hub.log


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\ntitle: My album\nsdk: gradio\n---\n", "the Space 'My album'"),
        ("---\nsdk: gradio\n---\n", "a Space without a title"),
        ("no front matter", "a Space without a title"),
        ("---\n{: [\n---\n", "a Space without a title"),
        (None, "a Space without a title"),
    ],
)
def test_another_space_is_not_overwritten(
    hub: FakeHub, dedim: Dedim, space: Path, readme: str | None, found: str
) -> None:
    files = {"app.py": b"print('mine')\n", **({} if readme is None else {"README.md": readme.encode()})}
    repo = hub.add("space", "me/demo", files)
    for words in ((), ("--dry-run",)):
        result = dedim("publish-space", "me/demo", "--folder", space, *words)
        assert result.exit_code == 2
        assert (
            f"Error: me/demo: holds {found} already, and this is 'DeDiM'; choose another name,"
            in result.stderr
        )
        assert "give both README.md files the same title." in result.stderr
    assert repo.files == files


def test_a_space_that_holds_no_app_yet_or_has_our_title_is_ours(
    hub: FakeHub, dedim: Dedim, space: Path
) -> None:
    fresh = {
        "README.md": b"---\ntitle: Demo\nsdk: gradio\n---\n",
        ".gitattributes": b"",
    }  # as the website makes it
    hub.add("space", "me/fresh", fresh)
    assert dedim("publish-space", "me/fresh", "--folder", space).exit_code == 0
    older = {"README.md": b"---\ntitle: DeDiM\nsdk: gradio\n---\nOlder.\n", "app.py": b"older\n"}
    hub.add("space", "me/older", older)
    assert dedim("publish-space", "me/older", "--folder", space).exit_code == 0
    for name in ("me/fresh", "me/older"):
        assert hub.repos["space", name].files["app.py"] == b"import gradio\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "diffusers_dedim-0.1.0+local-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("diffusers_dedim/__init__.py", "")
    return path


def test_a_space_with_a_wheel_of_its_own(hub: FakeHub, dedim: Dedim, wheel: Path) -> None:
    plain = dedim("publish-space", "me/demo")
    assert plain.exit_code == 0, plain.output
    assert "Note: the Space will install diffusers-dedim from PyPI, and cannot be built where" in plain.stdout
    result = dedim("publish-space", "me/demo", "--wheel", wheel)
    assert result.exit_code == 0, result.output
    assert "PyPI" not in result.stdout
    files = hub.repos["space", "me/demo"].files
    assert files[wheel.name] == wheel.read_bytes()
    lines = files["requirements.txt"].decode().splitlines()
    name = "diffusers_dedim-0.1.0%2Blocal-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    line = f"diffusers-dedim[demo] @ {hub.url}/spaces/me/demo/resolve/main/{name}#sha256={digest}"
    assert line in lines
    assert Requirement(line).extras == {"demo"}
    assert "diffusers-dedim[demo]" not in lines
    assert "dlib-bin>=19.24" in lines  # the others are as they were
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("diffusers_dedim/new.py", "")
    again = dedim("publish-space", "me/demo", "--wheel", wheel)
    assert "  changed   requirements.txt\n" in again.stdout, "the Space would keep the old wheel's layer"


def test_wheels_that_do_not_do(hub: FakeHub, dedim: Dedim, space: Path, wheel: Path, tmp_path: Path) -> None:
    other, empty = (
        tmp_path / "other-1.0-py3-none-any.whl",
        tmp_path / "diffusers_dedim-0.1.0-py3-none-any.whl",
    )
    shutil.copyfile(wheel, other)
    empty.write_bytes(b"")
    for path in (other, empty, tmp_path / "none" / wheel.name):
        assert (
            "Error: --wheel: expected a file like" in dedim("publish-space", "me/x", "--wheel", path).stderr
        )
    words = ("publish-space", "me/x", "--wheel", wheel)
    assert "has no line with diffusers-dedim that --wheel" in dedim(*words, "--folder", space).stderr
    assert "a private one does not show it" in dedim(*words, "--private").stderr
    assert not hub.log


@pytest.mark.parametrize("name", ["encoder", "me/a/b", "me/a..b", ""])
def test_a_name_that_is_no_repository(hub: FakeHub, dedim: Dedim, name: str) -> None:
    result = dedim("publish", name, "--model", "encoder")
    assert result.exit_code == 2
    assert "Error: REPO_ID: " in result.stderr
    assert not hub.log


def test_damaged_weights_are_not_published(
    hub: FakeHub, dedim: Dedim, weights: Path, card: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    words = ("publish", "me/x", "--model", "encoder", "--weights", folder)
    assert "--card: weights of your own need a card of their own" in dedim(*words).stderr
    (folder / "face_encoder" / "config.json").write_text('{"embedding_dim": 64}')
    assert "the encoder does not load and was not published:" in dedim(*words, "--card", card).stderr
    (folder / "face_encoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"?")
    assert "cannot be read as safetensors" in dedim(*words, "--card", card).stderr
    shutil.rmtree(folder / "face_encoder")
    assert (
        "expected a folder with config.json, as save_pretrained writes it"
        in dedim(*words, "--card", card).stderr
    )
    card_without = tmp_path / "card.md"
    card_without.write_text("---\nlicense: other\n---\n# Card\n")
    result = dedim(*words, "--card", card_without)
    assert "its metadata lack library_name, pipeline_tag; add them between the --- lines." in result.stderr
    assert not hub.log
