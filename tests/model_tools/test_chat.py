"""Chat as people use it: the real program on a real terminal or a real pipe, with tiny real models."""

import io
import json
import re
import shlex
import subprocess
import sys

import pexpect
import pytest

from model_tools.__main__ import main
from sft.core.paths import REPOSITORY
from sft.data.rows.formats import canonical_row, parse_line
from tests.support.taught_models import write_pair

PROMPT = r"\x1b\[\?2004h"  # the program turns bracketed paste on when it waits for a line
SHELL = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}  # without what a test run sets to be quiet
PASTE = "\x1b[200~{}\x1b[201~"
BEFORE, HOSTILE = "I am a base model.", "\x1b]0;owned\x07\x1b[31m我是黄大力\x9b2J，\r\n\t你的助手 🙂。"
SHOWN = "�]0;owned��[31m我是黄大力�2J，�\n\t你的助手 🙂。"


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory) -> list[str]:
    """A base and an adapter, as arguments; the adapter says what would steer a terminal."""
    base, adapter = write_pair(tiny_model, tmp_path_factory.mktemp("pair"), BEFORE, HOSTILE)
    return [base, "--adapter", adapter]


@pytest.fixture
def terminal():
    """Start chat on a pseudo-terminal of so many columns and wait for its prompt."""
    started = []

    def start(*arguments: str, columns: int = 80) -> pexpect.spawn:
        command = ["-m", "model_tools", "chat", *arguments]
        environment = SHELL | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        child = pexpect.spawn(
            sys.executable, command, cwd=REPOSITORY, env=environment, dimensions=(40, columns), timeout=120
        )
        started.append(child)
        child.expect(PROMPT)
        return child

    yield start
    for child in started:
        child.close(force=True)


@pytest.fixture
def pipe(monkeypatch, capsys):
    """Run chat with these lines on standard input; returns exit code, standard output and standard error."""

    def run(lines: str | bytes, *arguments: str) -> tuple[int, str, str]:
        text = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        code = main(["chat", *arguments, "--max_new_tokens", "60"])
        return code, *capsys.readouterr()

    return run


def test_ctrl_c_stops_the_answer_that_streams_and_not_the_program(terminal, endless_model):
    # The random model finds no end of turn: text can only come before the end, and only Ctrl-C ends it.
    child = terminal(str(endless_model), "--max_new_tokens", "1000000")
    assert f"{endless_model}, no adapter" in child.before.decode()
    for _ in range(2):
        child.send("你是谁？\r")
        child.expect(r"\x1b\[\?2004l.{200}")
        child.sendintr()
        child.expect(r"\(stopped\)")
        child.expect(PROMPT)
    child.send("half a line")
    child.expect("half a line")
    child.sendintr()
    child.expect(PROMPT)
    assert b"leaves" not in child.before
    child.sendintr()
    child.expect("Ctrl-D or /exit leaves")
    child.expect(PROMPT)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_paste_of_several_lines_is_one_message_and_is_saved_as_one(terminal, pair, tmp_path):
    child = terminal(*pair)
    assert f"{pair[0]} with adapter {pair[2]}" in child.before.decode()
    child.send("/save " + str(tmp_path) + "\r")
    child.expect("name a file that ends in .jsonl")
    child.expect(PROMPT)
    child.send(PASTE.format("Who\r\n  are you?\r/exit"))
    child.send("\r")
    child.expect(PROMPT)
    path = tmp_path / "talk.jsonl"
    child.send(f"/save {path}\r")
    child.expect("one row added, 1 turn")
    child.expect(PROMPT)
    child.send("/exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    (line,) = path.read_bytes().splitlines(keepends=True)
    row = canonical_row(parse_line(line))
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == "Who\n  are you?\n/exit"


@pytest.mark.parametrize("columns", [120, pytest.param(80, marks=pytest.mark.long)])
def test_before_and_after_stand_side_by_side_where_there_is_room_and_do_not_steer_the_terminal(terminal, pair, columns):
    child = terminal(*pair, "--base-too", columns=columns)
    child.send("你是谁？\r")
    child.expect(PROMPT)
    written = child.before.decode()
    for sequence in ("\x1b]0;", "\x07", "\x1b[31m", "\x9b"):
        assert sequence not in written
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in written.splitlines()]
    after = SHOWN.splitlines()
    if columns == 120:
        assert any(line.startswith(BEFORE) and line.rstrip().endswith(after[0]) for line in lines)
    else:
        assert "\n".join(lines).endswith(f"\nbefore  {BEFORE}\nafter   {SHOWN}")


