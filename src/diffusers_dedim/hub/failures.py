"""Say what went wrong on the way to the Hub and what to do, without addresses, request ids or tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from diffusers_dedim.errors import DeDiMError

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
