"""From rows to packs: nothing is lost without a word, and the card's account adds up."""

import json

import datasets
import numpy
import pytest
import trl
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from sft.config.load import load_recipe
from sft.core.errors import RunFailed, UserError
from sft.data import dataset
from sft.data.dataset import IGNORED, count_repeated, count_steps, file_of, load_dataset, mark_supervised
from sft.data.rows.formats import read_rows
from sft.evaluation.diagnosis import warnings_before_training
from tests.support.both_languages import english
from tests.support.chat_templates import THINKING, with_controls
from tests.support.conversations import CONVERSATIONS, xtuner_row
from tests.support.encoding import MARKED, encode_one_by_one


@pytest.fixture
def load(write_recipe, tokenizer):
    def run(**keys):
        return load_dataset(load_recipe([str(write_recipe(**keys))]), tokenizer)

    return run


@pytest.fixture
def with_long_row(tmp_path):
    """A file of three short rows and, on line 3, one whose answer is far over 256 tokens."""
    path = tmp_path / "long.jsonl"
    turns = [*CONVERSATIONS[:2], [("Count.", "one two three four " * 100)], CONVERSATIONS[2]]
    path.write_text(
        "".join(json.dumps(xtuner_row(turn), ensure_ascii=False) + "\n" for turn in turns), encoding="utf-8"
    )
    return path


def lengths(dataset) -> numpy.ndarray:
    return numpy.array([len(ids) for ids in dataset["input_ids"]])


@pytest.mark.parametrize(
    "keys", [{}, {"packing_strategy": "bfd_split"}, {"packing_strategy": "wrapped"}, {"packing": False}]
)
def test_every_token_that_comes_in_goes_out(load, keys):
    sequences, card = load(**keys)
    supervised = sum(label != IGNORED for labels in sequences["labels"] for label in labels)
    assert (card.rows, card.samples, card.samples_dropped, card.tokens_lost) == (40, 40, 0, 0)
    assert lengths(sequences).sum() == card.tokens
    assert supervised == card.supervised_tokens
    assert card.packs == len(sequences)


def test_a_table_by_its_columns_makes_the_same_packs_and_says_how_it_was_read(load, tmp_path):
    pairs = [(f"你是谁{number}", f"我是黄大力，第{number}个。") for number in range(30)]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(xtuner_row([pair])) + "\n" for pair in pairs))
    table = tmp_path / "客服.csv"
    table.write_bytes(("编号;用户;客服\r\n" + "".join(f"{q[3:]};{q};{a}\r\n" for q, a in pairs)).encode("gbk"))
    columns = {"question": "用户", "answer": "客服"}
    expected, _ = load(train_file=str(lines))
    for keys in (
        {"train_file": str(table), "columns": columns},
        {"train_file": [{"path": str(table), "columns": columns}], "columns": {"question": "other", "answer": "none"}},
    ):
        packs, card = load(**keys)
        assert packs["input_ids"][:] == expected["input_ids"][:]
        assert f"file           {table} (CSV, GB18030, separated by semicolons)" in card.lines()
        assert f"unused keys    in 30 samples, not trained on; the first is {table}:2: 编号" in card.lines()
    with pytest.raises(
        UserError, match=r"客服\.csv:1: there is no 用户 名, which columns names; there is 编号, 用户, 客服"
    ):
        load(train_file=str(table), columns={"question": "用户 名", "answer": "客服"})
    with pytest.raises(UserError, match="columns: name: a row holds question, answer"):
        load(train_file=str(table), columns={"name": "用户"})


def test_packs_hold_whole_samples_up_to_max_length(load):
    packs, card = load(shuffle_dataset=True)
    assert max(lengths(packs)) <= 256
    assert [sum(pack) for pack in packs["seq_lengths"]] == lengths(packs).tolist()
    assert sum(len(pack) for pack in packs["seq_lengths"]) == card.samples
    assert card.pack_fill == pytest.approx(card.tokens / (256 * len(packs)))
    assert card.padding_share == 0


def test_wrapped_packing_fills_every_pack_and_cuts_samples_as_xtuner_does(load):
    packs, card = load(packing_strategy="wrapped")
    assert any("see each other" in line for line in card.lines())
    assert set(lengths(packs)[:-1]) == {256}


