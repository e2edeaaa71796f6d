"""A tracker that a run could not report to is refused with the recipe, before anything heavy is imported."""

import importlib.util
import socket

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sft.config import trackers
from sft.config.settings import read_settings
from sft.core.errors import UserError
from sft.sweeps.planning import plan_here


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make empty packages of these names importable, and forget every account of this machine."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "SWANLAB_API_KEY",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    trackers._answers.cache_clear()

    def install(*names: str) -> None:
        for name in names:
            (tmp_path / "packages" / name).mkdir(parents=True)
            (tmp_path / "packages" / name / "__init__.py").touch()
        importlib.invalidate_caches()

    return install


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_every_tracker_of_the_stack_is_known():
    assert trackers.PACKAGES.keys() == INTEGRATION_TO_CALLBACK.keys()


@pytest.mark.parametrize(
    ("report_to", "said"),
    [
        ("wandb", r"tiny.yaml:\d+: report_to: wandb is not installed; pip install wandb, or leave wandb out"),
        (["tensorboard", "swanlab"], "swanlab is not installed; pip install swanlab, or leave swanlab out"),
        ("dagshub", "dagshub is not installed; pip install dagshub mlflow, or leave dagshub out"),
        ("wandbb", "wandbb: no such tracker; did you mean wandb"),
        (["paper"], "paper: no such tracker; there are azure_ml, "),
        (["tensorboard", None], "None: no such tracker; there are azure_ml, "),
        (["tensorboard", "none"], "none: no such tracker"),
    ],
    ids=str,
)
def test_a_tracker_that_is_not_there_is_refused_with_the_command(write_recipe, report_to, said):
    recipe = str(write_recipe(report_to=report_to))
    with pytest.raises(UserError, match=said):
        read_settings([recipe])
    with pytest.raises(UserError, match=said):
        plan_here(recipe, {}, 1)


@pytest.mark.parametrize("report_to", ["none", "all", "tensorboard", ["tensorboard", "trackio"]], ids=str)
def test_those_that_are_there_pass(write_recipe, report_to):
    read_settings([str(write_recipe(report_to=report_to))])


def test_where_nothing_is_trained_nothing_need_be_installed(write_recipe):
    recipe = str(write_recipe(report_to="wandb"))
    read_settings([recipe], for_training=False)
    read_settings([recipe, "--dry_run", "--card", "24"])


@pytest.mark.parametrize(
    ("name", "command", "mode", "key", "address"),
    [
        ("wandb", "wandb login", "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"),
        ("swanlab", "swanlab login", "SWANLAB_MODE", "SWANLAB_API_KEY", "SWANLAB_API_HOST"),
    ],
)
def test_one_that_has_no_account_or_no_network_says_how_to_stay_offline(
    write_recipe, installed, monkeypatch, server, name, command, mode, key, address
):
    installed(name)
    recipe = str(write_recipe(report_to=name))
    with pytest.raises(UserError, match=f"{name} is not logged in; run {command}, or keep .* {mode}=offline"):
        read_settings([recipe])
    monkeypatch.setenv(key, "0" * 40)
    monkeypatch.setenv(address, "http://127.0.0.1:1")
    with pytest.raises(UserError, match=f"{name}: http://127.0.0.1:1 cannot be reached; keep .* with {mode}=offline"):
        read_settings([recipe])
    monkeypatch.setenv(address, server)
    read_settings([recipe])
    monkeypatch.setenv(address, "http://127.0.0.1:1")
    monkeypatch.setenv(mode, "offline")
    read_settings([recipe])


def test_a_key_of_wandb_login_is_found(write_recipe, installed, monkeypatch, tmp_path, server):
    installed("wandb")
    (tmp_path / ".netrc").write_text(f"machine {server.removeprefix('http://')} login user password {'0' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", server)
    read_settings([str(write_recipe(report_to="wandb"))])
