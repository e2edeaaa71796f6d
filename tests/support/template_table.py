"""Prints what becomes of the chat templates of a collection, as the table of docs/models.md.

    python -m tests.support.template_table COLLECTION.json

The file is a JSON list of {"family", "template", "bos", "eos"}. Where loss falls is judged by `template_judge`.
"""

import collections
import json
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sft.core.errors import UserError
from sft.models.chat_template import ChatTemplate
from sft.models.thinking import find_thinking
from tests.support.encoding import turns
from tests.support.template_judge import judge, tokenizer_for
from tests.support.tokenizer import tiny_tokenizer

COLUMNS = (
    "回合结束 / end of turn",
    "思考结束 / end of thinking",
    "逐答成样本 / split",
    "损失 / loss",
    "模板 / templates",
)
EXACT, NO_END, WRONG, REFUSES, LOSES = "●", "◐", "WRONG", "✗¹", "✗²"
CONVERSATIONS = (
    turns("Qonezz", "Aonezz"),
    turns("Qonezz", "Aonezz", "Qtwozz", "Atwozz", "Qthreezz", "Athreezz"),
    turns("Qonezz", "Aonezz", "Qtwozz", "Atwozz", system="Szz"),
)


def main() -> None:
    """Print the table of the collection that the command line names."""
    [path] = sys.argv[1:]
    print(table(json.loads(Path(path).read_text(encoding="utf-8")), tiny_tokenizer()))


def table(collection: list[dict], base: PreTrainedTokenizerFast) -> str:
    """One line for all templates of which the same is true, in Markdown."""
    families = collections.defaultdict(set)
    for entry in collection:
        families[_cells(entry, base)].add(entry["family"].partition(" (")[0])
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    order = (EXACT, NO_END, WRONG, REFUSES, LOSES)
    for cells in sorted(families, key=lambda cells: (order.index(cells[-1]), -len(families[cells]), cells)):
        names = ", ".join(sorted(families[cells], key=str.casefold))
        lines.append("".join(f"| {cell} " if cell else "| " for cell in (*cells, names)) + "|")
    return "\n".join(lines)


def outcome(entry: dict, base: PreTrainedTokenizerFast) -> tuple[str, list[str]]:
    """How loss falls on all conversations that a template takes, and how it refuses the others."""
    tokenizer, verdicts, refusals = tokenizer_for(entry, base), [], []
    for messages in CONVERSATIONS:
        try:
            verdicts.append(judge(tokenizer, messages))
        except UserError as refusal:
            refusals.append(str(refusal))
    if not verdicts:
        return (LOSES if "leaves out" in refusals[0] else REFUSES), refusals
    if not all(is_exact for is_exact, _ in verdicts):
        return WRONG, refusals
    return (EXACT if all(has_end for _, has_end in verdicts) else NO_END), refusals


def _cells(entry: dict, base: PreTrainedTokenizerFast) -> tuple[str, ...]:
    became, _ = outcome(entry, base)
    if became in (REFUSES, LOSES):
        return "", "", "", became
    template = ChatTemplate(tokenizer_for(entry, base))
    thinking = find_thinking(template)
    ends = " … ".join(_code("".join(end)) for end in template.ends)
    return ends, _code(thinking.closes) if thinking else "", "●" if template.rewrites_history else "", became


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


if __name__ == "__main__":
    main()
