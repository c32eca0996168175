"""Compare a folder with a repository on the Hub and upload what differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not in __all__

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.cards import EVAL_RESULTS, ModelKind, space_title

GET_TOKEN = "make one with write access at https://huggingface.co/settings/tokens and set HF_TOKEN, or `hf auth login`"
_GO_ON = "What has arrived is kept; run the same command again to go on."
# huggingface_hub 1 speaks through httpx, 2 through httpx2: neither is a dependency of ours.
_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2")


class PublishError(DeDiMError):
    """The Hub refused, or could not be reached; what was uploaded until then is kept there."""


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
        raise PublishError(explain(error, repo_id)) from None
    except Exception as error:
        if not _is_network(error):
            raise
        raise PublishError(explain(error, repo_id)) from None


def explain(error: BaseException, repo_id: str) -> str:
    """Return one line for an error and its causes: the Hub's answer first, then the network, then the rest."""
    chain = _causes(error)
    answer = next((cause for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if answer is not None:
        return _hide_token(f"{repo_id}: {_explain_status(answer, repo_id)}")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be published; unset it."
    if any(_is_network(cause) for cause in chain):
        return (
            f"{repo_id}: the connection to {constants.ENDPOINT} failed ({type(chain[-1]).__name__}). Check the "
            f"network. {_GO_ON}"
        )
    return _hide_token(f"{repo_id}: the upload failed: {error}. {_GO_ON}")


def _explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    status, owner = error.response.status_code, repo_id.partition("/")[0]
    if status == 401:
        return f"the Hub does not accept the token (it may be mistyped, expired or revoked); {GET_TOKEN}."
    if status == 403:
        return (
            f"the token has no right to write there. It needs the role 'write', or a fine-grained permission for "
            f"this repository, and {owner!r} must be your own name or an organisation that lets you write; {GET_TOKEN}."
        )
    if status == 404:
        return "the Hub knows no such repository, or does not show it to this token; check the name and the token."
    if status == 409:
        return f"somebody else changed the repository at the same time. {_GO_ON}"
    if status == 429:
        return f"too many requests for now; wait some minutes. {_GO_ON}"
    if status >= 500:
        return f"the Hub has trouble (it answered {status}); try later. {_GO_ON}"
    said = " ".join((error.server_message or "no reason given").split())
    return f"the Hub refused (it answered {status}): {said}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error, then what caused it, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _is_network(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _NETWORK_PACKAGES or isinstance(error, (ConnectionError, TimeoutError))


def _hide_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "(token)") if token else text


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


_INDEX_FILES = ("model_index.json", "config.json")
_ANYBODYS_FILES = re.compile(
    r"\.gitattributes|README\.md|LICENSE[^/]*"
)  # as the website makes a new repository
_KINDS_OF_REPO = ("model", "dataset", "space")


@dataclass(frozen=True)
class Plan:
    """What publishing would do.

    Attributes:
        repo_id: "user/name". repo_type: "model" or "space".
        exists: the repository is there and visible to the token.
        new, changed, same: paths of the folder, by what the repository has under that path.
        other: paths that only the repository has; they are left alone.
        size: bytes of the new and changed files.
    """

    repo_id: str
    repo_type: str
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


def check_repo_id(repo_id: str) -> None:
    """Raise `DeDiMError` unless ``repo_id`` is "user/name" in the Hub's alphabet."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DeDiMError(f"REPO_ID: {error}") from error
    if repo_id.count("/") != 1:
        raise DeDiMError(f"REPO_ID: expected user/name, for instance me/dedim, got {repo_id!r}.")


def check_token() -> None:
    """Raise `PublishError` if there is no token at all."""
    if get_token() is None:
        raise PublishError(f"no Hugging Face token was found: {GET_TOKEN}.")


def make_plan(target: Target, folder: Path) -> Plan:
    """Compare every file of ``folder`` with the repository, by hash.

    Raises:
        DeDiMError: the repository holds another model or Space, or is public where it is to be private. PublishError:
            the Hub refused or was not reached.
    """
    with hub_errors(target.repo_id):
        remote = _remote_files(target)
        if remote is not None:
            _refuse_public(HfApi(), target)
        local = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        plan = _compare(target, local, remote)
        if target.kind is None:
            _refuse_another_space(target, plan, folder)
        else:
            _refuse_another_model(target, target.kind, plan, remote or {})
    return plan


def publish(target: Target, folder: Path, plan: Plan) -> list[str]:
    """Create the repository if it is not there and upload what ``plan`` lists: one commit, then one of the results.

    Large files go first and stay on the Hub if the connection breaks, so that a second run sends only the rest; the
    repository itself changes at the end, all at once but for the results, which the Hub may refuse.

    Returns:
        Notes for the user; none if all went as planned.

    Raises:
        PublishError: the Hub refused or was not reached.
    """
    api = HfApi()
    with hub_errors(target.repo_id):
        if not plan.exists:
            _create(api, target)
        results = [path for path in plan.upload if path.startswith(f"{EVAL_RESULTS}/")]
        _commit(api, target, folder, [path for path in plan.upload if path not in results])
        try:
            # On their own: the Hub may refuse results on data that it does not list as a benchmark
            _commit(api, target, folder, results)
        except BadRequestError as error:
            return [
                f"the Hub did not take {', '.join(results)} ({error.server_message or 'no reason given'}); "
                "the same results are in the card."
            ]
    return []


def _remote_files(target: Target) -> dict[str, RepoFile] | None:
    """Files of the repository by path; None if there is no repository."""
    api = HfApi()
    try:
        entries = api.list_repo_tree(target.repo_id, recursive=True, repo_type=target.repo_type)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except RepositoryNotFoundError:
        return None
    except (EntryNotFoundError, RevisionNotFoundError):
        return {}  # a repository without a commit


def _compare(target: Target, local: Mapping[str, Path], remote: Mapping[str, RepoFile] | None) -> Plan:
    known = remote or {}
    same = [path for path in local if path in known and _same(local[path], known[path])]
    changed = [path for path in local if path in known and path not in same]
    new = [path for path in local if path not in known]
    return Plan(
        target.repo_id,
        target.repo_type,
        remote is not None,
        tuple(sorted(new)),
        tuple(sorted(changed)),
        tuple(sorted(same)),
        tuple(sorted({*known} - {*local})),
        sum(local[path].stat().st_size for path in new + changed),
    )


def _same(path: Path, remote: RepoFile) -> bool:
    """Whether a file has the content that the Hub's listing states: SHA-256 of a large file, else git's SHA-1."""
    content = path.read_bytes()
    if remote.lfs is not None:
        return hashlib.sha256(content).hexdigest() == remote.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id


def _refuse_another_model(
    target: Target, kind: ModelKind, plan: Plan, remote: Mapping[str, RepoFile]
) -> None:
    """Never write, say, an encoder over a pipeline because a name was mistyped; nor over what names no class at all."""
    for name in _INDEX_FILES:
        if name not in remote or name in plan.same:
            continue
        try:
            found = str(json.loads(_remote_text(target, name))["_class_name"])
        except (ValueError, KeyError, TypeError):
            found = f"model with another {name}"
        if (name, found) != (kind.index, kind.class_name):
            raise DeDiMError(
                f"{target.repo_id}: holds a {found} already, and this is a {kind.class_name}; "
                "choose another name, or delete that repository first."
            )
    foreign = sorted(path for path in remote if not _ANYBODYS_FILES.fullmatch(path))
    if foreign and kind.index not in remote:
        some = ", ".join(foreign[:3]) + ", ..." * (len(foreign) > 3)
        raise DeDiMError(
            f"{target.repo_id}: holds other files already ({some}) and no {kind.index} of a {kind.class_name}; "
            "choose another name, or delete that repository first."
        )


def _refuse_another_space(target: Target, plan: Plan, folder: Path) -> None:
    """The same for a Space: it is told by its title. One that holds no app yet, as the website makes it, is free."""
    remote = {*plan.changed, *plan.same, *plan.other}
    if remote <= {".gitattributes", "README.md"} or "README.md" in plan.same:
        return
    title = space_title((folder / "README.md").read_text(encoding="utf-8"))
    found = space_title(_remote_text(target, "README.md")) if "README.md" in remote else None
    if title is None or found != title:
        raise DeDiMError(
            f"{target.repo_id}: holds {'a Space without a title' if found is None else f'the Space {found!r}'} "
            f"already, and this is {title!r}; choose another name, or delete that repository first. If it is this "
            "very Space, give both README.md files the same title."
        )


def _remote_text(target: Target, name: str) -> str:
    with TemporaryDirectory() as folder:
        path = HfApi().hf_hub_download(target.repo_id, name, repo_type=target.repo_type, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _create(api: HfApi, target: Target) -> None:
    check_token()
    try:
        api.create_repo(
            target.repo_id,
            repo_type=target.repo_type,
            private=target.private or None,
            space_sdk=target.space_sdk,
        )
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            raise PublishError(_name_taken(api, target)) from None
        raise


def _name_taken(api: HfApi, target: Target) -> str:
    """The Hub says that the name is in use, and there is no repository of our kind: find what it is."""
    for kind in _KINDS_OF_REPO:
        try:
            api.repo_info(target.repo_id, repo_type=kind)
        except HfHubHTTPError:
            continue
        return f"{target.repo_id}: the name is taken by a {kind} repository; choose another name."
    return (
        f"{target.repo_id}: the name is taken by something that this token cannot see; choose another name."
    )


def _refuse_public(api: HfApi, target: Target) -> None:
    if target.private and api.repo_info(target.repo_id, repo_type=target.repo_type).private is False:
        raise DeDiMError(
            f"{target.repo_id}: is there already and is public; --private does not change that. Make it private in "
            "its settings on the Hub first, or leave --private out."
        )


def _commit(api: HfApi, target: Target, folder: Path, paths: list[str]) -> None:
    from diffusers_dedim import __version__

    if not paths:
        return
    check_token()
    api.create_commit(
        target.repo_id,
        [CommitOperationAdd(path, str(folder / path)) for path in paths],
        commit_message=f"Published with diffusers-dedim {__version__}",
        repo_type=target.repo_type,
    )
