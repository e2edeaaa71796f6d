"""A hub that does not give a model costs one attempt, and each cause is told apart with what to do about it."""

import os
import socket

import pytest
from huggingface_hub import constants
from trl import ModelConfig

from data_tools.__main__ import main
from model_tools.checkpoints.model_folder import local_folder
from sft.core.errors import UserError
from sft.models import hub
from sft.models.loading import load_model, load_tokenizer, require_model
from sft.runs.inputs import Digests
from sft.sweeps.planning import plan_here
from tests.support.fake_hub import fake_hub

MODELSCOPE = r"modelscope download --model {0} --local_dir models/{1}\) and name models/{1}$"


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """Let this process ask the hub at an address, with an empty cache of its own."""

    def use(address: str) -> None:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub, "PATIENCE", 1.0)
        hub._obstacle.cache_clear()

    yield use
    hub._obstacle.cache_clear()


@pytest.fixture
def serve(use_hub, tiny_model):
    """The fake hub, with the tiny model as some/tiny."""
    with fake_hub(tiny=tiny_model, cut=tiny_model) as server:
        use_hub(server.address)
        yield server


@pytest.fixture
def nobody_listens(use_hub):
    """The address of a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_hub(address)
        yield address


CAUSES = {
    "missing": r"no such folder, and {0} has no such model, or it is private \(404\): check the id and HF_ENDPOINT",
    "private": r"no such folder, and {0} has no such model, or it is private \(401\): .*hf auth login",
    "gated": r"{0} gives it only to those who have accepted its licence: accept its licence at {0}/some/gated",
    "silent": r"not in the hub's cache, and {0} cannot be reached \(no answer within 1 s\): correct HF_ENDPOINT",
    "busy": r"not in the hub's cache, and {0} answers with an error \(503\): try again later",
    "html": r"not in the hub's cache, and {0} answers, but not as a hub does: correct HF_ENDPOINT",
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_told_apart_after_one_request(serve, name):
    for _ in range(2):
        with pytest.raises(UserError, match=CAUSES[name].format(serve.address)) as refused:
            require_model(f"some/{name}")
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=MODELSCOPE.format(f"some/{name}", name)):
        load_tokenizer(f"some/{name}")
    assert serve.asked == [f"HEAD /some/{name}/resolve/main/config.json"]


def test_a_revision_that_is_not_there_is_named(serve):
    with pytest.raises(UserError, match="has no revision v9 of it: check model_revision"):
        require_model("some/tiny", "v9")


def plan_sweep_of(model: str) -> None:
    plan_here("recipes/demo.yaml", {"model_name_or_path": [model], "train_file": [__file__]}, 1)


ENTRIES = {
    "load_tokenizer": load_tokenizer,
    "load_model": lambda model: load_model(ModelConfig(model)),
    "merge": local_folder,
    "sweep.py": plan_sweep_of,
    "train_sft.py": require_model,
}


@pytest.mark.parametrize("enter", ENTRIES.values(), ids=ENTRIES)
def test_every_way_in_says_the_same_where_nobody_listens(nobody_listens, enter):
    name = "internlm2_5-7b-chat"
    said = rf"it is not in the hub's cache, and {nobody_listens} cannot be reached \(.*refused\): correct HF_ENDPOINT, "
    said += r"or name a local folder, set a mirror \(HF_ENDPOINT=https://hf-mirror.com\), or get it from ModelScope .*"
    with pytest.raises(UserError, match=said + MODELSCOPE.format(f"Shanghai_AI_Laboratory/{name}", name)):
        enter(f"internlm/{name}")


@pytest.mark.parametrize(
    "enter", [hub.require_data_set, lambda name: Digests().of_data(name, None)], ids=["hub", "run"]
)
def test_a_data_set_of_the_hub_is_refused_in_the_same_way(nobody_listens, enter):
    said = r"it is not in the cache of data sets, and .* modelscope download --dataset some/rows --local_dir data/rows"
    with pytest.raises(UserError, match=f"^some/rows: {said}"):
        enter("some/rows:train")


def test_a_verb_on_a_data_set_of_the_hub_says_so_too(nobody_listens, capsys):
    assert main(["inspect", "some/rows"]) == 2
    assert "some/rows: it is not in the cache of data sets" in capsys.readouterr().err


def test_with_the_offline_flag_nothing_is_asked(serve, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="it is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, or name"):
        require_model("some/tiny")
    assert serve.asked == []


def test_what_can_be_no_id_is_asked_of_nobody(serve, tmp_path):
    for name in (str(tmp_path / "none"), "a/b/c", "../none", "models/nowhere"):
        with pytest.raises(UserError, match="no such folder"):
            require_model(name)
    assert serve.asked == []


def test_a_model_is_downloaded_and_then_loads_from_the_cache_without_a_network(serve, capsys):
    settings = ModelConfig("some/tiny")
    require_model("some/tiny")
    assert load_tokenizer("some/tiny").get_vocab()
    load_model(settings)
    serve.shutdown()
    serve.server_close()
    hub._obstacle.cache_clear()
    require_model("some/tiny")
    assert "cannot be reached" in capsys.readouterr().out
    assert constants.HF_HUB_OFFLINE
    assert load_tokenizer("some/tiny").chat_template
    load_model(settings)
    assert (local_folder("some/tiny") / "model.safetensors").is_file()


def test_a_model_that_is_only_partly_in_the_cache_is_not_loaded_without_a_network(serve):
    folder = local_folder("some/tiny")
    serve.shutdown()
    serve.server_close()
    hub._obstacle.cache_clear()
    os.remove(folder / "model.safetensors")
    load_tokenizer("some/tiny")
    with pytest.raises(UserError, match=r"the hub's cache has it only in part \(holds no weights .*\), and http"):
        load_model(ModelConfig("some/tiny"))


def test_a_download_that_breaks_off_says_that_it_can_be_resumed(serve, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the stack's own attempts
    with pytest.raises(UserError, match=r"^some/cut: the download from http.* broke off \(.*\): run the same command"):
        local_folder("some/cut")


def test_a_full_disk_is_named_with_the_cache_that_is_on_it(serve):
    """The kernel's own file for it."""
    said = r"^some/tiny: the disk is full, and the hub's cache is on it .* set HF_HOME"
    with pytest.raises(UserError, match=said), hub.downloading("some/tiny"), open("/dev/full", "w") as file:
        file.write("x" * 100_000)
