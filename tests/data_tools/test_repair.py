"""Repairing rows that nobody asked: questions come back by position, and every row is accounted for."""

import json
import re
from pathlib import Path

import pytest

from data_tools.__main__ import main
from sft.core.paths import REPOSITORY
from sft.data.rows.formats import read_rows

TUTORIAL = REPOSITORY.parent / "shared" / "data"
QUESTIONS = ["你知道你是人工智能吗?", "你有自我意识吗?", "Can you dream?"]


def broken(answer: str, nested: list | None = None) -> dict:
    inner = nested if nested is not None else [{"system": "S", "input": "xxx", "output": "xxx"}]
    return {"conversation": [{"system": "S", "input": {"conversation": inner}, "output": answer}]}


@pytest.fixture
def repair(tmp_path, capsys):
    """Write rows, repair them; returns the exit code, the rows that came out and what was said."""

    def run(rows: list, *arguments) -> tuple[int, list[dict], str]:
        source, out, questions = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "questions.txt"
        source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        questions.write_text("\n".join(QUESTIONS) + "\n\n", encoding="utf-8")
        code = main(["repair", str(source), str(out), "--questions", str(questions), *arguments])
        captured = capsys.readouterr()
        made = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, made, captured.out + captured.err

    return run


def test_row_i_gets_question_i_and_the_list_starts_again_at_its_end(repair):
    code, made, said = repair([broken(f"a{place}") for place in range(6)])
    assert code == 0
    assert [row["conversation"][0]["input"] for row in made] == QUESTIONS * 2
    assert [row["conversation"][0]["output"] for row in made] == [f"a{place}" for place in range(6)]
    assert made[0]["conversation"][0]["system"] == "S"
    assert "6 rows in" in said
    assert "6 rows out" in said
    assert "2 whole passes through 3 questions" in said
    assert all(f"row {place}: " in said for place in (1, 5, 6))
    assert "not checked: that each answer fits its question" in said


def test_rows_that_are_no_whole_number_of_passes_are_pointed_out(repair):
    _, _, said = repair([broken("a")] * 5)
    assert "1 whole pass and 2 rows more" in said
    assert "warning: the rows are no whole number of passes" in said


def test_rows_with_a_question_stay_as_they_are_and_keep_their_place(repair):
    good = {"conversation": [{"input": "q", "output": "a"}]}
    _, made, said = repair([broken("a"), good, broken("b")])
    assert made[1] == good
    assert made[2]["conversation"][0]["input"] == QUESTIONS[2]
    assert "1  left as they were" in said


def test_nested_turns_become_real_ones_and_placeholders_go(repair):
    nested = [{"input": "xxx", "output": "xxx"}, {"input": "q1", "output": "a1"}, {"input": "q2", "output": "xxx"}]
    _, made, said = repair([broken("a2", nested), broken("lost")], "--as", "turns")
    assert [row["conversation"] for row in made] == [[{"input": "q1", "output": "a1"}, {"input": "q2", "output": "a2"}]]
    assert "2 rows in" in said
    assert "1 row out" in said
    assert "1  skipped: no turn in them holds a question" in said


def test_a_mark_of_loss_stays_with_the_answer_it_is_about(repair):
    marked = broken("a", [{"input": "q", "output": "xxx", "output_with_loss": True}])
    marked["conversation"][0]["output_with_loss"] = False
    for way in (["--as", "turns"], ["--as", "repr"], []):
        _, [made], _ = repair([marked], *way)
        [turn] = made["conversation"]
        assert (turn["output"], turn["output_with_loss"]) == ("a", False)


def test_placeholder_turns_stay_where_they_are_asked_for(repair):
    _, made, _ = repair([broken("a")], "--as", "turns", "--keep-placeholders")
    assert made[0]["conversation"] == [{"system": "S", "input": "xxx", "output": "a"}]


def test_repr_is_what_xtuner_trained_on_to_the_byte(repair):
    row = broken('say "hi"\n', [{"system": "it's", "input": "xxx", "output": None}])
    _, made, _ = repair([row], "--as", "repr")
    asked = "{'conversation': [{'system': \"it's\", 'input': 'xxx', 'output': None}]}"
    assert made[0]["conversation"][0]["input"] == asked


def test_drop_leaves_such_rows_out_and_counts_them(repair):
    good = {"conversation": [{"input": "q", "output": "a"}]}
    _, made, said = repair([broken("a"), good], "--as", "drop")
    assert made == [good]
    assert "1  skipped: nobody asked their question" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([broken("a"), {"messages": []}], "in.jsonl:2: a row to repair is"),
        ([[1]], "in.jsonl:1: a row to repair is"),
        ([{"conversation": [*broken("a")["conversation"], *broken("b")["conversation"]]}], "in.jsonl:1: several turns"),
    ],
)
def test_a_row_it_cannot_mend_stops_it_and_no_file_is_left(repair, tmp_path, rows, said):
    code, made, heard = repair(rows)
    assert code == 2
    assert said in heard
    assert not made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "questions.txt"]


def test_of_very_many_rows_the_first_one_near_the_middle_and_the_last_are_shown(repair):
    code, made, said = repair([broken(f"a{place}") for place in range(20_000)])
    assert code == 0
    assert len(made) == 20_000
    shown = [int(number.replace(",", "")) for number in re.findall(r"^  row ([\d,]+):", said, re.MULTILINE)]
    assert (shown[0], shown[-1]) == (1, 20_000)
    assert shown[1] == pytest.approx(10_000, abs=20)


def test_missing_questions_and_writing_over_the_input_are_refused(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(broken("a")))
    assert main(["repair", str(source), str(tmp_path / "out")]) == 2
    assert "--questions: missing" in capsys.readouterr().err
    assert main(["repair", str(source), str(source), "--as", "drop"]) == 2
    assert "is an input as well" in capsys.readouterr().err


@pytest.mark.skipif(not TUTORIAL.is_dir(), reason="the tutorial's file is not at hand")
def test_the_tutorials_file_gets_all_its_questions_back_loses_its_old_name_and_is_accepted(tmp_path, capsys):
    asked = (TUTORIAL / "Q_list.txt").read_text(encoding="utf-8").split("\n")[:150]
    repaired, renamed = tmp_path / "repaired.jsonl", tmp_path / "renamed.jsonl"
    source, questions = TUTORIAL / "assistant_Tuner.jsonl", TUTORIAL / "Q_list.txt"
    assert main(["repair", str(source), str(repaired), "--questions", str(questions)]) == 0
    assert main(["rename", str(repaired), str(renamed), "--old", "尖米", "--new", "黄大力"]) == 0
    rows = [row["messages"] for _, row in read_rows(renamed)]
    assert len(rows) == 1500
    assert [row[1]["content"] for row in rows] == [asked[place % 150].strip() for place in range(1500)]
    assert "尖米" not in Path(renamed).read_text(encoding="utf-8")
