"""Load, in fresh processes, what `dedim publish` uploaded to the server of hub_server.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hub_runs import SECRETS, Dedim, run_fresh
from hub_server import STRANGER, WRITER, FakeHub
from numpy.typing import NDArray
from safetensors.torch import load, save

from diffusers_dedim import DeDiMPipeline, EncoderEnsemble, MobileFaceNet

COMMON = """
import sys, numpy as np, torch
def total(module):
    return float(sum(value.double().abs().sum() for value in module.state_dict().values()))
def protect(pipe, crop):
    from diffusers_dedim import DeDiMPreset
    pipe.set_progress_bar_config(disable=True)
    preset = DeDiMPreset(20, 2, "log_probability", 100.0, 1, 0.999)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipe(np.load(crop), preset=preset, aligned=True, generator=generator).images[0])
half, whole = torch.float16, torch.float32
"""

# By name: the newest commit, an older one, the float16 files, types, devices, parts of one's own; then as plain DDPM.
BY_NAME = (
    COMMON
    + """
from diffusers import DDPMPipeline
from diffusers_dedim import DeDiMPipeline, MobileFaceNet
repo, old, bundle, crop = sys.argv[1:]
local = DeDiMPipeline.from_pretrained(bundle, dtype=whole)
pipe = DeDiMPipeline.from_pretrained(repo, dtype=whole)
assert (total(pipe.unet), total(pipe.face_encoder)) == (total(local.unet), total(local.face_encoder))
# another process of the same machine, one thread: the sums keep their order
assert (protect(pipe, crop) == protect(local, crop)).all()
assert (protect(pipe, crop) != np.load(crop)).any()
assert MobileFaceNet.from_pretrained(repo, subfolder="face_encoder").dtype == whole

older = DeDiMPipeline.from_pretrained(repo, revision=old, dtype=whole)
for name in ("unet", "face_encoder", "landmarker"):
    assert total(getattr(older, name)) == 0 != total(getattr(pipe, name)), name

variant = DeDiMPipeline.from_pretrained(repo, variant="fp16", dtype=half)
assert variant.unet.dtype == half and variant.face_encoder.dtype == variant.landmarker.dtype == whole
rounded = [parameter.to(half).float() for parameter in pipe.face_encoder.parameters()]
assert all((a == b).all() for a, b in zip(rounded, variant.face_encoder.parameters(), strict=True))
assert DeDiMPipeline.from_pretrained(repo, dtype=torch.bfloat16).unet.dtype == torch.bfloat16

placed = DeDiMPipeline.from_pretrained(repo, device_map="cpu", dtype=whole)
assert {getattr(placed, name).device.type for name in ("unet", "face_encoder", "landmarker")} == {"cpu"}
assert (protect(placed, crop) == protect(local, crop)).all()
assert DeDiMPipeline.from_pretrained(repo, device_map="balanced").device.type == "cpu"
other = torch.nn.Flatten()
assert DeDiMPipeline.from_pretrained(repo, face_encoder=other).face_encoder.module is other

plain = DDPMPipeline.from_pretrained(repo)
plain.set_progress_bar_config(disable=True)
assert type(plain) is DDPMPipeline and plain(num_inference_steps=1).images[0].size == (112, 112)
"""
)

# As remote code: this process has not imported the package, and the networks come from the repository all the same.
REMOTE_CODE = (
    COMMON
    + """
from diffusers import DDPMPipeline, DiffusionPipeline
repo, old, bundle, crop = sys.argv[1:]
DDPMPipeline.from_pretrained(repo)
try:
    DiffusionPipeline.from_pretrained(repo, custom_pipeline="pipeline")
except ValueError as error:
    assert "Pass `trust_remote_code=True`" in str(error)
else:
    raise SystemExit("ran code that it was not allowed to run")
assert "diffusers_dedim" not in sys.modules
remote = dict(custom_pipeline="pipeline", trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained(repo, **remote)
from diffusers_dedim import DeDiMPipeline
assert type(pipe) is DeDiMPipeline
local = DeDiMPipeline.from_pretrained(bundle, dtype=whole)
for name in ("unet", "face_encoder", "landmarker"):
    assert total(getattr(pipe, name)) == total(getattr(local, name)), name
assert (protect(pipe, crop) == protect(local, crop)).all()
older = DiffusionPipeline.from_pretrained(repo, revision=old, **remote)
assert total(older.face_encoder) == total(older.unet) == 0
variant = DiffusionPipeline.from_pretrained(repo, variant="fp16", dtype=half, **remote)
assert variant.unet.dtype == half and variant.face_encoder.dtype == variant.landmarker.dtype == whole
by_repo = DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)
assert total(by_repo.face_encoder) == total(pipe.face_encoder)
folder = DiffusionPipeline.from_pretrained(bundle, **remote)
assert total(folder.face_encoder) == total(pipe.face_encoder)
"""
)

FROM_CACHE = (
    COMMON
    + """
import huggingface_hub.utils._http as http
http.time.sleep = lambda seconds: None  # it tries a Hub that does not answer six times
from diffusers_dedim import DeDiMPipeline
repo, old, crop = sys.argv[1:]
for options in ({}, {"local_files_only": True}):
    pipe = DeDiMPipeline.from_pretrained(repo, dtype=whole, **options)
    assert (protect(pipe, crop) != np.load(crop)).any()
    assert total(DeDiMPipeline.from_pretrained(repo, revision=old, **options).unet) == 0
    assert DeDiMPipeline.from_pretrained(repo, variant="fp16", **options).face_encoder.dtype == whole
"""
)


def zeroed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same repository with every weight 0."""
    return {
        path: save({key: value * 0 for key, value in load(data).items()}, metadata={"format": "pt"})
        if path.endswith(".safetensors")
        else data
        for path, data in files.items()
    }


