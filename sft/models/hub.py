"""Finds out, in one quick attempt, whether a model or data set of the hub can be had, and says how else to get it.

In: an id. Out: nothing, or one `UserError`: why it cannot be had, and a local folder, a mirror or ModelScope instead.
The stack would ask again and again for more than a minute first. What is downloaded is left to the stack.
"""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sft.core.console import say, waiting
from sft.core.errors import UserError
from sft.core.paths import is_data_set
from sft.core.text import one_line_message

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

MIRROR = "https://hf-mirror.com"
# Publishers whose name on ModelScope is another than on the hub; most have the same.
ON_MODELSCOPE = {
    "internlm": "Shanghai_AI_Laboratory",
    "meta-llama": "LLM-Research",
    "google": "LLM-Research",
    "microsoft": "LLM-Research",
    "THUDM": "ZhipuAI",
    "zai-org": "ZhipuAI",
    "01-ai": "01ai",
    "openbmb": "OpenBMB",
}
# Seconds that the hub has to answer, where HF_HUB_ETAG_TIMEOUT does not say how many.
PATIENCE = 5.0
# A file that nearly every repository has; one without it answers that it is there without it.
ASKED_FOR = {"model": "config.json", "dataset": "README.md"}
NAMES = {"model": "model", "dataset": "data set"}


@dataclass(frozen=True)
class Obstacle:
    """Why the hub does not give something: words, what to do about it, and whether a copy in the cache would do."""

    reason: str
    advice: str
    is_network: bool = False


def require(name: str, revision: str, kind: str, find_lack: Callable[[], str | None]) -> None:
    """See that a hub has the "model" or "dataset" of an id, or else that a cache of the hub's has it whole.

    `find_lack` says what a cache lacks of it, as a sentence; None where it is whole. Where the hub cannot be reached
    and the cache will do, this process is offline from then on.

    Raises:
        UserError: neither has it; says why, and how to get it.
    """
    _refuse_what_is_no_id(name, kind)
    obstacle = _obstacle(name, revision, kind)
    if obstacle is None:
        return
    lack = find_lack()
    if obstacle.is_network and lack is None:
        _go_offline(name, obstacle)
        return
    if obstacle.is_network:
        raise UserError(f"{name}: {lack}, and {obstacle.reason}: {obstacle.advice}")
    use_cache = "; HF_HUB_OFFLINE=1 uses the copy in the cache" if lack is None else ""
    raise UserError(f"{name}: no such folder, and {obstacle.reason}: {obstacle.advice}{use_cache}")


def require_data_set(name: str) -> None:
    """See that the hub, or else the cache of data sets, has what is no file or folder here; `name` may have `:SPLIT`.

    Raises:
        UserError: it has not, or cannot be reached; says how to get the data set.
    """
    path = name.partition(":")[0]
    if is_data_set(name) and not os.path.isdir(path):
        require(path, "main", "dataset", lambda: _lack_of_data_sets(path))


def _lack_of_data_sets(name: str) -> str | None:
    from datasets.load import CachedDatasetModuleFactory

    try:
        CachedDatasetModuleFactory(name).get_module()
    except FileNotFoundError:
        return "it is not in the cache of data sets"
    return None


@contextmanager
def downloading(model: str) -> Iterator[None]:
    """Say so if loading a hub's model takes its time, and name what a download broke off for.

    Raises:
        UserError: it broke off, or the disk is full.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    if os.path.isdir(model):
        yield
        return
    try:
        with waiting(f"{model}: comparing the hub's cache with {constants.ENDPOINT}, and downloading what it lacks"):
            yield
    except (HTTPError, OSError) as problem:
        causes = list(_causes(problem))
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
            raise UserError(
                f"{model}: the disk is full, and the hub's cache is on it ({constants.HF_HUB_CACHE}): make room, or "
                "set HF_HOME to a folder on a larger disk"
            ) from None
        if not any(isinstance(cause, HTTPError) for cause in causes):
            raise
        reason = _short(causes[-1])
        raise UserError(
            f"{model}: the download from {constants.ENDPOINT} broke off ({reason}): run the same command again, which "
            f"resumes it; or {_ways(model, 'model')}"
        ) from None


def _refuse_what_is_no_id(name: str, kind: str) -> None:
    """Raise `UserError` for a path to nothing, which no hub need be asked for."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if Path(name).parts[:1] == ("models",):
        make = f"python -m model_tools demo-model {name}"
        raise UserError(f"{name}: no such folder: check the path; if it is the demo model, make it with: {make}")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{name}: no such folder, and no id of a {NAMES[kind]} on a hub: check the path") from None


