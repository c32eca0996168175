"""The notebooks run from top to bottom on the bundled weights, and are kept without what they show."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((EXAMPLES / name).read_text("utf-8"))["cells"]
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_kept(name: str) -> None:
    """Pictures of faces have no place in the repository, and numbers would grow old."""
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name: str) -> None:
    for cell in cells(name):
        for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
            assert (EXAMPLES / target).is_file(), target


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this machine's own settings for notebooks counts, and the kernel is this Python."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    folder = tmp_path / "jupyter_data_dir" / "kernels" / "python3"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": command, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(specification))
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    return workplace


def run(name: str, workplace: Path) -> list[str]:
    """What each code cell printed."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(book)
    resources = {"metadata": {"path": str(workplace)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    return [
        "".join(output.get("text", "") for output in cell["outputs"])
        for cell in book.cells
        if cell["cell_type"] == "code"
    ]


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_protect_a_photo(kernel: Path) -> None:
    printed = run("protect_a_photo.ipynb", kernel)
    assert "protected as asked: True" in printed[1]
    assert "NoFaceError: " in printed[-1]
    assert (kernel / "protected.jpg").is_file()


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_recogniser_and_callback(kernel: Path) -> None:
    printed = run("recogniser_and_callback.ipynb", kernel)
    steps, rounds = re.findall(r"(\d+) steps in (\d+) rounds", printed[3])[0]
    assert int(steps) % int(rounds) == 0
    assert "protected as asked" in printed[4]


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_measure_it(kernel: Path) -> None:
    printed = run("measure_it.ipynb", kernel)
    assert re.search(r"ours: -?0\.\d\d, not matched\ndlib: ", printed[1])
    assert re.search(r"PSNR [23]\d\.\d dB, SSIM 0\.\d\d", printed[2])
    assert [line.split()[0] for line in printed[3].splitlines()] == [
        "jpeg-95",
        "jpeg-75",
        "jpeg-50",
        "webp-80",
        "resize-half",
        "gaussian-blur",
    ]
