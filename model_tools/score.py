"""Score a model: how often it gives its name, and how much of the base model is left.

In: a model or an adapter, and the recipe that says which name and which questions. Out: the scores, and the answers
that failed.
"""

import argparse

from model_tools.chatting.model_folder import load, resolve
from sft.core.errors import UserError

LOADS = "PyTorch and Transformers"

SHOWN_CHARACTERS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder, hub id, run directory or adapter folder")
    parser.add_argument("recipe", help="recipe with identity_name, such as recipes/demo.yaml")
    parser.add_argument("--adapter", help="adapter folder or run directory, where MODEL is its base model")
    parser.add_argument(
        "--bits", type=int, choices=(4, 8, 16), default=16, help="precision of the weights (default 16)"
    )


def run(arguments: argparse.Namespace) -> int:
    from sft.config.load import load_recipe
    from sft.core.console import console, waiting
    from sft.data.identity import mentions
    from sft.data.questions import load_questions
    from sft.evaluation.score import OLD_NAMES, score, share

    settings = load_recipe([arguments.recipe], for_training=False).run
    if not settings.identity_name:
        raise UserError(f"{arguments.recipe}: has no identity_name: add the name the model is to learn")
    questions = load_questions(settings.score_file, settings.eval_prompts_system)
    model, tokenizer = load(resolve(arguments.model, arguments.adapter), arguments.bits)
    with waiting("scoring what the model says of itself"):
        found = score(model, tokenizer, questions, settings.identity_name, [*OLD_NAMES, *settings.identity_old_names])
    console.print(found.line(), markup=False)
    console.print(
        f"with a system message {share(found.with_system)}, without {share(found.without_system)}; "
        f"{found.seconds:.1f} s",
        markup=False,
    )
    for answer in found.answers:
        is_right = (
            answer.gives_name if answer.kind == "identity" else not mentions(answer.answer, settings.identity_name)
        )
        if not is_right:
            said = " ".join(answer.answer.split())[:SHOWN_CHARACTERS]
            console.print(f"  {answer.kind}: {answer.question}\n    {said}", markup=False, style="yellow")
    return 0
