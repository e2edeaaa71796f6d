"""The log of a run: one JSON line and one readable line per log step, whose figures add up."""

import json
import math

from sft.progress import ProgressLog, peak_memory


def test_log_jsonl_has_every_figure_and_tokens_add_up(make_trainer, tmp_path, capsys):
    trainer, card = make_trainer(num_train_epochs=1, max_steps=-1, logging_steps=2)
    trainer.add_callback(ProgressLog(trainer.args.output_dir))
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(2, card.total_steps + 1, 2))
    tokens = [sum(trainer.train_dataset[index]["seq_lengths"]) for index in range(card.packs)]
    assert records[-1]["tokens"] == sum(tokens) if card.packs % 2 == 0 else records[-1]["tokens"] < sum(tokens)
    for record in records:
        assert record["loss"] > 0
        assert record["grad_norm"] > 0
        assert record["tokens_per_second"] > 0
        assert 0 < record["peak_memory_gib"] * 2**30 < 2 * peak_memory()
    assert records[-1]["eta_seconds"] <= records[0]["eta_seconds"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == len(records)
    assert all(word in lines[0] for word in ("loss", "lr", "grad norm", "tokens/s", "GiB", "left"))


def test_a_loss_that_is_not_a_number_is_logged_as_such_in_valid_json(make_trainer, tmp_path):
    keys = {"max_grad_norm": 0, "logging_nan_inf_filter": False, "on_bad_step": "warn"}
    trainer, _ = make_trainer(max_steps=2, learning_rate=1e30, **keys)
    trainer.add_callback(ProgressLog(trainer.args.output_dir))
    trainer.train()
    text = (tmp_path / "run" / "log.jsonl").read_text()
    last = json.loads(text.splitlines()[-1], parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))
    assert last["loss"] in ("nan", "inf")
    assert not math.isfinite(float(last["loss"]))
