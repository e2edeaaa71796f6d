"""The preview shows just what the trainer gets: the same tokens, the same loss, the same seams."""

import os
import re
import subprocess
import sys

import pytest

from data_tools.__main__ import main
from sft.config.load import load_recipe
from sft.core.paths import REPOSITORY
from sft.data.dataset import IGNORED, load_dataset
from tests.support.conversations import CONVERSATIONS


@pytest.fixture
def preview(write_recipe, capsys):
    def run(*options, code=0, **keys) -> str:
        assert main(["preview", str(write_recipe(**keys)), *map(str, options)]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


def test_a_rows_text_is_the_templates_with_each_answer_marked(preview):
    said = preview("--row", 2)
    assert "train.jsonl:2: " in said
    for question, answer in CONVERSATIONS[1]:
        assert f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in said


def test_a_packs_numbers_are_the_trainers_and_its_samples_add_up(preview, write_recipe, tokenizer):
    packs, _ = load_dataset(load_recipe([str(write_recipe())]), tokenizer)
    for column in ("input_ids", "labels"):
        numbers = preview("--pack", 2, "--show", column).splitlines()[1]
        assert [int(number) for number in numbers.split()] == packs[1][column]
    seams = re.findall(r"sample \d+ of \d+: tokens (\d+)-(\d+), positions 0-(\d+)", preview("--pack", 2))
    lengths = packs[1]["seq_lengths"]
    assert [int(end) - int(start) + 1 for start, end, _ in seams] == lengths
    assert [int(last) + 1 for _, _, last in seams] == lengths


def test_masked_text_counts_the_masked_tokens(preview, write_recipe, tokenizer):
    packs, _ = load_dataset(load_recipe([str(write_recipe())]), tokenizer)
    said = preview("--pack", 1, "--show", "masked_text")
    masked = sum(map(int, re.findall(r"\[-100 x (\d+)\]", said)))
    assert masked == sum(label == IGNORED for label in packs[0]["labels"])
    assert "user\n" not in said


def test_wrapped_packs_say_that_their_samples_run_on(preview):
    said = preview(packing_strategy="wrapped")
    assert "cut from samples that run on and see each other" in said
    assert "由首尾相接、彼此可见的样本切成" in said
    assert "sequence 1 of 40" in preview(packing=False)


def test_a_row_longer_than_max_length_says_what_becomes_of_it(preview):
    lengths = [int(re.search(r": (\d+) tokens", preview("--row", row))[1]) for row in range(1, 6)]
    limit = max(lengths) - 1
    for row, length in enumerate(lengths, start=1):
        said = preview("--row", row, max_length=limit, truncation="drop")
        assert (f"over max_length {limit} (truncation: drop)" in said) == (length > limit)


def test_the_page_marks_the_supervised_tokens_and_escapes_the_rest(preview, tmp_path, train_file):
    evil = tmp_path / "evil.jsonl"
    evil.write_text('{"conversation": [{"input": "<script>1</script>", "output": "<b>2</b>"}]}\n' * 3)
    page = tmp_path / "page.html"
    preview("--html", page, train_file=str(evil))
    text = page.read_text(encoding="utf-8")
    assert "<script>1" not in text
    assert "<b>" not in text
    assert re.search(r'<mark title="[\d ]+">&lt;b&gt;2&lt;/b&gt;</mark>', text)
    assert text.count('class="sample"') == int(re.search(r"(\d+) samples", text)[1])


ENGLISH = ("row 2: ", "tokens 0-", "Loss falls on what is marked", "The whole file", "longest sample", "supervised")
CHINESE = ("第 2 行：", "token 0-", "只有这样标出的监督 token 计算损失", "全部数据", "最长样本", "监督")


@pytest.mark.parametrize("language", ["zh", "en", None], ids=["zh", "en", "both"])
def test_title_and_page_are_in_the_language_or_in_both(preview, tmp_path, monkeypatch, language):
    monkeypatch.setenv("LANGUAGE", "C")
    page = tmp_path / "page.html"
    said = preview("--row", 2, "--html", page, *(["--language", language] if language else []))
    shown = page.read_text(encoding="utf-8")
    for words, is_shown in ((ENGLISH, language != "zh"), (CHINESE, language != "en")):
        assert (words[0] in said, words[1] in said) == (is_shown, is_shown)
        assert [word in shown for word in words] == [is_shown] * len(words)


@pytest.mark.parametrize(("option", "number"), [("--row", 0), ("--row", 41), ("--pack", 999), ("--pack", -1)])
def test_a_number_that_is_not_there_is_refused(preview, option, number):
    assert f"{option} {number}: there are " in preview(option, number, code=2)


def test_a_recipe_for_a_gpu_can_be_looked_at_without_one(preview):
    said = preview("--row", 1, fp16=True, dtype="float16", deepspeed="ds_configs/zero2.json")
    assert "train.jsonl:1" in said


def test_it_says_nothing_but_the_preview(write_recipe):
    command = [sys.executable, "-m", "data_tools", "preview", str(write_recipe()), "--row", "1"]
    english = os.environ | {"LANGUAGE": "en"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=english)
    assert done.returncode == 0
    assert done.stderr.removeprefix("loading PyTorch and Transformers\n") == ""
    assert done.stdout.startswith("row 1: ")
