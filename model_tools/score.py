"""Score a model: how often it gives its name, and how much of the base model is left.

In: a model or an adapter, and the recipe that says which name and which questions. Out: the scores, and the answers
that failed.
"""

import argparse
from typing import TYPE_CHECKING

from model_tools.chat import add_bits_argument, opening_system
from model_tools.checkpoints.model_folder import require, resolve_model
from model_tools.checkpoints.precision import precision_of
from sft.core.errors import UserError
from sft.core.imports import importing
from sft.core.text import one_line
from sft.core.verbs import add_recipe

if TYPE_CHECKING:
    from sft.evaluation.score import ScoredAnswer

LOADS = "PyTorch and Transformers"

SHOWN_CHARACTERS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("model", help="model folder, hub id, run directory or adapter folder")
    add_recipe(parser, "recipe with identity_name, such as recipes/demo.yaml")
    parser.add_argument("--adapter", help="adapter folder or run directory, where MODEL is its base model")
    add_bits_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    from sft.config.viewed_recipe import view_recipe

    settings = view_recipe([arguments.recipe, *arguments.overrides], reads=("score_file",)).run
    if not settings.identity_name:
        raise UserError(f"{arguments.recipe}: has no identity_name: add the name the model is to learn")
    named = resolve_model(arguments.model, arguments.adapter)
    require(named)
    with importing():
        from model_tools.chatting.conversation import load_named_model
        from sft.core.console import console, waiting
        from sft.data.identity import OLD_NAMES
        from sft.data.questions import SYSTEM, load_questions
        from sft.evaluation.score import percent, score

    questions = load_questions(settings.score_file, opening_system(named, settings.eval_prompts_system))
    console.print(precision_of(named, arguments.bits).line, markup=False)
    model, tokenizer = load_named_model(named, arguments.bits, settings.chat_template_kwargs)
    with waiting("scoring what the model says of itself"):
        scores = score(model, tokenizer, questions, settings.identity_name, [*OLD_NAMES, *settings.identity_old_names])
    console.print(scores.line(), markup=False)
    system = one_line(scores.system_message or f"such as {SYSTEM['en']}", SHOWN_CHARACTERS)
    console.print(
        f"{percent(scores.with_system)} of {scores.with_system_asked} with a system message ({system}), "
        f"{percent(scores.without_system)} of {scores.without_system_asked} without; {scores.seconds:.1f} s",
        markup=False,
    )
    for answer in scores.answers:
        is_right = answer.gives_name if answer.kind == "identity" else not answer.mentions_name
        if not is_right and not answer.cut_in_thinking:
            text = one_line(answer.answer)[:SHOWN_CHARACTERS]
            kind = _described(answer, is_bare=bool(scores.system_message) and not answer.has_system)
            console.print(f"  {kind}: {answer.question}\n    {text}", markup=False, style="yellow")
    return 0


def _described(answer: "ScoredAnswer", *, is_bare: bool) -> str:
    """Such as "identity, without the system message"."""
    if answer.kind != "identity":
        return answer.kind
    assistant, bare = ", only the name's assistant", ", without the system message"
    return answer.kind + assistant * answer.is_assistant_of + bare * is_bare
