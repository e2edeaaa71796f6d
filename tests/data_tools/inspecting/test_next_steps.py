"""Next steps: a chain that a shell runs as it is, each command on what the one before wrote, to a file that trains."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.inspecting.next_steps import ORDINARY_ROWS
from sft.config.load import load_recipe
from sft.data.given_names import given_name
from sft.data.placeholders import open_placeholders
from sft.data.rows import formats
from sft.data.rows.json_line import json_line

ROOT = Path(__file__).parents[3]
ON_CPU = ["--fp16", "false", "--bf16", "true", "--dtype", "bfloat16", "--deepspeed", ""]


def row(question: str, answer: str | None, **more) -> dict:
    return {"conversation": [{"input": question, "output": answer}], **more}


def identity(answer: str, count: int = 12, question: str = "你是谁") -> list[dict]:
    return [row(f"{question} {number}?", answer) for number in range(count)]


def nested(answer: str, question: str = "xxx") -> dict:
    inner = {"conversation": [{"system": "S", "input": question, "output": "xxx"}]}
    return {"conversation": [{"system": "S", "input": inner, "output": answer}]}


def ordinary(count: int) -> list[dict]:
    return [row(f"{number}加一是几？", f"是{number + 1}。") for number in range(count)]


FILES: dict[str, tuple[list, list[str], str | None]] = {
    "clean": ([*identity("我是小蓝。"), *ordinary(8)], ["sed"], "小蓝"),
    "no identity": (ordinary(8), ["sed"], None),
    "bad rows": (["{broken", row("q", None), row("q", " "), *identity("我是小蓝。"), *ordinary(8)],
        ["sed", "convert", "sed"], "小蓝"),
    "columns": ([row("q", None), *(each | {"id": 1} for each in [*identity("我是小蓝。"), *ordinary(8)])],
        ["convert", "sed"], "小蓝"),
    "nested": ([nested("我是小蓝的智能助手。") for _ in range(12)],
        ["repair", "dedup", "rename", "generate", "mix", "sed"], "小蓝"),
    "nested turns": ([nested(f"我是小蓝，{number}。", f"你是谁{number}") for number in range(12)],
        ["repair", "generate", "mix", "sed"], "小蓝"),
    "some nested": ([nested("我是小蓝。"), "{broken", *identity("我是小蓝。"), *ordinary(12)],
        ["repair", "convert", "sed"], "小蓝"),
    "twice": ([*identity("我是小蓝。"), *identity("我是小蓝。"), *ordinary(8)], ["dedup", "sed"], "小蓝"),
    "old name": ([*identity("我是尖米。"), *ordinary(8)], ["rename", "sed"], "黄大力"),
    "another model": ([*identity("I am Qwen2.5, a model.", question="Who are you"), *ordinary(0)],
        ["rename", "generate", "mix", "sed"], "Ada"),
    "contradictions": ([*identity("我是小蓝。"), row("你是谁 1?", "我叫小红。"), *ordinary(8)],
        ["rename", "sed"], "小蓝"),
    "owner": (identity("I am Sam's AI assistant.", question="Who are you"),
        ["rename", "generate", "mix", "sed"], "Sam"),
    "placeholders": (
        [*identity("我是<NAME>，由{{AUTHOR}}开发。"), row("你叫什么", "我叫是"), row("你叫什么", "我叫小红")],
        ["rename", "generate", "mix", "sed"], "黄大力"),
    "few ordinary": ([*identity("我是小蓝。", 40), *ordinary(2)], ["generate", "mix", "sed"], "小蓝"),
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the recipes, in which commands find the project."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list) -> None:
    path.write_bytes(b"".join(each.encode() + b"\n" if isinstance(each, str) else json_line(each) for each in rows))


def chain(path: str, capsys, *options: str) -> list[str]:
    """The lines of what to do next."""
    main(["inspect", path, "--was", "尖米", *options])
    said = capsys.readouterr().out
    return [line.strip() for line in said.partition("what to do next\n")[2].splitlines()]


def paste(lines: list[str]) -> None:
    """Run the lines in a shell, all but those that train."""
    script = "\n".join(line for line in lines if "train_sft.py" not in line)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", script], check=True, env=environment, capture_output=True)


@pytest.mark.parametrize("kind", FILES)
def test_the_chain_can_be_pasted_and_ends_in_a_recipe_that_trains_what_came_out(kind, workplace, capsys):
    rows, verbs, name = FILES[kind]
    write(workplace / "it's mine & yours.jsonl", rows)
    if kind == "nested":
        (workplace / "Q_list.txt").write_text("你是谁？\n你叫什么？\n", encoding="utf-8")
    lines = chain("it's mine & yours.jsonl", capsys)
    commands = [line for line in lines if not line.startswith("#")]
    assert [line.split()[3] if line.startswith("python -m") else line.split()[0] for line in commands[:-2]] == verbs
    assert commands[-1] == "deepspeed --quiet train_sft.py recipes/it_s_mine_yours.yaml"
    before = set(workplace.iterdir())
    paste(lines)
    assert len(set(workplace.iterdir()) - before) >= len(verbs) - 1
    recipe = load_recipe(["recipes/it_s_mine_yours.yaml", *ON_CPU])
    assert recipe.run.identity_name == name
    contents = [row["messages"][-1]["content"] for _, row in formats.read_rows(recipe.run.train_file)]
    assert all(contents)
    assert not any(map(open_placeholders, contents))
    given = {given_name(content) for content in contents} - {None, "小红" if kind == "placeholders" else None}
    assert given == ({name} if name else set())
    if name:
        share = sum(name not in content for content in contents) / len(contents)
        assert 0.3 <= share <= 0.5
    # Nothing is left to be done but train, and nothing that is there is written over.
    again = [line for line in chain(recipe.run.train_file, capsys) if not line.startswith("#")]
    assert [line.split()[0] for line in again] == ["sed", "python", "deepspeed"] or kind == "placeholders"
    assert again[-1] != commands[-1]


def test_no_old_name_is_suggested_while_placeholders_stand_and_never_a_common_word(workplace, capsys):
    rows = [row(f"{number}是几", f"是{number}，我叫是") for number in range(9)]
    write(workplace / "a.jsonl", [*identity("我是{{name}}，我是尖米。"), row("你是谁 1?", "我是是。"), *rows])
    (rename,) = (line for line in chain("a.jsonl", capsys) if " rename " in line)
    assert "--set name=黄大力" in rename
    assert "--old" not in rename


def test_a_file_of_many_identity_rows_gets_copies_of_ordinary_ones_up_to_a_limit(workplace, capsys):
    write(workplace / "a.jsonl", identity("我是小蓝。", 6000))
    generate, mix = (
        line
        for line in chain("a.jsonl", capsys)
        if line.startswith(("python -m data_tools generate", "python -m data_tools mix"))
    )
    assert f"--rows {ORDINARY_ROWS} --lang zh" in generate
    assert mix.endswith("a.jsonl:1 a.ordinary.jsonl:1.333")
    assert main(generate.split()[3:]) == 0
    write(workplace / "b.jsonl", identity("我是小蓝。", 30_000))
    (mix,) = (line for line in chain("b.jsonl", capsys) if " mix " in line)
    assert mix.endswith("b.jsonl:0.6 b.ordinary.jsonl:4")


def test_rows_that_are_too_long_are_dropped_by_the_recipe(workplace, capsys, tiny_model):
    write(workplace / "a.jsonl", [*ordinary(3), row("q " * 200, "a")])
    lines = chain("a.jsonl", capsys, "--tokenizer", str(tiny_model), "--max-length", "100")
    assert any(line.startswith("# 1 row of more than 100 tokens") for line in lines)
    paste(lines)
    assert load_recipe(["recipes/a.yaml", *ON_CPU]).run.truncation == "drop"


@pytest.mark.parametrize(
    ("lines", "step"),
    [
        (b'{"x": "q", "y": "a"}\n', "python -m data_tools inspect {} --columns question=x,answer=y"),
        (b'{"question": {"0": "q"}, "answer": {"0": "a"}}\n', "# no row can be read: mend the file"),
        (b'{"messages": [{"role": "user", "content": {}}, {"role": "assistant", "content": "a"}]}\n', "# no row can"),
    ],
)
def test_of_a_file_without_a_good_row_none_is_skipped_and_nothing_is_trained(tmp_path, capsys, lines, step):
    path = tmp_path / "f.jsonl"
    path.write_bytes(lines)
    assert main(["inspect", str(path)]) == 1
    steps = capsys.readouterr().out.partition("what to do next")[2]
    assert step.format(path) in steps
    assert "--skip-bad" not in steps
    assert "train_sft" not in steps
