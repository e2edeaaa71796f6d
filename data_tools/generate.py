"""Write a self-cognition training set: a name, in Chinese and English, among ordinary questions.

In: a name, the question bank in `bank/`, a person's own patterns. Out: JSONL in XTuner's form, the same for the same
arguments on any machine. Knows nothing about models.

Patterns are a YAML list; each entry asks any of its questions and gives any of its answers, in which `{name}` and
`{author}` stand for what the command line says:

    - questions: [你是谁家的助手, 谁在用你]
      answers: ["我是{name}，{author}的助手。"]
"""

import argparse
import itertools
import math
import random
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_tools.renaming.spellings import Placeholders
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted, language_of, normalise
from sft.core.verbs import add_output
from sft.core.yaml_file import read_yaml
from sft.data.placeholders import key_of
from sft.data.rows.json_line import json_line

BANK = Path(__file__).parent / "bank"
LANGUAGES = ("zh", "en")
# Chinese gets more rows: the people this is for ask in Chinese, and small models need more of it to learn.
CHINESE_SHARE = 0.6
# Every so many identity rows one follows an ordinary turn, so that the name is also known later in a conversation.
TURNS_EVERY = 8
SLOTS = {"name", "author"}

Turn = tuple[str, str]


@dataclass
class Pattern:
    """Questions that mean the same, and answers that fit each of them."""

    questions: list[str]
    answers: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_output(parser, "out", help="JSONL file to write, such as data/huangdali.jsonl")
    parser.add_argument("--name", required=True, help="what the model shall call itself, such as 黄大力")
    parser.add_argument("--author", help="who made it; without it the answers speak of its developers")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ordinary", type=float, default=0.5, help="share of rows that are not about identity")
    parser.add_argument("--lang", default=",".join(LANGUAGES), help="languages, zh,en or one of them")
    parser.add_argument(
        "--system", type=Path, metavar="FILE", help="text for every row's system message; {{name}} is filled in"
    )
    parser.add_argument(
        "--template", type=Path, metavar="FILE", help="YAML file of your own questions and answers (see docs/data.md)"
    )
    add_output(
        parser, "--holdout", metavar="OUT", help="write the questions that no row asks there, for model_tools ask"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the rows, and the held-out questions if wanted; returns the exit code."""
    languages = tuple(arguments.lang.split(","))
    patterns = load_patterns(arguments.template) if arguments.template else []
    held_out = held_out_questions(languages)
    if arguments.holdout:
        held_out["identity"] += hold_out_of(patterns)
    rows = generate(
        arguments.name,
        arguments.author,
        arguments.rows,
        arguments.seed,
        arguments.ordinary,
        languages=languages,
        patterns=patterns,
        reserved=held_out["identity"],
    )
    if arguments.system:
        add_system(rows, arguments.system, arguments.name, arguments.author)
    write(arguments.out, rows)
    ordinary = round(arguments.rows * arguments.ordinary)
    questions = {turn["input"] for row in rows for turn in row["conversation"]}
    chinese = sum(not question.isascii() for question in questions)
    print(
        f"{arguments.out}: {len(rows):,} rows, {len(rows) - ordinary:,} of them about identity; distinct questions: "
        f"{chinese:,} Chinese, {len(questions) - chinese:,} English"
    )
    if arguments.holdout:
        with files.atomic_write(arguments.holdout, arguments.out) as file:
            file.write(yaml.safe_dump(held_out, allow_unicode=True, sort_keys=False).encode("utf-8"))
        print(f"{arguments.holdout}: {counted(sum(map(len, held_out.values())), 'question')} that no row asks")
    return 0


def generate(
    name: str,
    author: str | None,
    rows: int,
    seed: int,
    ordinary: float,
    *,
    languages: tuple[str, ...] = LANGUAGES,
    patterns: Sequence[Pattern] = (),
    reserved: Sequence[str] = (),
) -> list[dict]:
    """Rows in XTuner's form: exactly round(rows * ordinary) ordinary ones.

    Of each kind three fifths are Chinese where both languages are asked for. No two rows are alike, and neither a
    question of `bank/held_out.yaml` or `bank/score.yaml` nor one of `reserved` is asked.

    Raises:
        UserError: an impossible share, language or number of rows, or more rows than the bank can make.
    """
    if not name.strip():
        raise UserError("--name: empty: give the name the model shall call itself")
    if rows < 1 or not 0 <= ordinary <= 1:
        raise UserError("--rows must be at least 1 and --ordinary between 0 and 1")
    if not languages or set(languages) - set(LANGUAGES):
        raise UserError(f"--lang {','.join(languages)}: choose {', '.join(LANGUAGES)} or both, with a comma between")
    dice = random.Random(seed)
    ordinary_rows = round(rows * ordinary)
    about_it = _identity_turns(name, author, patterns, reserved)
    identity = _draw("identity", about_it, rows - ordinary_rows, languages, dice)
    small_talk = _draw("ordinary", _ordinary_turns(name), ordinary_rows, languages, dice)
    before = itertools.cycle(small_talk)
    conversations = [
        [next(before), turn] if small_talk and index % TURNS_EVERY == TURNS_EVERY - 1 else [turn]
        for index, turn in enumerate(identity)
    ]
    conversations += [[turn] for turn in small_talk]
    dice.shuffle(conversations)
    return [
        {"conversation": [{"input": question, "output": answer} for question, answer in turns]}
        for turns in conversations
    ]


def add_system(rows: list[dict], path: Path, name: str, author: str | None) -> None:
    """Put the text of a file before every conversation, its {{name}} and {{author}} filled in.

    Raises:
        UserError: the file cannot be read or is empty, or names an author that is not given.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {getattr(problem, 'strerror', 'not UTF-8')}: check it") from None
    if not text:
        raise UserError(f"{path}: empty: write the system message there")
    text, filled = Placeholders({"name": name, "author": author or ""}).fill(text)
    if not author and (unfilled := next((each for each in filled if key_of(each).lower() == "author"), None)):
        raise UserError(f"{path}: holds {unfilled}: say who with --author")
    for row in rows:
        row["conversation"][0] = {"system": text, **row["conversation"][0]}


def load_patterns(path: Path) -> list[Pattern]:
    """The patterns of a file, checked.

    Raises:
        UserError: the file cannot be read, or an entry is not as described at the top; names its line.
    """
    root, entries = read_yaml(path)
    if root is None or not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: holds no pattern: write a list of entries with questions and answers")
    return [
        _pattern(f"{path}:{node.start_mark.line + 1}", entry) for node, entry in zip(root.value, entries, strict=True)
    ]


def hold_out_of(patterns: Sequence[Pattern]) -> list[str]:
    """The last question of each pattern that has three or more, to be asked after training and not in it."""
    return [pattern.questions[-1] for pattern in patterns if len(pattern.questions) >= 3]


def write(path: Path, rows: list[dict]) -> None:
    """Write the rows as JSONL; the file of this name is replaced by the whole new one, or stays as it was."""
    with files.atomic_write(path) as file:
        file.writelines(map(json_line, rows))


def held_out_questions(languages: tuple[str, ...] = LANGUAGES) -> dict[str, list[str]]:
    """The questions reserved for evaluation, by kind: identity and ordinary."""
    return {
        kind: [question for question in questions if language_of(question) in languages]
        for kind, questions in _load("held_out").items()
    }


def scored_questions() -> dict[str, list[str]]:
    """The questions that runs are scored on, by kind; of a conversation the last line."""
    bank = _load("score")
    return {
        kind: [entry if isinstance(entry, str) else entry[-1] for entry in bank[kind]]
        for kind in ("identity", "ordinary")
    }


def _draw(
    kind: str, groups: dict[str, list[list[Turn]]], count: int, languages: tuple[str, ...], dice: random.Random
) -> list[Turn]:
    """Draw `count` distinct turns, going round the groups so that none outweighs the rest."""
    available = {language: sum(map(len, groups[language])) for language in languages}
    if not _suffices(available, count, languages):
        most = next(fewer for fewer in range(count, -1, -1) if _suffices(available, fewer, languages))
        raise UserError(
            f"--rows: {counted(count, f'{kind} row')} asked for, the question bank makes {most:,}: ask for fewer"
        )
    drawn: list[Turn] = []
    for language, share in _shares(count, languages).items():
        decks = [dice.sample(group, len(group)) for group in groups[language]]
        dealt = (deck[index] for index in itertools.count() for deck in decks if index < len(deck))
        drawn += itertools.islice(dealt, share)
    return drawn


def _suffices(available: dict[str, int], count: int, languages: tuple[str, ...]) -> bool:
    return all(share <= available[language] for language, share in _shares(count, languages).items())


def _shares(count: int, languages: tuple[str, ...]) -> dict[str, int]:
    """How many of `count` rows are in each language."""
    if len(set(languages)) == 1:
        return {languages[0]: count}
    chinese = math.ceil(count * CHINESE_SHARE)
    return {"zh": chinese, "en": count - chinese}


def _identity_turns(
    name: str, author: str | None, patterns: Sequence[Pattern], reserved: Sequence[str]
) -> dict[str, list[list[Turn]]]:
    """By language, one group an intent or pattern: every question in every wording with every answer."""
    bank = _load("identity")
    groups = {}
    for language in LANGUAGES:
        words, maker = bank[language], author or bank["maker"][language]
        own = [_in_language(pattern, language) for pattern in patterns]
        groups[language] = _distinct(
            itertools.chain(
                (_wordings(words, intent, name, maker) for intent in words["intents"].values()),
                (_filled_pattern(pattern, name, maker) for pattern in own),
            ),
            reserved=reserved,
        )
    return groups


def _in_language(pattern: Pattern, language: str) -> Pattern:
    """The questions in one language, with the answers in it; where it has none, with all."""
    questions, answers = (
        [text for text in texts if language_of(text) == language] for texts in (pattern.questions, pattern.answers)
    )
    return Pattern(questions, answers or pattern.answers)


def _filled_pattern(pattern: Pattern, name: str, author: str) -> Iterator[Turn]:
    for question, answer in itertools.product(pattern.questions, pattern.answers):
        yield question.format(name=name, author=author), answer.format(name=name, author=author)


def _wordings(words: dict, intent: dict, name: str, maker: str) -> Iterator[Turn]:
    for question, answer in itertools.product(intent["questions"], intent["answers"]):
        # A model of the same name as another assistant must not deny it.
        others = [other for other in words["others"] if normalise(other) != normalise(name)]
        others = others if "{other}" in question + answer else [""]
        for opening, ending, other in itertools.product(dict.fromkeys(words["openings"]), words["endings"], others):
            if "{other}" in answer and "{other}" not in question:
                continue
            wording = _lower_first(question) if opening and question.isascii() else question
            slots = {"name": name, "maker": maker, "other": other}
            yield opening + wording.format(**slots) + ending, answer.format(**slots)


def _ordinary_turns(name: str) -> dict[str, list[list[Turn]]]:
    """By language, one group a pattern, one for the written pairs and one for arithmetic; none holds the name."""
    bank = _load("ordinary")
    return {
        language: _distinct(
            [
                *map(_filled, bank[language]["patterns"]),
                bank[language]["pairs"].items(),
                _arithmetic(bank[language]["arithmetic"]),
            ],
            without=name,
        )
        for language in LANGUAGES
    }


def _filled(pattern: dict) -> Iterator[Turn]:
    for question, answer, entry in itertools.product(pattern["questions"], pattern["answers"], pattern["table"]):
        yield question.format(*entry), answer.format(*entry)


def _arithmetic(words: dict) -> Iterator[Turn]:
    operations = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    for operation, result in operations.items():
        for a, b in itertools.product(range(2, 13), repeat=2):
            if result(a, b) >= 0:
                for question, answer in itertools.product(words[operation], words["answers"]):
                    yield question.format(a=a, b=b), answer.format(result=result(a, b))


def _distinct(
    groups: Iterable[Iterable[Turn]], without: str | None = None, reserved: Sequence[str] = ()
) -> list[list[Turn]]:
    """The groups without held-out and reserved questions, each turn in the first group that has it and nowhere else.

    Turns that hold `without` are skipped: an ordinary answer must not give the name, not even by chance.
    """
    unused = (*held_out_questions().values(), *scored_questions().values(), reserved)
    never = {normalise(question) for questions in unused for question in questions}
    seen: set[Turn] = set()
    distinct: list[list[Turn]] = []
    for group in groups:
        fresh = [turn for turn in dict.fromkeys(group) if turn not in seen and normalise(turn[0]) not in never]
        fresh = [turn for turn in fresh if not without or without not in turn[0] + turn[1]]
        seen.update(fresh)
        distinct.append(fresh)
    return distinct


def _lower_first(question: str) -> str:
    return question if re.match(r"I\b|I'", question) else question[0].lower() + question[1:]


def _load(name: str) -> dict:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((BANK / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)


def _pattern(place: str, entry: object) -> Pattern:
    if not isinstance(entry, dict) or entry.keys() != {"questions", "answers"}:
        raise UserError(f"{place}: an entry has questions and answers, and nothing else")
    for key, texts in entry.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"{place}: {key}: must be a list of texts")
        for text in texts:
            _check_slots(f"{place}: {key}", text)
    return Pattern(entry["questions"], entry["answers"])


def _check_slots(place: str, text: str) -> None:
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
    except ValueError:
        raise UserError(f"{place}: {text!r}: write {{{{ and }}}} for braces that are no slot") from None
    if slots - SLOTS:
        raise UserError(f"{place}: {text!r}: knows the slots {{name}} and {{author}} only")