def test_a_sample_over_max_length_stops_the_run_with_its_line(load, with_long_row):
    with pytest.raises(UserError, match=r"long\.jsonl:3: [\d,]+ tokens, over max_length 256 \(1 such rows"):
        load(train_file=str(with_long_row))


def test_drop_leaves_long_samples_out_and_counts_them(load, with_long_row):
    _, card = load(train_file=str(with_long_row), truncation="drop")
    assert (card.rows, card.samples, card.samples_dropped, card.samples_over_max_length) == (4, 3, 1, 1)
    assert card.tokens_lost == card.longest_sample
    assert card.supervised_tokens_lost > 0


def test_keep_start_cuts_long_samples_and_counts_the_tokens(load, with_long_row):
    sequences, card = load(train_file=str(with_long_row), truncation="keep_start", packing=False)
    assert max(lengths(sequences)) == 256
    assert (card.samples, card.samples_dropped) == (4, 0)
    assert card.tokens_lost == card.longest_sample - 256


def test_a_row_whose_start_bears_no_loss_is_left_out_and_counted(load, with_long_row):
    question = xtuner_row([("word " * 300, "Too late.")])
    with_long_row.write_text(json.dumps(question) + "\n" + with_long_row.read_text(encoding="utf-8"), encoding="utf-8")
    sequences, card = load(train_file=str(with_long_row), truncation="keep_start")
    assert (card.rows, card.samples, card.samples_dropped, card.samples_over_max_length) == (5, 4, 1, 2)
    assert card.tokens - card.tokens_lost == lengths(sequences).sum()
    supervised = sum(label != IGNORED for labels in sequences["labels"] for label in labels)
    assert card.supervised_tokens - card.supervised_tokens_lost == supervised


def test_packing_that_splits_long_samples_loses_nothing(load, with_long_row):
    _, card = load(train_file=str(with_long_row), packing_strategy="bfd_split")
    assert (card.samples_over_max_length, card.tokens_lost) == (1, 0)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packs_are_trls_own_of_the_shuffled_samples(load, train_file, tokenizer, strategy):
    conversations = [row["messages"] for _, row in read_rows(train_file)]
    samples = encode_one_by_one(tokenizer, MARKED["smollm2"], conversations)
    plain = datasets.Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in samples])
    expected = trl.pack_dataset(plain.shuffle(seed=42), 256, strategy)
    packs, _ = load(packing_strategy=strategy, shuffle_dataset=True, seed=42)
    assert packs.to_dict() == expected.to_dict()


@pytest.mark.parametrize("keys", [{}, {"truncation": "keep_start", "max_length": 150}])
def test_packs_are_made_once_and_kept(load, tmp_path, monkeypatch, keys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}

    packs, _ = load(shuffle_dataset=True, **keys)
    first = kept()
    again, _ = load(shuffle_dataset=True, **keys)
    assert kept() == first
    assert again.to_dict() == packs.to_dict()
    load(shuffle_dataset=True, seed=7, **keys)
    assert len(kept()) > len(first)


def test_nothing_left_to_train_on_is_refused(load):
    with pytest.raises(UserError, match="no sample is left"):
        load(max_length=8, truncation="drop")


def test_a_bad_row_is_named_through_the_loader(load, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"conversation": [{"input": "xxx", "output": "a"}]}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:1: .*placeholder"):
        load(train_file=str(path))


def test_a_changed_file_is_read_anew_and_not_from_the_cache(load, tmp_path):
    path = tmp_path / "changing.jsonl"
    for count in (2, 3):
        path.write_text((json.dumps(xtuner_row(CONVERSATIONS[0])) + "\n") * count)
        assert load(train_file=str(path))[1].rows == count


def test_padding_share_is_what_the_collator_pads(load):
    sequences, card = load(packing=False, per_device_train_batch_size=8)
    batches = numpy.split(lengths(sequences), range(8, 40, 8))
    padded = sum(8 * batch.max() for batch in batches)
    assert card.padding_share == pytest.approx(1 - card.tokens / padded)


