"""Refuses a tracker of `report_to` that is not installed, not logged in or out of reach, before anything is read.

In: what `report_to` names. Out: nothing, or one line with the command that helps. Imports no tracker: what the stack's
own callbacks say of one comes only when the data are tokenised and the model is loaded.
"""

import configparser
import importlib.util
import netrc
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sft.config.aliases import did_you_mean

# The packages that each of the stack's reporting callbacks needs, as they are imported and as pip knows them.
PACKAGES: dict[str, dict[str, str]] = {
    "azure_ml": {"azureml": "azureml-core"},
    "comet_ml": {"comet_ml": "comet-ml"},
    "mlflow": {"mlflow": "mlflow"},
    "neptune": {"neptune": "neptune"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "trackio": {"trackio": "trackio"},
    "wandb": {"wandb": "wandb"},
    "codecarbon": {"codecarbon": "codecarbon"},
    "clearml": {"clearml": "clearml"},
    "dagshub": {"dagshub": "dagshub", "mlflow": "mlflow"},
    "flyte": {"flytekit": "flytekit"},
    "dvclive": {"dvclive": "dvclive"},
    "swanlab": {"swanlab": "swanlab"},
    "kubeflow": {},
}
# Seconds that a tracker's server has to take a connection.
PATIENCE = 5.0


@dataclass(frozen=True)
class _Service:
    """A tracker that sends what it gets to a server, unless it is set to keep it here."""

    mode: str | None
    offline_modes: tuple[str, ...]
    has_key: bool
    server: str
    log_in: str
    offline: str


def refuse_trackers(report_to: str | list[str] | None, refuse: Callable[[str, str], Any]) -> None:
    """Call `refuse("report_to", problem)`, which raises, for a tracker that a run could not report to."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    if names == ["all"]:  # of those that are installed
        names = [name for name in SERVICES if not _missing(name)]
    for name in names:
        if name == "none" and len(names) == 1:
            return
        if name not in PACKAGES:
            advice = did_you_mean(str(name), PACKAGES) or f"; there are {', '.join(PACKAGES)}"
            refuse("report_to", f"{name}: no such tracker{advice}")
        if missing := _missing(name):
            refuse("report_to", f"{name} is not installed; pip install {' '.join(missing)}, or leave {name} out")
        if name in SERVICES:
            _refuse_service(name, SERVICES[name](), refuse)


def _missing(name: str) -> list[str]:
    """What pip would have to install for a tracker."""
    return [package for module, package in PACKAGES[name].items() if importlib.util.find_spec(module) is None]


def _refuse_service(name: str, service: _Service, refuse: Callable[[str, str], Any]) -> None:
    if service.mode in service.offline_modes:
        return
    if not service.has_key:
        refuse("report_to", f"{name} is not logged in; {service.log_in}, or {service.offline}")
    if not _answers(service.server):
        refuse("report_to", f"{name}: {service.server} cannot be reached; {service.offline}")


@cache
def _answers(server: str) -> bool:
    """Whether a server takes a connection; behind a proxy it is not tried."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(server)
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), PATIENCE).close()
    except OSError:
        return False
    return True


def _wandb() -> _Service:
    settings = configparser.ConfigParser()
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        folder = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
        settings.read([Path(folder, "settings").expanduser(), Path("wandb/settings")], encoding="utf-8")
    own = settings["default"] if settings.has_section("default") else {}
    server = os.environ.get("WANDB_BASE_URL") or own.get("base_url") or "https://api.wandb.ai"
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    has_key = any(map(os.environ.get, keys)) or "api_key" in own or _in_netrc(urlsplit(server).netloc)
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    return _Service(
        mode="disabled" if disabled else os.environ.get("WANDB_MODE") or own.get("mode"),
        offline_modes=("offline", "dryrun", "disabled"),
        has_key=has_key,
        server=server,
        log_in="run wandb login",
        offline="keep the curves here with WANDB_MODE=offline and send them later with wandb sync",
    )


def _swanlab() -> _Service:
    root = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or "~/.swanlab"
    folders = (Path(".swanlab"), Path(root).expanduser())
    # What a file of settings says is left to SwanLab.
    files = [folder / name for folder in folders for name in (".netrc", "config.yaml", "config.yml")]
    return _Service(
        mode=os.environ.get("SWANLAB_MODE"),
        offline_modes=("offline", "local", "disabled"),
        has_key="SWANLAB_API_KEY" in os.environ or any(map(Path.is_file, [*files, *Path().glob("swanlab.y*ml")])),
        server=os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn"),
        log_in="run swanlab login",
        offline="keep the curves here with SWANLAB_MODE=offline and send them later with swanlab sync",
    )


def _in_netrc(host: str) -> bool:
    with suppress(netrc.NetrcParseError, OSError):
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(str(path)).authenticators(host) is not None
    return False


SERVICES: dict[str, Callable[[], _Service]] = {"wandb": _wandb, "swanlab": _swanlab}
