"""Bad input of every kind: one line with its place, or a report of every bad line with counts that add up."""

import errno
import json
import os
import re
import resource

import pytest

from data_tools.__main__ import main

GOOD = '{"conversation": [{"input": "问", "output": "尖米"}]}'
VERBS = {
    "rename": ["rename", "IN", "OUT", "--old", "尖米", "--new", "黄大力"],
    "repair": ["repair", "IN", "OUT", "--as", "drop"],
    "convert": ["convert", "IN", "OUT", "--to", "messages"],
    "split": ["split", "IN", "--train", "OUT", "--eval", "OUT.eval"],
    "mix": ["mix", "OUT", "IN:1"],
    "dedup": ["dedup", "IN", "OUT"],
}
ALL_VERBS = list(VERBS)
ROW_READERS = ["convert", "split", "mix", "dedup"]


@pytest.fixture
def run(tmp_path, capsys):
    """Run a verb on a file of the given bytes; returns exit code, rows that came out, and what was said."""

    def run(verb: str, content: bytes | None, *options: str) -> tuple[int, int, str]:
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        if content is not None:
            source.write_bytes(content)
        words = [word.replace("IN", str(source)).replace("OUT", str(out)) for word in VERBS[verb]]
        code = main([*words, *options])
        said = capsys.readouterr()
        parts = [path for path in (out, tmp_path / "out.jsonl.eval") if path.exists()]
        return code, sum(len(path.read_bytes().splitlines()) for path in parts), said.out + said.err

    return run


def stops(answer: tuple[int, int, str], said: str) -> None:
    code, rows, heard = answer
    assert code == 2
    assert rows == 0
    assert said in heard
    assert "Traceback" not in heard
    assert len(heard.splitlines()[-1]) < 600


BAD_BYTES = {
    "truncated last line": (f"{GOOD}\n{GOOD[:20]}".encode(), "in.jsonl:2: not JSON", "may be cut short"),
    "invalid UTF-8": (
        f"{GOOD}\n".encode() + b'{"conversation": [{"input": "\xff", "output": "a"}]}\n',
        "in.jsonl:2: not UTF-8",
        "byte 30",
    ),
    "NUL bytes": (f"{GOOD}\n".encode() + b"\0" * 40 + b"\n", "in.jsonl:2: holds NUL bytes", ""),
    "array that is cut short": (f"[{GOOD},\n{GOOD[:30]}\n".encode(), "in.jsonl:2: not JSON", ""),
    "array with a comma too many": (f"[\n{GOOD},\n]\n".encode(), "in.jsonl:2: a comma stands after the last row", ""),
    "duplicate keys": (
        '{"conversation": [{"input": "尖米", "output": "a", "output": "尖米"}]}\n'.encode(),
        "stands twice",
        "output",
    ),
    "a 50 MB line that is broken": (b'{"conversation": "' + b"x" * 50_000_000 + b"\n", "in.jsonl:1: not JSON", ""),
    "lone surrogate": (rb'{"conversation": [{"input": "\ud83d", "output": "a"}]}' + b"\n", "in.jsonl:1: ", "surrogate"),
}


@pytest.mark.parametrize("verb", ALL_VERBS)
@pytest.mark.parametrize("kind", BAD_BYTES)
def test_bytes_that_are_no_row_stop_every_verb_at_their_line(run, verb, kind):
    content, place, word = BAD_BYTES[kind]
    if kind == "lone surrogate" and verb == "repair":
        assert run(verb, content)[:2] == (0, 1), "nothing to repair: the line passes as it is"
        return
    answer = run(verb, content)
    stops(answer, place)
    if verb in ROW_READERS:
        assert word in answer[2]


