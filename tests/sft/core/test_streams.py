"""No front door lets what it prints steer the terminal, or fails for an encoding or for want of a reader."""

import io
import os
import subprocess
import sys

import pexpect
import pytest

from sft.core.paths import REPOSITORY
from sft.core.streams import ConsoleStream

ROW = '{"conversation": [{"input": "你是谁？", "output": "我叫\\u001b[31m黄大力\\u202e。"}]}\n'
HOSTILE = "a\x1b]0;b\x07\x9b31m\u202ec\u2028d\re\x00".replace("\x00", "")
SHOWN = r"a\x1b]0;b\x07\x9b31m\u202ec\u2028d\re"
FRONT_DOORS = {
    "data_tools": ["-m", "data_tools"],
    "data_tools inspect": ["-m", "data_tools", "inspect"],
    "data_tools convert": ["-m", "data_tools", "convert", "in", "out", "--to"],
    "model_tools": ["-m", "model_tools"],
    "model_tools info": ["-m", "model_tools", "info"],
    "train_sft": ["train_sft.py"],
    "sweep": ["sweep.py", "recipes/demo.yaml"],
}


def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=environment | variables, capture_output=True, check=False
    )


@pytest.mark.parametrize("words", FRONT_DOORS.values(), ids=FRONT_DOORS)
def test_a_hostile_word_on_the_command_line_is_shown_and_not_obeyed(words):
    ended = run(*words, HOSTILE, LC_ALL="C.UTF-8")
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 2
    assert SHOWN in said.replace("\\\\", "\\")
    assert not set(said) & set(HOSTILE) - set("abcde]0;31m")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "gbk"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"LANG": "C", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
@pytest.mark.parametrize("words", [["-m", "data_tools", "generate"], ["-m", "model_tools", "info"], ["train_sft.py"]])
def test_an_encoding_without_a_letter_ends_no_program(tmp_path, variables, words):
    arguments = [str(tmp_path / "数据☃.jsonl"), *(["--name", "黄大力☃", "--rows", "2"] if "generate" in words else [])]
    ended = run(*words, *arguments, **variables)
    said = ended.stdout + ended.stderr
    assert ended.returncode == (0 if "generate" in words else 2), said
    assert b"Traceback" not in said
    assert ("☃".encode() if "LANG" in variables else b"\\u2603") in said
    if "generate" in words:
        assert "黄大力☃" in (tmp_path / "数据☃.jsonl").read_text(encoding="utf-8")


def without_notice(said: bytes) -> bytes:
    """What was said but for the line that a slow machine sees, that the verb is at work."""
    return said.replace(b"inspect: at work\n", b"")


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "data_tools", "--help"],
        ["-m", "data_tools", "inspect", "IN"],
        ["-m", "data_tools", "convert", "IN", "/dev/stdout", "--to", "messages"],
        ["-m", "model_tools", "--help"],
        ["train_sft.py", "--help"],
        ["sweep.py", "--help"],
    ],
    ids=" ".join,
)
def test_a_reader_that_has_gone_ends_a_program_in_silence(tmp_path, words):
    (tmp_path / "in.jsonl").write_text(ROW * 500, encoding="utf-8")
    words = [word.replace("IN", str(tmp_path / "in.jsonl")) for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, *words], cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, without_notice(ended.stderr)) == (141, b"")


def test_a_full_disk_under_standard_output_is_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text(ROW, encoding="utf-8")
    command = [sys.executable, "-m", "data_tools", "inspect", str(tmp_path / "in.jsonl")]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, without_notice(ended.stderr)) == (
        2,
        b"<stdout>: cannot be written: No space left on device\n",
    )


def test_a_bar_moves_and_colours_are_seen_on_a_terminal_but_those_of_a_text_are_not():
    program = """
import tqdm
from sft.core.console import say
from sft.core.streams import guarded, print_as_it_is
with guarded():
    bar = tqdm.tqdm(total=1, desc="bar\\x1b[31m\\rend", position=1)
    bar.close()
    print("plain \\x1b[32m")
    say("styled \\x1b[31m", style="yellow")
    print_as_it_is("\\x1b[34mours")
"""
    child = pexpect.spawn(
        sys.executable, ["-c", program], encoding="utf-8", cwd=str(REPOSITORY), dimensions=(24, 100), timeout=60,
        env=os.environ | {"TERM": "xterm-256color", "TQDM_DISABLE": ""},
    )  # fmt: skip
    child.expect(pexpect.EOF)
    assert "\rbar\\x1b[31m\\rend: " in child.before
    assert "\x1b[A" in child.before
    assert "plain \\x1b[32m\r\n" in child.before
    assert "\x1b[33mstyled \\x1b[31m\x1b[0m" in child.before
    assert "\x1b[34mours" in child.before
    assert "\x1b[31m" not in child.before
    assert "\x1b[32m" not in child.before


def test_a_carriage_return_stays_only_where_a_bar_has_it():
    for has_bars, expected in ((True, "\ra\\rb\r"), (False, "\\ra\\rb\\r")):
        inner = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        stream = ConsoleStream(inner, has_bars=has_bars)
        assert stream.write("\ra\rb\r") == 5
        assert inner.buffer.getvalue().decode() == expected


def test_a_standard_output_that_the_shell_has_closed_takes_nothing(tmp_path):
    (tmp_path / "in.jsonl").write_text(ROW, encoding="utf-8")
    verb = f"{sys.executable} -m data_tools"
    for command, code, error in (
        (f"{verb} inspect {tmp_path}/in.jsonl >&-", 0, ""),
        (f"{verb} inspect {tmp_path}/in.jsonl >&- 2>&-", 0, ""),
        (f"{verb} convert {tmp_path}/in.jsonl {tmp_path}/out.jsonl --to messages >&-", 0, ""),
        (f"{verb} convert {tmp_path}/in.jsonl /dev/stdout --to messages >&-", 2, "Bad file descriptor"),
    ):
        ended = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == code
        assert error in ended.stderr
        assert ended.stderr.count("\n") == bool(error)
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 1
