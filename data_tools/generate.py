"""Write a self-cognition training set: a name, in Chinese and English, among ordinary questions.

In: a name and the question bank in `bank/`. Out: JSONL in XTuner's form, the same for the same arguments on any
machine. Knows nothing about models.
"""

import argparse
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from data_tools import files, formats
from data_tools.errors import UserError

BANK = Path(__file__).parent / "bank"
LANGUAGES = ("zh", "en")
# Chinese gets more rows: the people this is for ask in Chinese, and small models need more of it to learn.
CHINESE_SHARE = 0.6
# Every so many identity rows one follows an ordinary turn, so that the name is also known later in a conversation.
TURNS_EVERY = 8

Turn = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="JSONL file to write, such as data/huangdali.jsonl")
    parser.add_argument("--name", required=True, help="what the model shall call itself, such as 黄大力")
    parser.add_argument("--author", help="who made it; without it the answers speak of its developers")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ordinary", type=float, default=0.5, help="share of rows that are not about identity")


def run(arguments: argparse.Namespace) -> int:
    rows = generate(arguments.name, arguments.author, arguments.rows, arguments.seed, arguments.ordinary)
    write(arguments.out, rows)
    ordinary = round(arguments.rows * arguments.ordinary)
    questions = {turn["input"] for row in rows for turn in row["conversation"]}
    chinese = sum(not question.isascii() for question in questions)
    print(
        f"{arguments.out}: {len(rows):,} rows, {len(rows) - ordinary:,} of them about identity; distinct questions: "
        f"{chinese:,} Chinese, {len(questions) - chinese:,} English"
    )
    return 0


def generate(name: str, author: str | None, rows: int, seed: int, ordinary: float) -> list[dict]:
    """Rows in XTuner's form: exactly round(rows * ordinary) ordinary ones; of each kind three fifths are Chinese.

    No two rows are alike, and no question of `bank/held_out.yaml` is asked.

    Raises:
        UserError: an impossible share or number of rows, or more rows than the bank can make.
    """
    if not name.strip():
        raise UserError("--name: empty: give the name the model shall call itself")
    if rows < 1 or not 0 <= ordinary <= 1:
        raise UserError("--rows must be at least 1 and --ordinary between 0 and 1")
    dice = random.Random(seed)
    ordinary_rows = round(rows * ordinary)
    identity = _draw("identity", _identity_turns(name, author), rows - ordinary_rows, dice)
    small_talk = _draw("ordinary", _ordinary_turns(name), ordinary_rows, dice)
    before = itertools.cycle(small_talk or [None])
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


def write(path: Path, rows: list[dict]) -> None:
    """Write the rows as JSONL; the file of this name is replaced by the whole new one, or stays as it was."""
    with files.written_whole(path) as file:
        file.writelines(map(formats.json_line, rows))


def held_out_questions() -> dict[str, list[str]]:
    """The questions reserved for evaluation, by kind: identity and ordinary."""
    return _load("held_out")


def normalise(question: str) -> str:
    """A question without case, spaces and punctuation, to tell whether two are the same."""
    return re.sub(r"[\W_]+", "", question.lower())


def _draw(kind: str, groups: dict[str, list[list[Turn]]], count: int, dice: random.Random) -> list[Turn]:
    """Draw `count` distinct turns in both languages, going round the groups so that none outweighs the rest."""
    chinese = math.ceil(count * CHINESE_SHARE)
    drawn = []
    for language, share in zip(LANGUAGES, (chinese, count - chinese), strict=True):
        decks = [dice.sample(group, len(group)) for group in groups[language]]
        available = sum(map(len, decks))
        if share > available:
            most = int(count * available / share)
            raise UserError(f"--rows: {count:,} {kind} rows asked for, the question bank makes {most:,}: ask for fewer")
        dealt = (deck[place] for place in itertools.count() for deck in decks if place < len(deck))
        drawn += itertools.islice(dealt, share)
    return drawn


def _identity_turns(name: str, author: str | None) -> dict[str, list[list[Turn]]]:
    """By language, one group an intent: every question in every wording with every answer."""
    bank = _load("identity")
    groups = {}
    for language in LANGUAGES:
        words, maker = bank[language], author or bank["maker"][language]
        groups[language] = _distinct(_wordings(words, intent, name, maker) for intent in words["intents"].values())
    return groups


def _wordings(words: dict, intent: dict, name: str, maker: str) -> Iterator[Turn]:
    for question, answer in itertools.product(intent["questions"], intent["answers"]):
        # A model of the same name as another assistant must not deny it.
        others = [other for other in words["others"] if normalise(other) != normalise(name)]
        others = others if "{other}" in question + answer else [""]
        for opening, ending, other in itertools.product(dict.fromkeys(words["openings"]), words["endings"], others):
            if "{other}" in answer and "{other}" not in question:
                continue
            asked = _lower_first(question) if opening and question.isascii() else question
            slots = {"name": name, "maker": maker, "other": other}
            yield opening + asked.format(**slots) + ending, answer.format(**slots)


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


def _distinct(groups: Iterable[Iterable[Turn]], without: str | None = None) -> list[list[Turn]]:
    """The groups without held-out questions, each turn in the first group that has it and nowhere else.

    Turns that hold `without` are left out: an ordinary answer must not give the name, not even by chance.
    """
    reserved = {normalise(question) for questions in held_out_questions().values() for question in questions}
    seen, kept = set(), []
    for group in groups:
        fresh = [turn for turn in dict.fromkeys(group) if turn not in seen and normalise(turn[0]) not in reserved]
        fresh = [turn for turn in fresh if not without or without not in turn[0] + turn[1]]
        seen.update(fresh)
        kept.append(fresh)
    return kept


def _lower_first(question: str) -> str:
    return question if re.match(r"I\b|I'", question) else question[0].lower() + question[1:]


def _load(name: str) -> dict:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((BANK / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)
