"""An adapter says how strongly it counts, and remembers the base model it was trained on."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sft.core.errors import UserError
from sft.models.adapter import BASE_RECORD, lora_scale, read_fingerprint, scale_line
from sft.models.weight_files import WeightFiles


@pytest.mark.parametrize("is_rslora", [False, True])
def test_the_scale_is_the_one_that_peft_multiplies_with(tiny_model, is_rslora):
    config = LoraConfig(r=16, lora_alpha=24, target_modules=["q_proj"], use_rslora=is_rslora, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    scaling = model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert lora_scale(24, 16, is_rslora=is_rslora) == scaling
    assert scale_line(24, 16, is_rslora=is_rslora).endswith(f"= {scaling:g}")


def test_the_fingerprint_is_written_beside_every_adapter_of_a_run(make_trainer, tiny_model, tmp_path):
    trainer, _ = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-2"):
        assert read_fingerprint(folder) == WeightFiles(tiny_model).fingerprint()
        assert json.loads((folder / BASE_RECORD).read_text())["name"] == str(tiny_model)


def test_a_broken_record_is_reported(tmp_path):
    (tmp_path / BASE_RECORD).write_text("[")
    with pytest.raises(UserError, match=r"base_model\.json: cannot be read"):
        read_fingerprint(tmp_path)
    assert read_fingerprint(tmp_path / "none") is None
