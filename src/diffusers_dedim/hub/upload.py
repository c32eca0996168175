"""Compare a folder with a repository on the Hub and upload what differs, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not in __all__

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.cards import EVAL_RESULTS, space_title
from diffusers_dedim.hub.kinds import ModelKind

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<![.])")
_INDEX_FILES = ("model_index.json", "config.json")
# as the website makes a new repository
_ANYBODYS_FILES = re.compile(r"\.gitattributes|README\.md|LICENSE[^/]*")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # as huggingface_hub reads them, before its file
_GET_TOKEN = "make one with write access at https://huggingface.co/settings/tokens and set HF_TOKEN, or `hf auth login`"
_OTHER_NAME = "choose another name, or delete that repository first"
_GO_ON = "What has arrived is kept; run the same command again to go on."
_ANSWERS = {
    401: f"the Hub does not accept the token (it may be mistyped, expired or revoked); {_GET_TOKEN}.",
    403: "the token has no right to write there. It needs the role 'write', or a fine-grained permission for this "
    f"repository, and {{owner!r}} must be your own name or an organisation that lets you write; {_GET_TOKEN}.",
    404: "the Hub knows no such repository, or does not show it to this token; check the name and the token.",
    409: f"somebody else changed the repository at the same time. {_GO_ON}",
    429: f"too many requests for now; wait some minutes. {_GO_ON}",
}
# huggingface_hub 1 speaks through httpx, 2 through httpx2: neither is a dependency of ours.
_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2")


class PublishError(DeDiMError):
    """The Hub refused, or could not be reached; what was uploaded until then is kept there."""


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Attributes:
        repo_id: "user/name".
        kind: the model that the repository holds; None for a Space.
        private: make a new repository private.
        space_sdk: the SDK of a Space, for instance "gradio".
    """

    repo_id: str
    kind: ModelKind | None = None
    private: bool = False
    space_sdk: str | None = None

    @property
    def repo_type(self) -> str:
        """The Hub's word for it."""
        return "model" if self.kind else "space"

    @property
    def address(self) -> dict[str, Any]:
        """The arguments that every call of `HfApi` names the repository by."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass(frozen=True)
class Plan:
    """What publishing would do.

    Attributes:
        target: where to. folder: what.
        exists: the repository is there and visible to the token.
        new, changed, same: paths of the folder, by what the repository has under that path.
        other: paths that only the repository has; they are left alone.
        size: bytes of the new and changed files.
    """

    target: Target
    folder: Path
    exists: bool
    new: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    other: tuple[str, ...]
    size: int

    @property
    def upload(self) -> tuple[str, ...]:
        """The paths to upload, in order."""
        return tuple(sorted(self.new + self.changed))


def check_repo_id(repo_id: str) -> None:
    """Raise `DeDiMError` unless ``repo_id`` is "user/name" in the Hub's alphabet."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DeDiMError(f"REPO_ID: {error}") from error
    if repo_id.count("/") != 1:
        raise DeDiMError(f"REPO_ID: expected user/name, for instance me/dedim, got {repo_id!r}.")


def check_tag(tag: str) -> None:
    """Raise `DeDiMError` unless ``tag`` can name a commit beside the branch "main".

    Example:
        >>> check_tag("v1.0")
        >>> check_tag("my tag")
        Traceback (most recent call last):
        diffusers_dedim.errors.DeDiMError: --tag: expected a name of letters, digits, ., _ and -, ... got 'my tag'.
    """
    if not _TAG.fullmatch(tag) or ".." in tag or tag == "main":
        raise DeDiMError(
            f"--tag: expected a name of letters, digits, ., _ and -, for instance v1.0, other than main; got {tag!r}."
        )


def check_settings(*, need_token: bool) -> None:
    """Say what is wrong with the address of the Hub or the token, before anything is prepared.

    Raises:
        PublishError: HF_ENDPOINT is no address, the token cannot be one, or there is none and it is needed.
    """
    address = urlsplit(constants.ENDPOINT)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise PublishError(
            f"HF_ENDPOINT: expected an address like https://huggingface.co, got {constants.ENDPOINT!r}."
        )
    token = get_token()
    if token is None and need_token:
        raise PublishError(f"no Hugging Face token was found: {_GET_TOKEN}.")
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        where = next((name for name in _TOKEN_VARIABLES if os.environ.get(name)), constants.HF_TOKEN_PATH)
        raise PublishError(
            f"{where}: holds no Hugging Face token, which has letters, digits, _ and - only; {_GET_TOKEN}."
        )


