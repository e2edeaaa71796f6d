"""What takes long says what it is waiting for, what does not stays quiet; only the main process speaks."""

import threading

import pytest

from sft.core import console
from sft.core.console import waiting


@pytest.mark.parametrize(("seconds", "printed"), [(0.0, "reading rows.jsonl\n"), (60.0, "")])
def test_a_wait_is_announced_once_it_is_long(monkeypatch, capsys, seconds, printed):
    monkeypatch.setattr(console, "SILENCE", seconds)
    before = threading.active_count()
    with waiting("reading rows.jsonl"):
        while seconds == 0.0 and threading.active_count() > before:
            pass  # until it has been printed
    assert capsys.readouterr().out == printed


def test_only_the_main_process_speaks(monkeypatch, capsys):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        console.say(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_text_in_square_brackets_is_text_not_markup(capsys):
    console.say("labels [/bold] [-100, 5]", style="yellow")
    assert capsys.readouterr().out == "labels [/bold] [-100, 5]\n"