def test_everything_loads_in_fresh_processes_and_from_the_cache(
    hub: FakeHub, dedim: Dedim, weights: Path, card: Path, tmp_path: Path, crop: NDArray[np.uint8]
) -> None:
    words = ("publish", "me/toy", "--model", "pipeline", "--weights", weights, "--card", card)
    assert dedim(*words).exit_code == 0
    repo = hub.repos["model", "me/toy"]
    old = repo.commit(zeroed(repo.files))
    assert dedim(*words).exit_code == 0  # uploads the weights again: the repository has others
    assert repo.refs["main"] != old
    np.save(tmp_path / "crop.npy", crop)
    where = (str(weights), str(tmp_path / "crop.npy"))
    home = tmp_path / "home"
    home.mkdir()
    run_fresh(BY_NAME, hub.url, home, "me/toy", old, *where)
    run_fresh(REMOTE_CODE, hub.url, home, "me/toy", old, *where)
    hub.log.clear()
    run_fresh(FROM_CACHE, hub.url, home, "me/toy", old, where[1], HF_HUB_OFFLINE="1")
    assert hub.count("GET", "me/toy") == hub.count("HEAD", "me/toy") == 0
    run_fresh(FROM_CACHE, "http://127.0.0.1:9", home, "me/toy", old, where[1])


# Two recognisers as one: by name, in float16, as remote code, and the denoiser alone.
TWO_GUIDES = (
    COMMON
    + """
from diffusers import DDPMPipeline, DiffusionPipeline
repo, bundle = sys.argv[1:]
DDPMPipeline.from_pretrained(repo)
remote = DiffusionPipeline.from_pretrained(repo, custom_pipeline="pipeline", trust_remote_code=True)
from diffusers_dedim import DeDiMPipeline, EncoderEnsemble
local = DeDiMPipeline.from_pretrained(bundle)
for pipe in (remote, DeDiMPipeline.from_pretrained(repo)):
    assert type(pipe.face_encoder) is EncoderEnsemble
    assert [encoder.config.embedding_dim for encoder in pipe.face_encoder.encoders] == [16, 32]
    assert total(pipe.face_encoder) == total(local.face_encoder)
assert DeDiMPipeline.from_pretrained(repo, variant="fp16").face_encoder.dtype == whole
"""
)


def test_an_ensemble_loads_from_the_hub(
    hub: FakeHub, dedim: Dedim, weights: Path, card: Path, tmp_path: Path
) -> None:
    both = EncoderEnsemble([MobileFaceNet(16), MobileFaceNet(32, stem_pointwise=True)])
    DeDiMPipeline.from_pretrained(weights, face_encoder=both).save_pretrained(tmp_path / "two")
    words = ("publish", "me/two", "--model", "pipeline", "--weights", tmp_path / "two", "--card", card)
    result = dedim(*words)
    assert result.exit_code == 0, result.output
    (tmp_path / "home").mkdir()
    run_fresh(TWO_GUIDES, hub.url, tmp_path / "home", "me/two", str(tmp_path / "two"))


@pytest.mark.parametrize(
    ("options", "token", "text"),
    [
        ({"revision": "v9"}, WRITER, "v9 is not a valid git identifier"),
        (
            {},
            None,
            "me/toy is not a local folder and is not a valid model identifier",
        ),  # 401: private, no token
        ({}, STRANGER, "me/toy is not a local folder and is not a valid model identifier"),  # 404: not theirs
        ({"variant": "bf16"}, WRITER, "does not appear to have a file named"),
    ],
)
def test_what_cannot_be_loaded_is_told(
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict[str, str],
    token: str | None,
    text: str,
) -> None:
    """In diffusers' own words: the unknown revision, the unknown or hidden repository, the missing variant."""
    files = {"model_index.json": b"{}", "face_encoder/config.json": b"{}"}
    hub.add("model", "me/toy", files, private=True)
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(OSError, match=text) as caught:
        DeDiMPipeline.from_pretrained("me/toy", cache_dir=tmp_path, **options)
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


# diffusers' own way up and down again, and the blocks as a custom block, whose networks come from the other repository.
PUSHED = (
    COMMON
    + """
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.blocks import DeDiMBlocks
folder, token = sys.argv[1:]
pipe = DeDiMPipeline.from_pretrained(folder, dtype=whole)
pipe.push_to_hub("me/pushed", token=token)
pushed = DeDiMPipeline.from_pretrained("me/pushed", dtype=whole)
for name in ("unet", "face_encoder", "landmarker"):
    assert total(getattr(pushed, name)) == total(getattr(pipe, name)), name

DeDiMBlocks().push_to_hub("me/blocks", token=token)
try:
    ModularPipelineBlocks.from_pretrained("me/blocks", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("ran code that it was not allowed to run")
blocks = ModularPipelineBlocks.from_pretrained("me/blocks", trust_remote_code=True)
assert type(blocks) is DeDiMBlocks
modular = blocks.init_pipeline("me/pushed")
modular.load_components()
for name in ("unet", "face_encoder", "landmarker"):
    assert total(getattr(modular, name)) == total(getattr(pipe, name)), name
"""
)


def test_push_to_hub_gives_repositories_that_load(hub: FakeHub, weights: Path, tmp_path: Path) -> None:
    run_fresh(PUSHED, hub.url, tmp_path, str(weights), WRITER)
    files = {name: set(hub.repos["model", name].files) for name in ("me/pushed", "me/blocks")}
    assert {"model_index.json", "pipeline.py", "README.md"} <= files["me/pushed"]
    assert {"modular_config.json", "blocks.py"} <= files["me/blocks"]
