"""Ask a model the questions of a file before and after training, and count the answers that give a name.

Base and tuned answers stand side by side; the adapter is switched off for the first, so one model is enough.
"""

import argparse
from pathlib import Path

import yaml

from model_tools.chat import add_system_argument, describe_shares, describe_system, opening_system
from model_tools.checkpoints.model_folder import NamedModel, require, resolve_model
from model_tools.checkpoints.precision import precision_of
from sft.core.errors import UserError
from sft.core.imports import importing
from sft.core.text import one_line, one_line_message

LOADS = "PyTorch and Transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("run", help="run directory or adapter folder, such as work_dirs/demo")
    parser.add_argument("questions", type=Path, help="YAML file: one list of questions under each heading")
    parser.add_argument("--name", required=True, help="the name to look for in the answers")
    add_system_argument(parser)
    parser.add_argument(
        "--max_new_tokens", type=int, help="longest answer in tokens (48; more where a model may think)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    if not arguments.name:
        raise UserError("--name: is empty, and every answer has that in it: give the name to look for")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {arguments.max_new_tokens}: no answer fits in it: give 1 or more")
    questions = load_questions(arguments.questions)
    named = resolve_tuned(arguments.run)
    require(named)
    system = opening_system(named, arguments.system)

    with importing():
        from model_tools.chatting.conversation import load_named_model
        from model_tools.checkpoints.asked import ANSWER_TOKENS
        from sft.core.console import console, waiting
        from sft.models.generate import room_for

    model, tokenizer = load_named_model(named)
    max_new_tokens = arguments.max_new_tokens or room_for(ANSWER_TOKENS, tokenizer)
    for fact in (describe_system(system), *describe_shares(named, system), precision_of(named).line):
        console.print(fact, markup=False)
    _require_room(model, tokenizer, [question for group in questions.values() for question in group], system)
    for heading, group in questions.items():
        with waiting(f"{heading}: asking {len(group)} questions before and after training"):
            with model.disable_adapter():
                before = answer_all(model, tokenizer, group, system, max_new_tokens)
            after = answer_all(model, tokenizer, group, system, max_new_tokens)
        show_answers(heading, group, before, after, arguments.name)
    return 0


def load_questions(path: Path) -> dict[str, list[str]]:
    """The questions of a YAML file by heading.

    Raises:
        UserError: no such file, or not lists of text under headings.
    """
    try:
        questions = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise UserError(f"{path}: cannot be read as YAML: {one_line_message(problem)}") from None
    is_lists = isinstance(questions, dict) and all(
        isinstance(group, list) and group and all(isinstance(question, str) and question.strip() for question in group)
        for group in questions.values()
    )
    if not is_lists or not questions:
        raise UserError(f"{path}: holds no questions: write `heading:` and under it one `- question` a line")
    return questions


def _require_room(model, tokenizer, questions: list[str], system: str | None) -> None:
    from model_tools.chatting.conversation import ContextFull, context_length, read_messages

    context = context_length(model.config)
    opening = [{"role": "system", "content": system}] if system else []
    for question in questions:
        try:
            read_messages(tokenizer, [*opening, {"role": "user", "content": question}], context)
        except ContextFull as problem:
            raise UserError(f"{one_line(question, 60)}: {problem}: ask it in fewer words") from None


def resolve_tuned(run: str) -> NamedModel:
    """What the run directory or adapter folder holds; refused where there is no adapter to switch off."""
    named = resolve_model(run)
    if named.adapter is None:
        raise UserError(f"{run}: holds no adapter: give the run directory of a finished run")
    return named


def answer_all(model, tokenizer, questions: list[str], system: str | None, max_new_tokens: int) -> list[str]:
    """The model's greedy answers under a system message, or under the chat template's own."""
    from sft.evaluation.chat_eval import ask
    from sft.models.generate import CUT_IN_THINKING

    generation = {"max_new_tokens": max_new_tokens, "do_sample": False}
    answers = ask(model, tokenizer, questions, system=system, generation=generation)
    return [
        f"{answer.answer} (cut while thinking)" if answer.stop_reason == CUT_IN_THINKING else answer.answer
        for answer in answers
    ]


def show_answers(heading: str, questions: list[str], before: list[str], after: list[str], name: str) -> None:
    """Print question, answer before and after, and how many give the name."""
    from sft.core.console import console

    console.print(f"\n{heading}", style="bold", markup=False)
    for question, old, new in zip(questions, before, after, strict=True):
        console.print(f"  {question}", markup=False)
        console.print(f"    before  {' '.join(old.split())}", markup=False, style="dim")
        console.print(f"    after   {' '.join(new.split())}", markup=False, style="cyan")
    had, has = (sum(name in answer for answer in answers) for answers in (before, after))
    console.print(f"{heading}: {name} in {had} of {len(questions)} answers before, {has} after", markup=False)
