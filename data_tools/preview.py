"""Show what the trainer will see of a recipe's data: text, tokens, where the loss falls, where samples meet.

In: a recipe. Out: one row or one pack, in the terminal or as a page. What XTuner's log-dataset showed, and more. Loads
the tokenizer as training does, and with it torch; all other verbs do without.
"""

import argparse
import sys
from pathlib import Path

from sft.core import files
from sft.core.imports import importing
from sft.core.language import _
from sft.core.streams import print_as_it_is
from sft.core.verbs import add_language, add_output, add_recipe

LOADS = "PyTorch and Transformers"
# What of a recipe's files is read here.
READS = ("model_name_or_path", "train_file", "chat_template_path")
PAGES = Path(__file__).parent / "pages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    add_recipe(parser)
    parser.add_argument("--row", type=int, metavar="N", help="show the sample of row N, counted from 1")
    parser.add_argument("--pack", type=int, metavar="N", help="show pack N, counted from 1 (the default is pack 1)")
    parser.add_argument(
        "--show",
        choices=["text", "masked_text", "input_ids", "labels"],
        default="text",
        help="text: loss falls on what is green, or between ⟦ and ⟧; masked_text: that alone; or the numbers",
    )
    add_output(parser, "--html", metavar="OUT", help="write it as a page as well, every token with its id")
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    from sft.config.viewed_recipe import view_recipe
    from sft.models.model_folder import check_model_folder, require_model

    recipe = view_recipe([arguments.recipe, *arguments.overrides], READS)
    model = str(recipe.model.model_name_or_path)
    check_model_folder(model, with_weights=False)
    require_model(model, recipe.model.model_revision, with_weights=False)
    with importing():
        from sft.data import preview

    shown = preview.Preview(recipe)
    sequence = shown.row(arguments.row) if arguments.row is not None else shown.pack(arguments.pack or 1)
    print(sequence.title)
    if arguments.show == "text":
        lines = preview.as_text(shown.tokenizer, sequence, colour=sys.stdout.isatty())
    elif arguments.show == "masked_text":
        lines = preview.masked_text(shown.tokenizer, sequence)
    else:
        lines = [" ".join(map(str, getattr(sequence, arguments.show)))]
    for line in lines:
        print_as_it_is(line)
    if arguments.html:
        _write_page(arguments.html, shown, sequence)
        print(_("page: {path}", path=arguments.html))
    return 0


def _write_page(out: Path, shown, sequence) -> None:
    from sft.core.page import render
    from sft.data.preview import pieces

    page = render(
        "preview.html",
        PAGES,
        title=sequence.title,
        facts=shown.card.facts(),
        first_sample=shown.card.first_sample,
        samples=[
            (heading, pieces(shown.tokenizer, ids, labels), len(ids)) for heading, ids, labels in sequence.samples()
        ],
        bos=shown.tokenizer.bos_token,
        eos=shown.tokenizer.eos_token,
    )
    with files.atomic_write(out) as file:
        file.write(page.encode("utf-8"))
