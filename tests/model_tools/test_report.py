"""`python -m model_tools report`: one run's page, several runs' comparison, and what it refuses."""

import subprocess
import sys

import pytest

from model_tools.__main__ import main
from sft.core.paths import REPOSITORY
from tests.support.fake_run import write_run


@pytest.fixture
def runs(tmp_path):
    return [str(write_run(tmp_path / name, lora_r=rank)) for name, rank in (("a", 8), ("b", 64))]


def test_the_report_of_one_run_lies_in_its_directory(runs, tmp_path, capsys):
    assert main(["report", runs[0]]) == 0
    assert capsys.readouterr().out == f"report: {runs[0]}/report.html\n"
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "<title>a：训练报告 / a: run report</title>" in page
    assert main(["report", runs[0], "--out", str(tmp_path / "elsewhere" / "page.html")]) == 0
    assert (tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8") == page


def test_several_runs_are_compared_on_one_page_in_the_current_directory_or_where_asked(
    runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("an earlier one")
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out == "report: report.html\n"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page
    assert main(["report", *runs, "--out", "both.html"]) == 0
    assert (tmp_path / "both.html").read_text(encoding="utf-8") == page


def test_what_was_left_out_of_a_killed_run_is_told_there_too(runs, tmp_path, capsys):
    with open(tmp_path / "a" / "log.jsonl", "a") as file:
        file.write('{"step": 41, "lo')
    assert main(["report", runs[0]]) == 0
    said = capsys.readouterr().out
    assert f"{runs[0]}: log.jsonl：第 41 行已损坏，未读取 / log.jsonl: line 41 is damaged and was skipped\n" in said


def test_what_it_cannot_do_is_one_line_and_exit_code_2(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([str(tmp_path / "empty")], "no run directory: it holds no recipe.yaml"),
        ([str(tmp_path / "nowhere")], "no run directory"),
        ([runs[0], f"{runs[0]}/../a"], "named twice"),
        ([*runs, "--out", f"{runs[1]}/log.jsonl", "--force"], "is an input as well"),
        ([runs[0], "--out", str(tmp_path)], "is a directory"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith("model_tools report: ")
        assert error.count("\n") == 1
    assert (tmp_path / "b" / "log.jsonl").read_text().count("\n") == 40


def test_it_loads_no_torch(runs):
    program = "import sys; from model_tools.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "report", runs[0]]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.splitlines() == [f"report: {runs[0]}/report.html", "False"], result.stderr
