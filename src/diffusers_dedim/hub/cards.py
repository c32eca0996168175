"""The card of what is published: a repository's README.md, and the results in the Hub's two forms.

The results of a card stand once, in the ``model-index`` of its metadata. Sources, in
https://github.com/huggingface/hub-docs: ``modelcard.md`` (model-index), ``docs/hub/eval-results.md`` (the newer form).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # the stubs are not worth a dependency
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, SpaceCard, eval_result_entries_to_yaml

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.kinds import KINDS, Model

EVAL_RESULTS = ".eval_results"  # folder that the Hub reads results from

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"!\[[^\]]*\]\((images/[\w.-]+)\)")
_SHARED_CARD = "README.md"
_SHARED_SECTIONS = ("Parameters", "Training data")
_LICENCE_FILE = "LICENSE.md"


def package_folder(name: str) -> Path:
    """Find ``model_cards`` or ``spaces``: inside an installed package, or at the top of a checkout.

    Raises:
        DeDiMError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise DeDiMError(
        f"{name}: not in the installed package and not beside its source; install diffusers-dedim from a wheel "
        "or a whole checkout, or give --folder (Space) or --card (model)."
    )


def card_path(model: Model, own_card: Path | None) -> Path:
    """The user's own card, or the one in ``model_cards/``."""
    return own_card or package_folder("model_cards") / f"{model.value}.md"


def copy_pictures(card: Path, folder: Path) -> None:
    """Copy the pictures that the card shows out of ``images/`` beside it.

    Raises:
        DeDiMError: one is not there.
    """
    for name in sorted(set(_PICTURE.findall(card.read_text(encoding="utf-8")))):
        if not (card.parent / name).is_file():
            raise DeDiMError(f"card {card}: shows {name}, which is not beside it.")
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(card.parent / name, folder / name)


def read_card(model: Model, own_card: Path | None) -> ModelCard:
    """Read and check the card: the user's own, or the one in ``model_cards/``.

    Raises:
        DeDiMError: the file is missing, or its metadata lack what the Hub needs.
    """
    path = card_path(model, own_card)
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DeDiMError(f"card {path}: cannot be read: {error}") from error
    missing = [name for name in ("library_name", "pipeline_tag", "license") if not card.data.get(name)]
    if missing:
        raise DeDiMError(
            f"card {path}: its metadata lack {', '.join(missing)}; add them between the --- lines."
        )
    return card


def render_card(card: ModelCard, model: Model, repo_id: str, *, shared: bool, class_name: str = "") -> str:
    """Return README.md: links that lead out of the repository become text, the usage names the repository.

    Args:
        class_name: of the network; the first of its kind by default.
        shared: append the sections that all cards of ``model_cards/`` share.
    """
    if str(card.data.get("license_link") or "").endswith(_LICENCE_FILE):
        card.data["license_link"] = _LICENCE_FILE
    body = card.text.strip()
    first = KINDS[model].class_names[0]
    usage = KINDS[model].usage.replace(first, class_name or first)
    body += f"\n\n## Load it from the Hub\n\n```python\n{usage}\n```\n"
    if shared:
        body += "\n" + _shared_sections()
    card.text = "\n" + _LINK.sub(_inside_link, body.replace("REPO_ID", repo_id))
    return str(card)


def eval_results_yaml(card: ModelCard) -> str | None:
    """Return the results of the card's ``model-index`` as the text of a file in ``.eval_results/``.

    One entry for each metric; None if the card has no results. The Hub shows an entry only where its data set is
    registered there as a benchmark and has that task (docs/hub.md).
    """
    results: list[EvalResult] = card.data.get("eval_results") or []
    if not results:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=result.dataset_type,
            task_id=result.metric_type,
            value=result.metric_value,
            notes=result.metric_name,
        )
        for result in results
    ]
    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, width=110)
    return text


def space_sdk(folder: Path) -> str:
    """Return the ``sdk`` that a Space's README.md names.

    Raises:
        DeDiMError: the front matter is missing, is no YAML, or names none.
    """
    path = folder / "README.md"
    try:
        sdk = SpaceCard(path.read_text(encoding="utf-8")).data.get("sdk")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DeDiMError(f"{path.name} of the Space: cannot be read: {error}") from error
    if not sdk:
        raise DeDiMError(
            f"{path.name} of the Space: expected a line like `sdk: gradio` between its --- lines."
        )
    return str(sdk)


def space_title(text: str) -> str | None:
    r"""Return the title in the front matter of a Space's README.md; None if it has none or cannot be read.

    Example:
        >>> space_title("---\ntitle: Demo\nsdk: gradio\n---\nText.")
        'Demo'
    """
    try:
        title = SpaceCard(text).data.get("title")
    except (ValueError, yaml.YAMLError):
        return None
    return str(title) if title else None


def _shared_sections() -> str:
    """The parameters and training data in the README of ``model_cards/``, under the names the cards link to."""
    text = (package_folder("model_cards") / _SHARED_CARD).read_text(encoding="utf-8")
    sections = re.split(r"(?m)^(?=## )", text)
    return "".join(part for part in sections if part[3:].partition("\n")[0] in _SHARED_SECTIONS)


def _inside_link(match: re.Match[str]) -> str:
    label, target = match.groups()
    if target.startswith(("http://", "https://", "#", "images/")):
        return match.group()
    if target.endswith(_LICENCE_FILE):
        return f"[{label}]({_LICENCE_FILE})"
    if target == _SHARED_CARD:
        return "[below](#training-data-of-all-three)" if label == _SHARED_CARD else f"{label} below"
    return label
