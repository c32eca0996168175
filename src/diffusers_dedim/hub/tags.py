"""Tags: names of commits, which ``revision=`` of ``from_pretrained`` takes."""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.failures import hub_errors
from diffusers_dedim.hub.remote import Target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<![.])")


def check_tag(tag: str) -> None:
    """Raise `DeDiMError` unless ``tag`` can name a commit beside the branch "main".

    Example:
        >>> check_tag("v1.0")
        >>> check_tag("my tag")
        Traceback (most recent call last):
        diffusers_dedim.errors.DeDiMError: --tag: expected a name of letters, digits, ., _ and -, ... got 'my tag'.
    """
    if not _NAME.fullmatch(tag) or ".." in tag or tag == "main":
        raise DeDiMError(
            f"--tag: expected a name of letters, digits, ., _ and -, for instance v1.0, other than main; got {tag!r}."
        )


def refuse_taken_tag(target: Target, tag: str) -> None:
    """Say before anything is sent that a tag cannot be set: it is not moved, as others may load by it.

    Raises:
        DeDiMError: the repository has a tag or branch of that name. PublishError: the Hub refused or was not reached.
    """
    with hub_errors(target.repo_id):
        refs = HfApi().list_repo_refs(target.repo_id, repo_type=target.repo_type)
    if tag in {ref.name for ref in (*refs.branches, *refs.tags)}:
        raise DeDiMError(
            f"{target.repo_id}: has a tag or branch {tag!r} already, which is not moved; choose another name, or leave "
            "--tag out."
        )


def add_tag(target: Target, tag: str) -> None:
    """Give the newest commit the tag.

    Raises:
        PublishError: the Hub refused or was not reached.
    """
    with hub_errors(target.repo_id):
        HfApi().create_tag(target.repo_id, tag=tag, repo_type=target.repo_type)
