"""What a person names to be asked is found and loaded: a model, an adapter, a run, in every precision."""

import bitsandbytes
import pytest
import torch
from peft import PeftModel

from model_tools.chatting.conversation import load_named_model
from model_tools.checkpoints.model_folder import local_folder, resolve_model
from sft.core.errors import UserError
from sft.training import final_model


@pytest.fixture
def run(make_trainer, tmp_path):
    """A run directory with an untrained adapter in its final/."""
    trainer, card = make_trainer()
    final_model.save_final(trainer, card, [])
    return tmp_path / "run"


def test_a_run_an_adapter_and_a_base_with_an_adapter_come_to_the_same(run, tiny_model):
    final = run / "final"
    named = [resolve_model(str(run)), resolve_model(str(final)), resolve_model(str(tiny_model), str(run))]
    assert len(set(named)) == 1
    assert (named[0].base, named[0].adapter, named[0].tokenizer) == (str(tiny_model), final, str(final))
    assert resolve_model(str(tiny_model)).adapter is None


@pytest.mark.parametrize(
    ("bits", "layer"), [(4, bitsandbytes.nn.Linear4bit), (8, bitsandbytes.nn.Linear8bitLt), (16, torch.nn.Linear)]
)
def test_every_precision_loads_and_answers(run, bits, layer):
    model, tokenizer = load_named_model(resolve_model(str(run)), bits)
    assert isinstance(model, PeftModel)
    assert not model.training
    assert isinstance(model.base_model.model.model.layers[0].mlp.up_proj.base_layer, layer)
    ids = tokenizer("Who?", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_what_is_no_adapter_or_two_of_them_is_refused(run, tiny_model, tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        resolve_model(str(tiny_model), str(tmp_path))
    with pytest.raises(UserError, match="is an adapter itself"):
        resolve_model(str(run), str(run))
    with pytest.raises(UserError, match=r"holds no config\.json"):
        local_folder(str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing: it is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        local_folder("nobody/nothing")