@cache
def _obstacle(name: str, revision: str, kind: str) -> Obstacle | None:
    """What the hub's answer to one request, or its silence, means; None where it gives what it is asked for."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    hub, ways = constants.ENDPOINT, _ways(name, kind)
    if constants.HF_HUB_OFFLINE:
        return Obstacle("HF_HUB_OFFLINE is set", f"unset it, or {ways}", is_network=True)
    url = hf_hub_url(name, ASKED_FOR[kind], revision=revision, repo_type=kind)
    given = constants.HF_HUB_ETAG_TIMEOUT
    patience = PATIENCE if given == constants.DEFAULT_ETAG_TIMEOUT else float(given)
    try:
        with waiting(f"{name}: asking {hub}, for at most {patience:g} s"):
            # A longer limit of the request's own, so that one of the two always ends it and gives the reason.
            answer = _within(patience, lambda: get_hf_file_metadata(url, timeout=2 * patience))
    except GatedRepoError:
        log_in = f"accept its licence at {hub}/{name} and log in (hf auth login), or {_elsewhere(name, kind)}"
        return Obstacle(f"{hub} gives it only to those who have accepted its licence", log_in)
    except HfHubHTTPError as problem:
        return _refused(problem, name, revision, kind)
    except (HTTPError, OSError, OfflineModeIsEnabled) as problem:
        advice = f"correct HF_ENDPOINT, or {ways}" if "HF_ENDPOINT" in os.environ else ways
        return Obstacle(f"{hub} cannot be reached ({_short(problem)})", advice, is_network=True)
    if answer.commit_hash is None or answer.etag is None:
        return Obstacle(f"{hub} answers, but not as a hub does", f"correct HF_ENDPOINT, or {ways}", is_network=True)
    return None


def _refused(problem: "HfHubHTTPError", name: str, revision: str, kind: str) -> Obstacle | None:
    """What an answer that is an error means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    hub, status = constants.ENDPOINT, problem.response.status_code
    if isinstance(problem, RemoteEntryNotFoundError):
        return None
    if isinstance(problem, RevisionNotFoundError):
        return Obstacle(f"{hub} has no revision {revision} of it", "check model_revision")
    if status in (401, 403, 404):
        has_none = f"{hub} has no such {NAMES[kind]}, or it is private ({status})"
        what = "the id and HF_ENDPOINT" if "HF_ENDPOINT" in os.environ else "the id"
        return Obstacle(has_none, f"check {what}, log in (hf auth login), or {_elsewhere(name, kind)}")
    advice = f"try again later, or {_ways(name, kind)}"
    return Obstacle(f"{hub} answers with an error ({status})", advice, is_network=True)


def _within(seconds: float, ask: Callable):
    """What `ask` returns or raises, if it does within so many seconds.

    The limit of a request is no limit of its parts: a name is looked up as long as the system likes, and each address
    that it has is tried as long.

    Raises:
        TimeoutError: it did not.
    """
    answer: list = []

    def run() -> None:
        try:
            answer.append((ask(), None))
        except Exception as problem:
            answer.append((None, problem))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} s")
    result, problem = answer[0]
    if problem:
        raise problem
    return result


def _go_offline(name: str, obstacle: Obstacle) -> None:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = True
        say(f"{name}: {obstacle.reason}: the copy in the cache is used")


def _ways(name: str, kind: str) -> str:
    """How else to get a model or data set where the hub cannot be reached."""
    return f"name a local folder, set a mirror (HF_ENDPOINT={MIRROR}), or {_elsewhere(name, kind)}"


def _elsewhere(name: str, kind: str) -> str:
    """How to get a model or data set from ModelScope, as far as its publisher is known."""
    publisher, slash, own_name = name.partition("/")
    if not slash:
        return "get it elsewhere and name its folder"
    source = f"{ON_MODELSCOPE.get(publisher, publisher) if kind == 'model' else publisher}/{own_name}"
    folder = f"{'models' if kind == 'model' else 'data'}/{own_name}"
    fetch = f"modelscope download --{kind} {source} --local_dir {folder}"
    return f"get it from ModelScope (pip install modelscope; {fetch}) and name {folder}"


def _short(problem: Exception) -> str:
    """The innermost cause of a request that got no answer, in a few words."""
    cause = list(_causes(problem))[-1]
    if isinstance(cause, socket.gaierror):
        return "its name is not known: no network, or no DNS"
    return one_line_message(cause, 100) or type(cause).__name__


def _causes(problem: BaseException | None) -> Iterator[Exception]:
    """An exception, what it was raised from, and so on."""
    while isinstance(problem, Exception):
        yield problem
        problem = problem.__cause__ or problem.__context__
