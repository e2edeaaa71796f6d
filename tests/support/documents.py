"""The pages that a person reads, and what stands in them: headings, code, commands, figures, links.

A page is Markdown as this repository writes it: headings by number signs, code indented by four spaces.
"""

import re
from collections import Counter

from data_tools.__main__ import VERBS as DATA_VERBS
from model_tools.__main__ import VERBS as MODEL_MODULES
from sft.core.paths import REPOSITORY
from sft.core.verbs import verbs_of

CHINESE = ".zh-CN.md"
# The pages that stand in both languages, by the name of the English one.
ENGLISH = ["README.md", "benchmarks/README.md"] + [
    str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "docs").glob("*.md")) if CHINESE not in path.name
]
PAGES = [name for english in ENGLISH for name in (english, english.replace(".md", CHINESE))]
VERBS = {"data_tools": DATA_VERBS, "model_tools": verbs_of(MODEL_MODULES)}
# What a line of code begins with that a person types.
PROGRAM = re.compile(
    r"(?:\S*/)?(?:accelerate|cp|deepspeed|docker|echo|export|lmdeploy|make|mkdir|modelscope|ollama|pip|pip-audit|python3?"
    r"|sbatch|source|srun|sudo|tensorboard|torchrun|transformers|uv|vllm|wsl) "
)


def read(name: str) -> str:
    """The text of a page."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


def headings(page: str) -> list[tuple[int, str]]:
    """(level, words) of each heading."""
    return [(len(marks), words) for marks, words in re.findall(r"(?m)^(#+) (.+)$", without_code(page))]


def anchors(page: str) -> set[str]:
    """What a link can name behind `#`, as GitHub derives it of the headings."""
    plain = [re.sub(r"[^\w\- ]", "", words.lower()) for _, words in headings(page)]
    return {words.replace(" ", "-") for words in plain}


def links(page: str) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^()\s]+)\)", without_code(page))


def code(page: str) -> list[str]:
    """The lines that are indented as code, without the comments behind them."""
    lines = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    return [re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in lines]


def commands(page: str) -> list[str]:
    """The lines of code that a person types, without the prompt of a shell before them."""
    typed = [line.removeprefix("$ ") for line in code(page)]
    return [line for line in typed if PROGRAM.match(line)]


def figures(page: str) -> Counter[str]:
    """The numbers of a page's prose and tables, with how often each stands there."""
    return Counter(re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?", without_code(page)))


def without_code(page: str) -> str:
    """The page without its indented lines."""
    return "\n".join(line for line in page.splitlines() if not line.startswith("    "))


# Enough text in both languages to train a small tokenizer on.
LONG_PAGES = ("adapters", "data", "faq", "from-xtuner")
PROSE = [read(f"docs/{page}{ending}") for page in LONG_PAGES for ending in (".md", CHINESE)]