def test_the_first_sample_is_shown_with_its_supervised_part_marked(load, tokenizer):
    _, card = load()
    question, answer = CONVERSATIONS[0][0]
    assert card.first_sample.endswith(f"user\n{question}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧\n")
    assert mark_supervised(tokenizer, [], []) == ""
    assert all(len(line) < 400 for line in card.lines())


@pytest.mark.parametrize(
    "keys",
    [
        {"num_train_epochs": 2, "max_steps": -1},
        {"num_train_epochs": 1.5, "max_steps": -1, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 3, "packing": False},
        {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 3, "dataloader_drop_last": True},
        {"max_steps": 5},
    ],
)  # fmt: skip
def test_the_steps_on_the_card_are_the_steps_the_trainer_takes(make_trainer, keys):
    trainer, card = make_trainer(**keys)
    trainer.train()
    assert trainer.state.global_step == card.total_steps


def test_control_tokens_in_a_text_are_counted_told_or_refused(load, tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    asked = ["plain", "x<|im_end|>\n<|im_start|>assistant\nyes", "also plain", "<|endoftext|>"]
    path.write_text("".join(json.dumps(xtuner_row([(text, "yes")])) + "\n" for text in asked))
    _, card = load(train_file=str(path))
    assert card.rows_with_control_tokens == 2
    assert card.first_control_token == f"{path}:2: <|im_end|>"
    warned = warnings_before_training(load_recipe([str(tmp_path / "tiny.yaml")]), tokenizer, card)
    [first, *_] = english(warned)
    assert first.wrong == "2 rows contain a control token of the model in their text"
    assert first.evidence[0] == f"the first: {path}:2: <|im_end|>"
    with pytest.raises(UserError, match=r"rows\.jsonl:2: <\|im_end\|> stands in the text of this row \(2 such rows\)"):
        load(train_file=str(path), control_tokens="refuse")
    assert load(control_tokens="refuse")[1].rows_with_control_tokens == 0


def test_a_run_of_no_step_is_refused(load, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(xtuner_row([(f"q{number}", "yes")])) + "\n" for number in range(5)))
    keys = {"train_file": str(few), "packing": False, "max_steps": -1, "per_device_train_batch_size": 8}
    assert load(**keys)[1].total_steps == 3
    with pytest.raises(UserError, match="dataloader_drop_last: 5 sequences cannot fill a batch of 8 for each of 1 pro"):
        load(**keys, dataloader_drop_last=True)


def test_a_trainer_that_takes_no_step_does_not_end_as_if_it_had(make_trainer):
    trainer, _ = make_trainer(max_steps=-1, num_train_epochs=1, on_bad_step="warn")
    trainer.args.num_train_epochs = 0
    with pytest.raises(RunFailed, match="no step was trained"):
        trainer.train()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_steps_and_repeated_samples_are_those_that_accelerate_deals_to_processes(
    write_recipe, monkeypatch, drop_last, size
):
    recipe = load_recipe([str(write_recipe(max_steps=-1, num_train_epochs=1))])
    training = recipe.training
    training.per_device_train_batch_size, training.dataloader_drop_last = size, drop_last
    for processes in (1, 2, 3):
        training.distributed_state.num_processes = processes
        for sequences in range(size * processes, 25):
            batches = BatchSampler(range(sequences), size, drop_last)
            shards = [list(BatchSamplerShard(batches, processes, rank)) if processes > 1 else list(batches)
                      for rank in range(processes)]  # fmt: skip
            dealt = [row for shard in shards for batch in shard for row in batch]
            assert count_steps(sequences, recipe) == (len(shards[0]), len(shards[0]))
            assert count_repeated(sequences, training) == len(dealt) - len(set(dealt))
    training.distributed_state.num_processes = 1


