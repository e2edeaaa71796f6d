"""Talk with a model in the terminal; with an adapter, hear the base model's answers too.

Lines come from a terminal or a pipe. What the model says is shown without the control characters that would let it
steer the terminal; it is saved as it was said.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model_tools.checkpoints.asked import score_under
from model_tools.checkpoints.model_folder import NamedModel, require, resolve_model
from model_tools.checkpoints.precision import precision_of
from sft.core.console import console
from sft.core.errors import UserError
from sft.core.imports import importing
from sft.core.text import counted, one_line
from sft.data.rows.json_line import json_line

LOADS = "PyTorch and Transformers"

if TYPE_CHECKING:
    from model_tools.chatting.conversation import Conversation

COLUMNS_FOR_TWO = 100
# So much is shown of a system message.
SHOWN_CHARACTERS = 100
HELP = """\
/reset         forget what was said
/system TEXT   start anew under this system message, or under none
/save FILE     add the conversation to FILE.jsonl as one row
/exit          leave, as Ctrl-D does
Ctrl-C stops the answer being written."""
# All of C0 and C1 but newline and tab: ESC begins a sequence that terminals obey, and so does C1's CSI.
CONTROL_CHARACTERS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\N{REPLACEMENT CHARACTER}")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb takes that talks with a model."""
    parser.add_argument("model", help="model folder, hub id, run directory or adapter folder, such as work_dirs/demo")
    parser.add_argument("--adapter", help="adapter folder or run directory, for a base model given as MODEL")
    add_system_argument(parser)
    add_bits_argument(parser)
    parser.add_argument("--max_new_tokens", type=int, default=512, help="longest answer in tokens (512)")


def add_system_argument(parser: argparse.ArgumentParser) -> None:
    """The system message that a conversation begins with."""
    parser.add_argument(
        "--system", metavar="TEXT", help="system message, '' for none; else the one that the training rows began with"
    )


