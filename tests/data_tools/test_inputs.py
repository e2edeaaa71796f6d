"""Rows in blocks: a verb does the same, whatever the blocks, the processes and the kind of file."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest
import zstandard

from data_tools import inputs
from data_tools.__main__ import main
from sft.data.readers.row_file import RowFile

VERBS = {
    "rename": ["rename", "IN", "OUT", "--old", "尖米", "--new", "黄大力", "--old", "Al", "--new", "Ada", "--own-name"],
    "rename, a system message": ["rename", "IN", "OUT", "--old", "尖米", "--new", "黄大力", "--system", "none"],
    "convert": ["convert", "IN", "OUT", "--to", "sharegpt"],
    "convert, lossy": ["convert", "IN", "OUT", "--to", "alpaca", "--lossy"],
}
TEXTS = [
    "我是尖米的智能助手。",
    "尖米",
    "Al, also Always",
    "尖\u200b米",
    "a\\u5c16",
    '"尖米"\n\\',
    "\u2028",
    "好",
    "jiānmǐ",
]
BAD = [b"{broken", b'{"a": 1, "a": 2}', b'"\xff"', b'{"input": "xxx", "output": "a"}', b"7", b"\0\0"]
KINDS = ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.json", "rows.csv", "pipe"]


def lines_of(dice: random.Random, count: int) -> list[bytes]:
    """Lines with old names in many places; every row holds a conversation."""
    lines = []
    for _ in range(count):
        question, answer, system, name = (dice.choice(TEXTS) for _ in range(4))
        row: dict = {"input": question + "?", "output": answer, "note": dice.choice(["", name])}
        if dice.random() < 0.5:
            turns = [{"role": "user", "content": question + "?"}, {"role": "assistant", "content": answer}]
            row = {"messages": [{"role": "system", "content": system}, *turns * dice.randint(1, 2)], "id": name}
        lines.append(json.dumps(row, ensure_ascii=dice.random() < 0.3).encode() + b"\n" * dice.choice([1, 1, 1, 2]))
    return lines


def written(path: Path, lines: list[bytes]) -> Path:
    """The lines as a file of the kind that its name says."""
    text = b"".join(lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(text))
    elif path.suffix == ".json":
        path.write_bytes(b"[" + b",\n".join(line.strip() for line in lines) + b"]")
    elif path.suffix == ".csv":
        rows = [["问题", "回答"], *([f"第{number}个？尖米", "我是尖米的智能助手。"] for number in range(len(lines)))]
        path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    elif path.suffix == "":
        os.mkfifo(path)
        Thread(target=path.write_bytes, args=[text], daemon=True).start()
    else:
        path.write_bytes(b"\xef\xbb\xbf" + text.rstrip(b"\n"))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a verb on lines in a file; returns exit code, what was written and reported, and what was said."""

    def run(verb: str, name: str, lines: list[bytes], processes: bool, *options: str) -> tuple:
        # Blocks of a few rows, or one for the whole file.
        monkeypatch.setattr(inputs, "BLOCK", 700 if processes else 1 << 20)
        monkeypatch.setattr(inputs, "WORTH_PROCESSES", 0 if processes else 1 << 24)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        for path in tmp_path.iterdir():
            path.unlink()
        source, out, report = written(tmp_path / name, lines), tmp_path / "out", tmp_path / "report"
        words = [word.replace("IN", str(source)).replace("OUT", str(out)) for word in [*VERBS[verb], *options]]
        code = main([word.replace("REPORT", str(report)) for word in words])
        said = capsys.readouterr()
        return code, *(path.exists() and path.read_bytes() for path in (out, report)), said.out, said.err

    return run


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_several_processes_do_what_one_does(run, verb, name):
    lines = lines_of(random.Random(name), 120)
    one = run(verb, name, lines, False)
    assert one[0] == 0 or "convert" in verb
    assert run(verb, name, lines, True) == one


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("verb", VERBS)
def test_several_processes_skip_the_bad_lines_that_one_does_and_stop_at_the_same(run, verb, seed):
    dice = random.Random(seed)
    lines = lines_of(dice, 60)
    for _ in range(4):
        lines.insert(dice.randrange(len(lines)), dice.choice(BAD) + b"\n")
    one = run(verb, "rows.jsonl", lines, False)
    assert one[:2] == (2, False)
    assert run(verb, "rows.jsonl", lines, True) == one
    one = run(verb, "rows.jsonl", lines, False, "--skip-bad", "REPORT")
    assert one[0] == 2 or one[2].count(b"\n") > 0
    assert run(verb, "rows.jsonl", lines, True, "--skip-bad", "REPORT") == one


def test_a_bad_line_is_named_before_the_place_where_the_file_is_cut_short(run, tmp_path, monkeypatch):
    lines = lines_of(random.Random(0), 4000)

    def cut_short(path: Path, lines: list[bytes]) -> Path:
        path.write_bytes(gzip.compress(b"".join(lines))[:-999])
        return path

    monkeypatch.setattr(sys.modules[__name__], "written", cut_short)
    for processes in (False, True):
        assert "rows.jsonl.gz: cut short" in run("rename", "rows.jsonl.gz", lines, processes)[-1]
        assert "rows.jsonl.gz:1: not JSON" in run("rename", "rows.jsonl.gz", [b"{\n", *lines], processes)[-1]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_blocks_hold_the_lines_of_the_file_however_large_they_are(tmp_path, ending):
    content = "\ufeff" + ending.join([*(f'{{"n": "{"长" * number}"}}' for number in range(60)), " ", "\ufeff{}"])
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    file = RowFile(tmp_path / "rows.jsonl")
    lines = list(file.lines())
    for size in (1, 10, 100, 1000, 1 << 20):
        blocks = [list(block) for block in file.blocks(size)]
        assert [line for block in blocks for line in block] == lines
        assert size > 1000 or len(blocks) > 5


def large(path: Path) -> Path:
    row = json.dumps({"input": "尖米？", "output": "我是尖米。" * 100}, ensure_ascii=False) + "\n"
    path.write_text(row * (inputs.WORTH_PROCESSES // len(row.encode()) * 12))
    return path


def started(source: Path, out: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A run on a large file, and the processes that it has started."""
    command = [sys.executable, "-m", "data_tools", "rename", str(source), str(out), *VERBS["rename"][3:]]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(workers := psutil.Process(run.pid).children()) < 2:
        assert run.poll() is None, "the run ended before its processes were seen"
        time.sleep(0.001)
    return run, workers


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core needs no other process")
@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_leaves_no_process_and_no_file(tmp_path, end, code):
    run, workers = started(large(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl")
    run.send_signal(end)
    assert run.wait(30) == code
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core needs no other process")
def test_a_process_that_is_killed_ends_the_run_with_what_to_do(tmp_path):
    run, workers = started(large(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl")
    workers[0].kill()
    assert "a process that read it was killed" in run.communicate(timeout=30)[1]
    assert run.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_small_file_starts_no_process(tmp_path):
    check = (
        "import sys; from data_tools.__main__ import main; main(sys.argv[1:]); "
        "assert 'concurrent.futures.process' not in sys.modules"
    )
    (tmp_path / "rows.jsonl").write_bytes(lines_of(random.Random(0), 1)[0])
    words = ["rename", str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "--old", "尖米", "--new", "黄大力"]
    subprocess.run([sys.executable, "-c", check, *words], check=True)