def make_plan(target: Target, folder: Path) -> Plan:
    """Compare every file of ``folder`` with the repository, by hash.

    Raises:
        DeDiMError: the repository holds another model or Space, or is public where it is to be private. PublishError:
            the Hub refused or was not reached.
    """
    with hub_errors(target.repo_id):
        try:
            info = HfApi().repo_info(**target.address, files_metadata=True)
        except RepositoryNotFoundError:
            return _compare(target, folder, None)
        if target.private and info.private is False:
            raise DeDiMError(
                f"{target.repo_id}: is there already and is public; --private does not change that. Make it private "
                "in its settings on the Hub first, or leave --private out."
            )
        siblings: list[RepoSibling] = getattr(info, "siblings", None) or []  # of one kind of repository none
        plan = _compare(target, folder, {each.rfilename: each for each in siblings})
        if target.kind is None:
            _refuse_another_space(plan)
        else:
            _refuse_another_model(plan, target.kind)
    return plan


def upload_files(plan: Plan) -> list[str]:
    """Create the repository if it is not there and upload what differs: one commit, then one of the results.

    Large files go first and stay on the Hub if the connection breaks, so that a second run sends only the rest; the
    repository itself changes at the end, all at once but for the results, which the Hub may refuse.

    Returns:
        Notes for the user; none if all went as planned.

    Raises:
        PublishError: the Hub refused or was not reached.
    """
    check_settings(need_token=True)
    results = [path for path in plan.upload if path.startswith(f"{EVAL_RESULTS}/")]
    with hub_errors(plan.target.repo_id):
        if not plan.exists:
            _create(plan.target)
        _commit(plan, [path for path in plan.upload if path not in results])
        try:
            # On their own: the Hub may refuse results on data that it does not list as a benchmark
            _commit(plan, results)
        except BadRequestError as error:
            return [
                f"the Hub did not take {', '.join(results)} ({error.server_message or 'no reason given'}); "
                "the same results are in the card."
            ]
    return []


def refuse_taken_tag(target: Target, tag: str) -> None:
    """Say before anything is sent that a tag cannot be set: it is not moved, as others may load by it.

    Raises:
        DeDiMError: the repository has a tag or branch of that name. PublishError: the Hub refused or was not reached.
    """
    with hub_errors(target.repo_id):
        refs = HfApi().list_repo_refs(**target.address)
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
        HfApi().create_tag(**target.address, tag=tag)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and of the network into `PublishError`.

    The original error is dropped: its text may hold signed upload addresses.
    """
    try:
        yield
    except DeDiMError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise PublishError(_reason(error, repo_id)) from None
    except Exception as error:
        if not _is_network(error):
            raise
        raise PublishError(_reason(error, repo_id)) from None


def _compare(target: Target, folder: Path, remote: dict[str, RepoSibling] | None) -> Plan:
    local = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    known = remote or {}
    same = [path for path in local if path in known and _is_same(local[path], known[path])]
    changed = [path for path in local if path in known and path not in same]
    new = [path for path in local if path not in known]
    size = sum(local[path].stat().st_size for path in new + changed)
    other = tuple(sorted({*known} - {*local}))
    return Plan(target, folder, remote is not None, tuple(new), tuple(changed), tuple(same), other, size)


def _is_same(path: Path, remote: RepoSibling) -> bool:
    """Whether a file has the content that the Hub states: SHA-256 of a large file, else git's SHA-1."""
    content = path.read_bytes()
    if remote.lfs is not None:
        return hashlib.sha256(content).hexdigest() == remote.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id