def add_bits_argument(parser: argparse.ArgumentParser) -> None:
    """The precision of the weights."""
    parser.add_argument(
        "--bits", type=int, choices=(4, 8, 16), help="precision of the weights; else what a run was trained in, or 16"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    add_model_arguments(parser)
    parser.add_argument("--base-too", action="store_true", help="answer twice: before training, and after")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    named = resolve_model(arguments.model, arguments.adapter)
    if arguments.base_too and named.adapter is None:
        raise UserError(f"{arguments.model}: --base-too needs an adapter, and there is none: add --adapter FOLDER")
    require(named)
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            Chat(named, arguments).on_terminal()
        else:
            _hide_progress()
            Chat(named, arguments).on_pipe()
    except KeyboardInterrupt:
        return 130
    return 0


class Chat:
    """One conversation, or one each for before and after, and the commands a person gives it."""

    def __init__(self, named: NamedModel, arguments: argparse.Namespace):
        with importing():
            from model_tools.chatting.conversation import ChatModel, Conversation

        system = opening_system(named, arguments.system)
        self.title = describe_model(named)
        self.facts = [*([describe_system(system)] if system else []), *describe_shares(named, system)]
        self.precision = precision_of(named, arguments.bits)
        model = ChatModel(named, arguments.bits, arguments.max_new_tokens)
        self.after = Conversation(model, system)
        self.sides = {"": self.after}
        if arguments.base_too:
            self.sides = {"before": Conversation(model, system, with_adapter=False), "after": self.after}

    def on_terminal(self) -> None:
        """Talk until Ctrl-D or /exit; a mistake is reported and the conversation continues."""
        from prompt_toolkit import PromptSession

        # At the prompt Ctrl-C is a key; while an answer is written it is this signal.
        signal.signal(signal.SIGINT, self._stop)
        facts = self.facts or [describe_system(None)]
        _note("\n".join([self.title, self.precision.line, *facts, "/help lists the commands, Ctrl-D leaves"]))
        session: PromptSession[str] = PromptSession()
        while True:
            try:
                self.hear(session.prompt("> "))
            except UserError as problem:
                _note(str(problem), style="red")
            except KeyboardInterrupt:
                if not session.default_buffer.text:
                    _note("Ctrl-D or /exit leaves")
            except EOFError:
                return

    def on_pipe(self) -> None:
        """Take each line as a turn; only answers go to standard output, and what is no answer to standard error.

        Raises:
            UserError: a line is not UTF-8, or a command fails.
        """
        for fact in [*([self.precision.line] if self.precision.origin else []), *self.facts]:
            _note(fact)
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                self.hear(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise UserError(f"line {number} of the input: not UTF-8: convert it, such as with iconv") from None
            except EOFError:
                return

    def hear(self, text: str) -> None:
        """Obey a command or answer a question; EOFError is the wish to leave.

        Raises:
            UserError: a command fails, or the conversation has no room for the question.
        """
        text = text.strip()
        if command := re.fullmatch(r"(/[a-z]+)(?: +(.*))?", text):
            _note(self.obey(command[1], (command[2] or "").strip()))
        elif text:
            self._require_room(text)
            if len(self.sides) > 1 and console.is_terminal and console.width >= COLUMNS_FOR_TWO:
                self.answer_side_by_side(text)
            else:
                self.answer(text)

    def obey(self, command: str, argument: str) -> str:
        """Do what a command says, and return what to say about it.

        Raises:
            UserError: there is no such command, or it cannot be done.
            EOFError: it is /exit.
        """
        if command == "/exit":
            raise EOFError
        if command == "/help":
            return HELP
        if command == "/save":
            return save_conversation(argument, self.after.messages)
        if command not in ("/reset", "/system"):
            raise UserError(f"{command}: no such command; /help lists them")
        system = self.after.system if command == "/reset" else argument or None
        for side in self.sides.values():
            side.start_anew(system)
        return "a new conversation" + (f" under the system message: {system}" if system else "")

    def answer(self, question: str) -> None:
        """Write each side's answer while it comes, one under the other."""
        for name, side in self.sides.items():
            print(f"{name:8}" if name else "", end="", flush=True)
            printed = ""
            for text in side.ask(question):
                text = make_printable(text)
                print(text[len(printed) :], end="", flush=True)
                printed = text
            print(flush=True)
            self._note_end(side)

    def answer_side_by_side(self, question: str) -> None:
        """Write the sides' answers while they come, in columns."""
        from rich.live import Live

        texts = dict.fromkeys(self.sides, "")
        with Live(_columns(texts), console=console, refresh_per_second=10) as live:
            for name, side in self.sides.items():
                for text in side.ask(question):
                    texts[name] = make_printable(text)
                    live.update(_columns(texts))
        for side in self.sides.values():
            self._note_end(side)

    def _require_room(self, question: str) -> None:
        """See that each side can answer, before one does and the other cannot.

        Raises:
            UserError: one cannot.
        """
        from model_tools.chatting.conversation import ContextFull

        try:
            for side in self.sides.values():
                side.require_room(question)
        except ContextFull as problem:
            advice = "/reset begins anew" if self.after.turns else "ask in fewer words"
            raise UserError(f"{problem}: {advice}") from None

    def _stop(self, *_) -> None:
        for side in self.sides.values():
            side.stop()

    def _note_end(self, side: Conversation) -> None:
        """Say of an answer that it is not a whole one."""
        assert side.answer is not None, "it has just answered"
        if side.answer.stop_reason == "stopped":
            _note("(stopped)")
        elif side.answer.stop_reason == "max_new_tokens":
            _note(f"(cut after {side.model.settings.max_new_tokens} tokens: --max_new_tokens allows more)")
        elif side.answer.stop_reason == "context":
            _note(f"(cut: the conversation fills the {side.model.context:,} tokens that the model reads; /reset)")


def describe_model(named: NamedModel) -> str:
    """Such as "models/base with adapter work_dirs/demo/final"."""
    return f"{named.base} with adapter {named.adapter}" if named.adapter else f"{named.base}, no adapter"


def opening_system(named: NamedModel, chosen: str | None) -> str | None:
    """The system message to begin with: the one that was chosen, else the one the model was trained with; or none.

    Raises:
        UserError: the file with the latter cannot be read.
    """
    from sft.data.questions import system_to_ask_with
    from sft.models.adapter import read_system_message

    shared = read_system_message(named.adapter or Path(named.base)) if chosen is None else None
    return system_to_ask_with(chosen, shared)


def describe_system(system: str | None) -> str:
    """Such as "system message: 你是黄大力。", on one line."""
    return f"system message: {one_line(system, SHOWN_CHARACTERS) if system else 'the chat template decides'}"


def describe_shares(named: NamedModel, system: str | None) -> list[str]:
    """How often the model gave its name with this system message and without, as its run scored it; else nothing.

    Raises:
        UserError: the recipe of the run cannot be read.
    """
    score = score_under(named.adapter or Path(named.base), system)
    if score is None:
        return []
    with_it, without = (
        f"{score[key]:.0%} of {score[f'{key}_asked']} answers" for key in ("with_system", "without_system")
    )
    return [f"it gave its name in {with_it} with this system message, in {without} without"]


def make_printable(text: str) -> str:
    """The text with a mark for each character that a terminal would obey and not show."""
    return text.translate(CONTROL_CHARACTERS)


def save_conversation(name: str, messages: list[dict[str, str]]) -> str:
    """Add the messages to a file as one row, and return a line that says so.

    Raises:
        UserError: nothing was said yet, the name is not that of a .jsonl file, or it cannot be written.
    """
    path = Path(name).expanduser()
    if not name or path.suffix != ".jsonl":
        raise UserError(f"/save {name}: name a file that ends in .jsonl, such as /save talk.jsonl")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"/save {name}: nothing was said yet")
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, 2)
            is_open_line = file.read() not in (b"", b"\n")
            file.write(b"\n" * is_open_line + json_line({"messages": messages}))
    except OSError as problem:
        raise UserError(f"/save {name}: cannot be written: {problem.strerror}: name another file") from None
    turns = sum(message["role"] == "user" for message in messages)
    return f"{path}: one row added, {counted(turns, 'turn')}"


def _columns(texts: dict[str, str]):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*map(Text, texts.values()))
    return table


def _note(text: str, style: str = "dim") -> None:
    """Say something that is no answer: on a terminal between the answers, on a pipe beside them."""
    if sys.stdout.isatty():
        console.out(make_printable(text), style=style, highlight=False)
    else:
        print(make_printable(text), file=sys.stderr)


def _hide_progress() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