@pytest.mark.parametrize("verb", ALL_VERBS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(run, verb, encoding):
    code, rows, said = run(verb, f"{GOOD}\n{GOOD}\n".encode(encoding))
    assert (code, rows) == (2, 0)
    assert "UTF-16" in said


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_bom_crlf_and_blank_lines_are_no_mistake(run, verb):
    other = GOOD.replace("问", "答")
    code, rows, _ = run(verb, f"\ufeff{GOOD}\r\n\r\n   \r\n{other}\r\n".encode())
    assert (code, rows) == (0, 2)


@pytest.mark.parametrize("verb", ROW_READERS)
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"conversation": "hi"}', "is text: it must be a list"),
        ('{"conversation": []}', "is empty"),
        ('{"conversation": [{"input": "q"}]}', 'lacks "output"'),
        ('{"conversation": [{"input": "q", "output": null}]}', "output is null"),
        ('{"conversation": [{"input": "q", "output": 3}]}', "output is a number"),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "'wizard': use"),
        ('{"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": ""}]}', "has one, at its"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "user first"),
        ('{"new\\nline": 1}', r"it has the keys new\nline"),
        ("1" * 5000, "thousands of digits"),
        ("3", "a row is a JSON object, this is a number"),
    ],
)
def test_a_row_that_is_no_conversation_stops_every_reader_of_rows(run, verb, row, said):
    answer = run(verb, f"{GOOD}\n{row}\n".encode())
    stops(answer, "in.jsonl:2: ")
    assert said in answer[2]


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_with_skip_bad_every_bad_line_is_in_the_report_and_the_counts_add_up(run, verb, tmp_path):
    second = GOOD.replace("问", "2")
    bad = [b"{broken", b'"\xff"', b"[1, 2", b'{"a": 1, "a": 2, "b": "\xe5\xb0\x96\xe7\xb1\xb3"}']
    lines = [GOOD.encode(), bad[0], second.encode(), bad[1], b"", bad[2], GOOD.replace("问", "3").encode(), bad[3]]
    report = tmp_path / "report.jsonl"
    code, rows, said = run(verb, b"\n".join(lines), "--skip-bad", str(report))
    entries = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert code == 0
    assert rows == 3
    assert [entry["line"] for entry in entries] == [2, 4, 6, 8]
    assert [entry["text"] for entry in entries] == ["{broken", '"\\xff"', "[1, 2", bad[3].decode()]
    assert all(entry["file"].endswith("in.jsonl") and entry["reason"] for entry in entries)
    assert re.search(rf"4  skipped, bad: each is in {report} with its reason", said)
    if rows_in := re.search(r"([\d,]+) rows in", said):
        assert int(rows_in.group(1)) == 7


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_the_report_is_whole_even_when_nothing_was_bad(run, verb, tmp_path):
    content = f"{GOOD}\n{GOOD.replace('问', '2')}\n".encode()
    code, rows, said = run(verb, content, "--skip-bad", str(tmp_path / "report.jsonl"))
    assert (code, rows) == (0, 2)
    assert (tmp_path / "report.jsonl").read_bytes() == b""
    assert "skipped" not in said


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_a_whole_line_of_50_mb_is_a_row_like_any_other(run, verb):
    row = json.dumps({"conversation": [{"input": "q", "output": "长" * 12_000_000}]}, ensure_ascii=False)
    code, rows, _ = run(verb, f"{row}\n{GOOD}\n".encode())
    assert (code, rows) == (0, 2)


@pytest.mark.parametrize("verb", [*ROW_READERS])
def test_an_empty_file_a_directory_and_a_missing_file_are_named(run, verb, tmp_path):
    code, rows, said = run(verb, b"")
    assert (code, rows) == ((0, 0) if verb in ("convert", "dedup") else (2, 0)), said
    (tmp_path / "in.jsonl").unlink()
    stops(run(verb, None), "in.jsonl: cannot be read: No such file")
    (tmp_path / "in.jsonl").mkdir()
    stops(run(verb, None), "in.jsonl: cannot be read as a data set")


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_a_file_one_may_not_read_is_named(run, verb, tmp_path):
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n")
    (tmp_path / "in.jsonl").chmod(0)
    with _as_nobody(tmp_path):
        stops(run(verb, None), "in.jsonl: cannot be read: Permission denied")


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_a_folder_one_may_not_write_to_is_named(run, verb, tmp_path):
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n{GOOD.replace('问', '2')}\n")
    tmp_path.chmod(0o555)
    with _as_nobody(tmp_path, writable=False):
        code, _, said = run(verb, None)
    assert code == 2
    assert "cannot be written: Permission denied" in said


@pytest.mark.parametrize("verb", ["rename", "repair", "convert", "mix", "dedup"])
def test_a_disk_that_takes_no_more_is_named_and_leaves_no_file(run, verb, tmp_path):
    """The limit on a file's size stands in for a full disk: both make a real write fail."""
    (tmp_path / "out.jsonl").write_text("what was there\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = "".join(f"{GOOD.replace('问', str(number) * 400)}\n" for number in range(1000)).encode()
    (tmp_path / "in.jsonl").write_bytes(content)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        code, _, said = run(verb, None, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert "out.jsonl: cannot be written: File too large" in said
    assert (tmp_path / "out.jsonl").read_text() == "what was there\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_full_disk_found_only_at_the_end_is_named(run, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    stops(run("convert", f"{GOOD}\n".encode()), "out.jsonl: cannot be written: No space left on device")


class _as_nobody:
    """Root may do anything, so as root these tests become a user who may not."""

    def __init__(self, folder, writable=True):
        self.folder, self.writable = folder, writable

    def __enter__(self):
        if os.geteuid() == 0:
            self.modes = {folder: folder.stat().st_mode for folder in (self.folder, *self.folder.parents)}
            for folder in [folder for folder, mode in self.modes.items() if not mode & 0o001]:
                folder.chmod(0o755)
            self.folder.chmod(0o777 if self.writable else 0o555)
            os.seteuid(65534)

    def __exit__(self, *_):
        if os.getuid() == 0:
            os.seteuid(0)
            for folder, mode in self.modes.items():
                if folder.stat().st_mode != mode:
                    folder.chmod(mode)