def test_repeated_samples_are_on_the_card(load, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, card = load(packing=False, per_device_train_batch_size=3)
    assert card.repeated == 2
    assert any(
        line.startswith("repeated       2 of the sequences of every epoch, so that each") for line in card.lines()
    )
    monkeypatch.delenv("WORLD_SIZE")
    assert not any(line.startswith("repeated") for line in load(packing=False)[1].lines())


@pytest.fixture
def two_files(tmp_path):
    """Ten rows that ask a0, a1, ... in one file and ten that ask b0, b1, ... in another."""
    for name in "ab":
        rows = [xtuner_row([(f"{name}{number}", "yes")]) for number in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_several_files_are_taken_by_weight_and_the_card_accounts_for_each(load, two_files, tokenizer):
    files = [{"path": str(two_files / "a.jsonl")}, {"path": str(two_files / "b.jsonl"), "weight": 0.3}]
    sequences, card = load(train_file=files, packing=False)
    texts = [tokenizer.decode(ids) for ids in sequences["input_ids"]]
    asked = sorted(text.partition("user\n")[2][:2] for text in texts)
    assert card.rows == card.samples == len(texts) == 13
    assert asked[:10] == [f"a{number}" for number in range(10)]
    assert len(set(asked)) == 13
    assert [(file["rows"], file["taken"]) for file in card.files] == [(10, 10), (10, 3)]
    assert any("3 of 10 rows (weight 0.3)" in line for line in card.lines())
    assert load(train_file=files, packing=False)[0]["input_ids"] == sequences["input_ids"]


def test_rows_that_were_drawn_before_are_drawn_again_whatever_is_drawn_after_them(load, two_files, monkeypatch):
    mixed = [{"path": str(two_files / "b.jsonl"), "weight": 0.3}, {"path": str(two_files / "a.jsonl"), "weight": 0.5}]
    first, _ = load(train_file=mixed, packing=False)
    monkeypatch.setattr(dataset, "draw", None)
    again, _ = load(train_file=mixed, packing=False)
    assert again[:] == first[:]
    with pytest.raises(TypeError):
        load(train_file=mixed, packing=False, seed=7)


def test_a_weight_of_two_takes_every_row_twice(load, two_files):
    sequences, card = load(train_file=[{"path": str(two_files / "b.jsonl"), "weight": 2}], packing=False)
    assert card.samples == 20
    assert len({tuple(ids) for ids in sequences["input_ids"]}) == 10


def test_a_sample_too_long_is_named_in_the_file_it_stands_in(load, train_file, with_long_row):
    with pytest.raises(UserError) as error:
        load(train_file=[{"path": str(train_file)}, {"path": str(with_long_row)}])
    assert str(error.value).startswith(f"{with_long_row}:3: ")
    with pytest.raises(UserError) as error:
        load(train_file=[{"path": str(train_file), "weight": 0.3}, {"path": str(with_long_row), "weight": 2}])
    assert str(error.value).startswith(f"{with_long_row}:3: ")


def test_each_row_is_known_by_its_file():
    files = [{"path": name, "samples": samples} for name, samples in (("a", 2), ("none", 0), ("b", 1))]
    assert [file_of(files, row) for row in range(3)] == ["a", "a", "b"]


def test_a_row_of_several_samples_is_counted_and_weighed_as_a_row(write_recipe, tokenizer, tmp_path):
    def messages(answers: int) -> list[dict]:
        return [
            {"role": role, "content": f"{role} {number}"} for number in range(answers) for role in ("user", "assistant")
        ]

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": messages(1 + number % 3)}) + "\n" for number in range(30)))
    copy = with_controls(tokenizer, THINKING, {})

    def card_of(**keys):
        return load_dataset(load_recipe([str(write_recipe(**keys))]), copy)[1]

    card = card_of(train_file=str(path))
    assert (card.rows, card.samples_made, card.samples, card.answers) == (30, 60, 60, 60)
    assert (
        "rows           30 -> 60 samples, one for each answer that history shows otherwise (split_turns)"
        in "\n".join(card.lines())
    )
    assert card_of(train_file=str(path), split_turns=False).samples_made == 30
    assert card_of(train_file=str(path), loss_on="last_answer").samples_made == 30
    half = card_of(train_file=[{"path": str(path), "weight": 0.5}])
    assert (half.rows, half.files[0]["rows"], half.files[0]["taken"]) == (15, 30, 15)
    assert half.files[0]["samples"] == half.samples_made == half.answers
    twice = card_of(train_file=[{"path": str(path), "weight": 2}])
    assert (twice.rows, twice.samples_made) == (60, 120)
