"""A file of torch.save gives its tensors and plain data; nothing in it is run, and what asks for more is refused."""

import builtins
import importlib
import os
import subprocess
from collections import OrderedDict, defaultdict, deque

import pytest
import torch

from sft.core.errors import UserError
from sft.models import restricted_pickle
from tests.support.malicious_pickle import Call
from tests.support.xtuner_files import mmengine, write_xtuner, xtuner_config

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older format"])


def save(content, path, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@FORMATS
def test_tensors_and_plain_data_come_back_as_they_were(tmp_path, is_zip):
    weight = torch.randn(3, 4).bfloat16()
    content = {
        "state": OrderedDict(weight=weight, again=weight[1:]),
        "plain": [1, 2.5, "text", None, True, (1, 2), {3}, 1 << 70],
        "kept": deque([1, 2], 4),
        "lists": defaultdict(list, a=[1]),
    }
    loaded = restricted_pickle.load_data(save(content, tmp_path / "file.pt", is_zip))
    assert loaded["plain"] == content["plain"]
    assert (loaded["kept"], loaded["lists"]) == ([1, 2], {"a": [1]})
    assert torch.equal(loaded["state"]["weight"], weight)
    assert torch.equal(loaded["state"]["again"], weight[1:])


@FORMATS
def test_what_mmengine_logs_beside_the_weights_stays_empty(tmp_path, is_zip):
    weight = torch.randn(2, 2)
    path = write_xtuner(tmp_path / "iter_1.pth", {"a": weight}, xtuner_config(tmp_path, 8), older_format=not is_zip)
    loaded = restricted_pickle.load_data(path)
    assert torch.equal(loaded["state_dict"]["a"], weight)
    assert "lora_alpha=16" in loaded["meta"]["cfg"]
    logged = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert type(logged) is restricted_pickle.Placeholder
    assert vars(logged) == {}


CALLS = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "subprocess": lambda mark: Call(subprocess.check_call, ["touch", str(mark)]),
    "getattr of a class that is data": lambda mark: Call(getattr, OrderedDict, "fromkeys"),
    "import": lambda mark: Call(builtins.__import__, "antigravity"),
    "import_module": lambda mark: Call(importlib.import_module, "antigravity"),
}


@FORMATS
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_of_anything_that_is_no_data_is_refused_and_not_made(tmp_path, call, is_zip):
    mark = tmp_path / "was_run"
    path = save({"state_dict": {}, "planted": call(mark)}, tmp_path / "file.pth", is_zip)
    with pytest.raises(UserError, match=r"file\.pth: asks for [a-z_.]+, which is no data; nothing of it was run"):
        restricted_pickle.load_data(path)
    assert not mark.exists()


def test_a_function_of_a_package_that_is_passed_over_is_not_run_either(tmp_path):
    """numpy's names are passed over because numbers stand in logs; one of its functions runs code it is given."""
    mark = tmp_path / "was_run"
    from numpy.testing._private.utils import runstring

    planted = Call(runstring, f"open({str(mark)!r}, 'w')", {})
    path = save({"planted": planted}, tmp_path / "file.pth")
    assert type(restricted_pickle.load_data(path)["planted"]) is restricted_pickle.Placeholder
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the payload does nothing, so that this test proves nothing"


def test_getattr_reaches_through_an_empty_object_to_nothing(tmp_path):
    """Pickles name a method by getattr of its class; of a class that is not there it is a name and no way further."""
    with mmengine():
        import mmengine.logging.history_buffer as module

        method = module.HistoryBuffer.current
        path = save({"reached": Call(getattr, method, "__globals__")}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"asks for builtins\.getattr"):
        restricted_pickle.load_data(path)


def test_inside_only_data_every_load_is_restricted_and_outside_all_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before, globals_before = dict(os.environ), torch.serialization.get_safe_globals()
    path = save({"planted": CALLS["os.system"](tmp_path / "was_run")}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="asks for"), restricted_pickle.only_data(path):
        torch.load(path, weights_only=False)
    assert not (tmp_path / "was_run").exists()
    assert dict(os.environ) == before
    assert set(torch.serialization.get_safe_globals()) == set(globals_before)


@pytest.mark.parametrize("kept", [0, 3, 400, 9000])
@FORMATS
def test_a_file_that_is_cut_short_is_told_in_one_line(tmp_path, is_zip, kept):
    path = save({"weight": torch.randn(4000)}, tmp_path / "file.pth", is_zip)
    os.truncate(path, kept)
    with pytest.raises(UserError, match=r"file\.pth: is damaged, or no file of weights \(.+\): copy") as told:
        restricted_pickle.load_data(path)
    assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_models_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "file.pt")
    with pytest.raises(UserError, match="is damaged, or no file of weights"):
        restricted_pickle.load_data(tmp_path / "file.pt")
