"""An adapter says how strongly it counts, and remembers the base model it was trained on."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sft.core.errors import UserError
from sft.models.adapter import (
    BASE_RECORD,
    SYSTEM_MESSAGE,
    lora_scale,
    read_fingerprint,
    read_system_message,
    scale_line,
)
from sft.models.weight_files import WeightFiles
from sft.training.final_model import save_final
from tests.support.conversations import CONVERSATIONS, xtuner_row


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


def with_systems(path, systems: list[str | None]) -> str:
    rows = [xtuner_row(turns) for turns in CONVERSATIONS]
    for row, system in zip(rows, systems, strict=True):
        if system is not None:
            row["conversation"][0]["system"] = system
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_system_message_of_all_rows_is_written_beside_every_model_of_a_run(make_trainer, tmp_path, use_peft):
    system = "你是黄大力。\r\n  Be brief.\n"
    own = {"use_peft": use_peft, "learning_rate": 1e-4, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    # The first file's samples are kept from one load to the next; the fact is there both times.
    files = [{"path": with_systems(tmp_path / f"{name}.jsonl", [system] * 5), "weight": 0.7} for name in "ab"]
    for _ in range(2):
        trainer, card = make_trainer(train_file=files, **own)
        assert card.system_message == system
    assert "system message the same in every row: 你是黄大力。 Be brief." in card.lines()
    trainer.train()
    for folder in (tmp_path / "run" / "checkpoint-2", save_final(trainer, card, [])):
        assert read_system_message(folder) == system


@pytest.mark.parametrize("systems", [[None] * 5, ["x"] * 4 + [None], ["x"] * 4 + ["y"], [""] * 5])
def test_rows_with_no_or_with_different_system_messages_leave_none(make_trainer, tmp_path, systems):
    trainer, card = make_trainer(train_file=with_systems(tmp_path / "rows.jsonl", systems))
    assert not card.system_message
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / BASE_RECORD).exists()
    assert read_system_message(tmp_path / "saved") is None


def test_a_system_message_that_is_no_text_is_reported(tmp_path):
    (tmp_path / SYSTEM_MESSAGE).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"system_message\.txt: cannot be read"):
        read_system_message(tmp_path)