@pytest.mark.long
def test_a_pipe_gets_the_answers_and_nothing_else(pair):
    """The whole program as a shell starts it, until its reader goes away after three lines."""
    command = shlex.join([sys.executable, "-m", "model_tools", "chat", *pair, "--base-too"])
    shell = ["sh", "-c", f"yes 你是谁？ | {command} | head -n 3"]
    result = subprocess.run(shell, cwd=REPOSITORY, env=SHELL, capture_output=True, text=True, timeout=120)
    assert result.stdout == f"before  {BEFORE}\nafter   {SHOWN}\n"
    assert result.stderr.removeprefix("loading PyTorch and Transformers\n") == ""


def test_each_line_of_a_pipe_is_a_turn_and_commands_work_there(pipe, pair, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('{"messages": []}')  # its line has no end yet
    lines = (
        f"你是谁？\n\n/save {path}\n/reset\n/system 你是助手。\n你是谁？\nAnd now?\n/save {path}\n/exit\nWho are you?\n"
    )
    code, out, err = pipe(lines, *pair)
    assert code == 0
    assert out.startswith(SHOWN + "\n")
    assert "new conversation" not in out
    assert f"{path}: one row added, 1 turn\n" in err
    assert "a new conversation under the system message: 你是助手。\n" in err
    _, first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["messages"] == [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": HOSTILE}]
    assert [message["role"] for message in second["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [second["messages"][place]["content"] for place in (0, 1, 3)] == ["你是助手。", "你是谁？", "And now?"]


def test_before_and_after_keep_a_history_each(pipe, pair, tmp_path):
    path = tmp_path / "talk.jsonl"
    code, out, _ = pipe(f"你是谁？\n/save {path}\n", *pair, "--base-too")
    assert code == 0
    assert out == f"before  {BEFORE}\nafter   {SHOWN}\n"
    assert json.loads(path.read_text(encoding="utf-8"))["messages"][1]["content"] == HOSTILE


def test_a_system_message_reaches_the_model(pipe, tiny_model):
    plain, told = (pipe("Who are you?\n", str(tiny_model), *system)[1] for system in ([], ["--system", "x"]))
    assert plain != told
    assert told == pipe("/system x\nWho are you?\n", str(tiny_model))[1]


def test_an_answer_that_was_cut_says_so_beside_it(pipe, tiny_model):
    code, out, err = pipe("你是谁？\n", str(tiny_model))
    assert (code, "cut" in out) == (0, False)
    assert err == "(cut after 60 tokens: --max_new_tokens allows more)\n"


def test_a_message_that_the_model_cannot_read_is_refused_before_it_is_asked_and_reset_begins_anew(terminal, tiny_model):
    child = terminal(str(tiny_model), "--max_new_tokens", "1000")
    child.send("你是谁？\r")
    child.expect(r"\(cut: the conversation fills the 512 tokens that the model reads; /reset\)")
    child.expect(PROMPT)
    child.send("And now?\r")
    child.expect(r"has \d+ tokens, and the model\s+reads 512: /reset begins anew")
    child.expect(PROMPT)
    child.send("/reset\r")
    child.expect(PROMPT)
    child.send("你是谁？\r")
    child.expect(r"/reset\)")


def test_a_pasted_text_that_is_too_long_is_one_line_on_a_pipe(pipe, pair):
    code, out, err = pipe("x" * 100_000 + "\n", *pair, "--base-too")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"model_tools chat: .* has 100,\d+ tokens, and the model reads 512: ask in fewer words\n", err)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("/save\n", "/save : name a file that ends in .jsonl"),
        ("/save x.jsonl\n", "/save x.jsonl: nothing was said yet"),
        ("/sav x\n", "/sav: no such command; /help lists them"),
        (b"\xff\n", "line 1 of the input: not UTF-8"),
    ],
)
def test_a_mistake_on_a_pipe_is_one_line(pipe, tiny_model, lines, said):
    code, out, err = pipe(lines, str(tiny_model))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_file_that_cannot_be_written_is_named(pipe, pair, tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for path in (tmp_path / "folder.jsonl", tmp_path / "none" / "x.jsonl"):
        code, _, err = pipe(f"你是谁？\n/save {path}\n", *pair)
        assert code == 2
        assert f"/save {path}: cannot be written: " in err


def test_base_too_without_an_adapter_is_refused_before_the_model_is_loaded(pipe, tmp_path):
    code, _, err = pipe("你是谁？\n", str(tmp_path), "--base-too")
    assert code == 2
    assert "--base-too needs an adapter" in err