def _refuse_another_model(plan: Plan, kind: ModelKind) -> None:
    """Never write, say, an encoder over a pipeline because a name was mistyped; nor over what names no class at all."""
    remote, repo_id = {*plan.changed, *plan.same, *plan.other}, plan.target.repo_id
    for name in _INDEX_FILES:
        if name not in remote or name in plan.same:
            continue
        try:
            found = str(json.loads(_remote_text(plan.target, name))["_class_name"])
        except (ValueError, KeyError, TypeError):
            found = f"model with another {name}"
        if name != kind.index or found not in kind.class_names:
            ours = " or ".join(kind.class_names)
            raise DeDiMError(f"{repo_id}: holds a {found} already, where {ours} is to go; {_OTHER_NAME}.")
    foreign = sorted(path for path in remote if not _ANYBODYS_FILES.fullmatch(path))
    if foreign and kind.index not in remote:
        some = ", ".join(foreign[:3]) + ", ..." * (len(foreign) > 3)
        raise DeDiMError(
            f"{repo_id}: holds other files already ({some}) and no {kind.index} of {kind.class_names[0]}; "
            f"{_OTHER_NAME}."
        )


def _refuse_another_space(plan: Plan) -> None:
    """The same for a Space: it is told by its title. One that holds no app yet, as the website makes it, is free."""
    remote = {*plan.changed, *plan.same, *plan.other}
    if remote <= {".gitattributes", "README.md"} or "README.md" in plan.same:
        return
    title = space_title((plan.folder / "README.md").read_text(encoding="utf-8"))
    found = space_title(_remote_text(plan.target, "README.md")) if "README.md" in remote else None
    if title is None or found != title:
        raise DeDiMError(
            f"{plan.target.repo_id}: holds {'a Space without a title' if found is None else f'the Space {found!r}'} "
            f"already, and this is {title!r}; {_OTHER_NAME}. If it is this very Space, give both README.md files the "
            "same title."
        )


def _remote_text(target: Target, name: str) -> str:
    with TemporaryDirectory() as folder:
        path = HfApi().hf_hub_download(**target.address, filename=name, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _create(target: Target) -> None:
    try:
        HfApi().create_repo(**target.address, private=target.private or None, space_sdk=target.space_sdk)
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            raise PublishError(f"{target.repo_id}: {_name_taken(target)}; choose another name.") from None
        raise


def _commit(plan: Plan, paths: Sequence[str]) -> None:
    from diffusers_dedim import __version__

    if paths:
        # not upload_folder: with hf_xet it tries a commit that failed again in parts, and a part may stay alone
        HfApi().create_commit(
            **plan.target.address,
            operations=[CommitOperationAdd(path, str(plan.folder / path)) for path in paths],
            commit_message=f"Published with diffusers-dedim {__version__}",
        )


def _name_taken(target: Target) -> str:
    """The Hub says that the name is in use, and there is no repository of our kind: find what it is."""
    for kind in ("model", "dataset", "space"):
        try:
            HfApi().repo_info(target.repo_id, repo_type=kind)
        except HfHubHTTPError:
            continue
        return f"the name is taken by a {kind} repository"
    return "the name is taken by something that this token cannot see"


def _reason(error: BaseException, repo_id: str) -> str:
    """One line for an error and its causes: the Hub's answer first, then the network, then the rest."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    answer = next((each for each in chain if isinstance(each, HfHubHTTPError)), None)
    if answer is not None:
        text = _explain_answer(answer, repo_id)
    elif any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        text = "HF_HUB_OFFLINE is set, so nothing can be published; unset it."
    elif any(_is_network(each) for each in chain):
        kind = type(chain[-1]).__name__
        text = f"the connection to {constants.ENDPOINT} failed ({kind}). Check the network. {_GO_ON}"
    else:
        text = f"the upload failed: {error}. {_GO_ON}"
    token = get_token()
    return f"{repo_id}: {text.replace(token, '(token)') if token else text}"


def _explain_answer(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    if status in _ANSWERS:
        return _ANSWERS[status].format(owner=repo_id.partition("/")[0])
    if status >= 500:
        return f"the Hub has trouble (it answered {status}); try later. {_GO_ON}"
    said = " ".join((error.server_message or "no reason given").split())
    return f"the Hub refused (it answered {status}): {said}"


def _is_network(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _NETWORK_PACKAGES or isinstance(error, (ConnectionError, TimeoutError))
