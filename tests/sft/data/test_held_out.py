"""The held-out loss: the mean over every supervised token, and without a trace in the training."""

import json

import pytest
import torch

from sft.data.dataset import IGNORED
from sft.training.progress import ProgressLog
from tests.support.conversations import CONVERSATIONS, xtuner_row


@pytest.fixture
def eval_file(tmp_path):
    """Rows whose answers differ much in length, so that a mean over rows is not the mean over tokens."""
    path = tmp_path / "eval.jsonl"
    turns = [*CONVERSATIONS, [("Count.", "one two three four five " * 8)]]
    path.write_text("".join(json.dumps(xtuner_row(turn)) + "\n" for turn in turns))
    return path


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "one sample a sequence"])
def test_the_held_out_loss_is_the_mean_over_all_supervised_tokens(make_trainer, eval_file, packing):
    trainer, _ = make_trainer(eval_file=str(eval_file), packing=packing, max_length=256)
    losses, tokens = 0.0, 0
    for row in make_trainer(eval_file=str(eval_file), packing=False)[0].eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=ids, use_cache=False).logits
        losses += torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        tokens += sum(label != IGNORED for label in row["labels"])
    assert len(trainer.eval_dataset) > 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx((losses / tokens).item(), rel=1e-5)


def test_a_run_with_a_held_out_file_equals_bit_for_bit_one_without(make_trainer, eval_file, tmp_path):
    def train(**keys):
        trainer, _ = make_trainer(lora_dropout=0.1, max_steps=5, **keys)
        trainer.add_callback(ProgressLog(trainer))
        trainer.train()
        return {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}

    with_it = train(eval_file=str(eval_file), eval_strategy="steps", eval_steps=2)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}
    assert list(held_out) == [2, 4, 5]
    assert held_out[4] < held_out[2]
    without = train()
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_a_held_out_file_alone_is_evaluated_after_each_epoch(make_trainer, eval_file):
    trainer, _ = make_trainer(eval_file=str(eval_file), max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1.0, 2.0]
