"""What to do with a file that was inspected: one chain of commands, from the file as it is to a training run.

In: a `Survey`. Out: steps that a shell can run in order; each command reads what the one before wrote, and none writes
over a file that is there. What is only worth knowing is a remark, to be shown as a comment.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.inspecting.survey import Survey
from sft.core.language import Text, _, ngettext
from sft.core.text import normalise, shell_word
from sft.data.placeholders import is_of_the_maker, key_of
from sft.data.readers.row_file import DATA_SET, JSON_LINES, RowFile

# A command, or a remark on what comes next.
Step = str | Text
# The share of ordinary rows to aim at, and below which there are too few: docs/scores.md has measured 30 to 50%.
ORDINARY_SHARE, FEWEST_ORDINARY = 0.4, 0.3
# So many distinct ordinary rows can be generated in any language; each is taken so often at most.
ORDINARY_ROWS, MOST_COPIES = 3000, 4
# A script that so many of the answers are written in is a language of the file.
SPOKEN_SHARE = 0.2
EXAMPLE_NAMES = {"zh": "黄大力", "en": "Ada"}
# What the tutorial calls its list of questions.
QUESTIONS = "Q_list.txt"
# Deleting so many lines by number still fits on one line.
MOST_DELETED = 100
# From this share on, copies of one system message are worth a remark.
MUCH_SYSTEM = 0.5


def next_steps(survey: Survey, file: RowFile, max_length: int, rows_holding: Counter[str]) -> list[Step]:
    """The chain: remarks that say why, and commands of a shell.

    `rows_holding` says in how many rows a name stands that contradicts another; see `Survey.contradictions`.
    """
    steps = Steps(file)
    if survey.bad.count == survey.rows:
        _name_columns(survey, steps)
        return steps.lines
    _mend(survey, steps)
    _rename(survey, steps, rows_holding)
    for remark in _remarks(survey):
        steps.remark(remark)
    if steps.columns:
        steps.verb(_("write the columns under names that are read"), "convert", "named", "--to", "messages")
    _mix(survey, steps)
    _train(survey, steps, max_length)
    return steps.lines


def languages_of(survey: Survey) -> tuple[str, ...]:
    """The languages of the answers as `generate` knows them: zh, en or both."""
    written = sum(survey.languages.values())
    scripts = {"zh": survey.languages["Chinese"], "en": survey.languages["Latin"]}
    spoken = tuple(language for language, count in scripts.items() if count and count >= SPOKEN_SHARE * written)
    return spoken or (max(scripts, key=lambda language: scripts[language]),)


def chosen_name(survey: Survey) -> str:
    """The name that the file gives, or an example of one in its language."""
    return survey.name or EXAMPLE_NAMES[languages_of(survey)[0]]


@dataclass
class Steps:
    """The chain so far, and the file that the next command reads."""

    file: RowFile
    lines: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = Path(self.file.path)
        self.stem = re.split("[.:]", self.current.name)[0] or "data"
        # What a data set is made into stands where the commands are run.
        self.folder = Path() if self.file.kind == DATA_SET else self.current.parent
        # The first command writes the columns under names that are read.
        self.columns = ",".join(f"{meaning}={column}" for meaning, column in self.file.columns.items())
        self._taken: set[Path] = set()

    def remark(self, text: Text) -> None:
        """Add a remark."""
        self.lines.append(text)

    def run(self, command: str, *words: str | Path) -> None:
        """Add a command; words are quoted for the shell where they must be."""
        self.lines.append(" ".join([command, *(shell_word(str(word)) for word in words)]))

    def verb(self, why: Text, verb: str, suffix: str, *rest: str | Path) -> None:
        """Add a command that reads the current file and writes the next."""
        out = self.beside(f"{self.stem}.{suffix}.jsonl")
        self.remark(why)
        columns = ["--columns", self.columns] if self.columns else []
        self.run(f"python -m data_tools {verb}", self.current, out, *rest, *columns)
        self.current, self.columns = out, ""

    def beside(self, name: str) -> Path:
        """A path beside the file that neither exists nor is written by an earlier step."""
        return self.free(self.folder / name)

    def free(self, path: Path) -> Path:
        """The path, with a number in its name where it is taken."""
        number, candidate = 1, path
        while candidate.exists() or candidate in self._taken:
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._taken.add(candidate)
        return candidate


def _name_columns(survey: Survey, steps: Steps) -> None:
    """Where no row can be read, dropping them leaves nothing: what is wrong is wrong with the whole file."""
    if survey.guessed_columns is None or steps.columns:
        steps.remark(_("no row can be read: mend the file as is said above, then look again"))
        return
    steps.remark(_("no row can be read: say which key is what; put others in place of these where they are wrong"))
    columns = ",".join(f"{meaning}={key}" for meaning, key in survey.guessed_columns.items())
    steps.run("python -m data_tools inspect", steps.current, "--columns", columns)


def _mend(survey: Survey, steps: Steps) -> None:
    """Rows that training refuses are mended or skipped, and rows that stand twice dropped."""
    if survey.empty_answers.count:
        _drop_empty(survey, steps)
    if survey.nested:
        _repair(survey, steps)
    if survey.bad.count:
        report = steps.beside(f"{steps.stem}.bad.jsonl")
        why = ngettext(
            "skip {count:,} bad row; it will be in {report} with its reason",
            "skip {count:,} bad rows; each will be in {report} with its reason",
            survey.bad.count,
            report=report,
        )
        steps.verb(why, "convert", "good", "--to", "messages", "--skip-bad", report)
    if survey.exact.count:
        why = _("drop what appears twice")
        if survey.near.count:
            why = ngettext(
                "drop what appears twice; --near 0.9 drops {count:,} more that is nearly the same",
                "drop what appears twice; --near 0.9 drops {count:,} more that are nearly the same",
                survey.near.count,
            )
        steps.verb(why, "dedup", "distinct")


def _drop_empty(survey: Survey, steps: Steps) -> None:
    count = len(survey.empty_lines)
    if count > MOST_DELETED or steps.file.kind != JSON_LINES or steps.current.suffix in (".gz", ".zst"):
        steps.remark(
            ngettext(
                "write an answer in {count:,} row that has none, or take it out: see above",
                "write an answer in {count:,} rows that have none, or take them out: see above",
                count,
            )
        )
        return
    out = steps.beside(f"{steps.stem}.answered.jsonl")
    lines = ";".join(f"{line}d" for line in survey.empty_lines)
    steps.remark(ngettext("drop {count:,} row without an answer", "drop {count:,} rows without an answer", count))
    steps.lines.append(f"sed {shlex.quote(lines)} {shell_word(str(steps.current))} > {shell_word(str(out))}")
    steps.current = out


def _repair(survey: Survey, steps: Steps) -> None:
    skip: list[str | Path] = []
    if survey.bad.count:
        skip = ["--skip-bad", steps.beside(f"{steps.stem}.unrepaired.jsonl")]
    way = _way_to_repair(survey)
    if way == "turns":
        steps.verb(_("make the nested turns real ones"), "repair", "repaired", "--as", "turns", *skip)
    elif way == "drop":
        why = ngettext(
            "drop {count:,} row that holds no question; with the list of questions, --questions gives it back",
            "drop {count:,} rows that hold no question; with the list of questions, --questions gives them back",
            survey.nested,
        )
        steps.verb(why, "repair", "repaired", "--as", "drop", *skip)
    else:
        questions = questions_of(Path(steps.file.path))
        if not questions:
            questions = steps.folder / QUESTIONS
            steps.remark(
                _(
                    "put the list of questions that the file was made from at {path} (docs/tutorial-data.md)",
                    path=questions,
                )
            )
            steps.remark(_("without a list, --as repr in place of --questions trains on just what XTuner did"))
        steps.verb(_("give the questions back"), "repair", "repaired", "--questions", questions, *skip)


def _way_to_repair(survey: Survey) -> str:
    """What `repair` can do about rows without a question: turns, questions or drop."""
    if survey.nested_questions == survey.nested:
        return "turns"
    return "drop" if not survey.questions and survey.nested < survey.rows / 2 else "questions"


def questions_of(path: Path) -> Path | None:
    """The list of questions that the tutorial's file was made from, beside the file or here; None without one."""
    return next((list_ for list_ in (path.with_name(QUESTIONS), Path(QUESTIONS)) if list_.is_file()), None)


def _rename(survey: Survey, steps: Steps, rows_holding: Counter[str]) -> None:
    name = chosen_name(survey)
    if survey.placeholders:
        rest = [word for key in _keys(survey) for word in ("--set", f"{key}={_value(key, name, survey)}")]
        rest += ["--own-name"] if any(placeholder in survey.owners for placeholder in survey.placeholders) else []
        why = _("fill the placeholders; put your own words in place of {name}", name=name)
        steps.verb(why, "rename", "filled", *rest)
        return
    old = _old_names(survey, rows_holding, name)
    rest = [word for one in old for word in ("--old", one, "--new", name)]
    owned = {owner: count for owner, count in survey.owners.items() if owner in (*old, name)}
    if not rest and not owned:
        return
    for one, count in old.items():
        steps.remark(ngettext("{name} stands in {count:,} row", "{name} stands in {count:,} rows", count, name=one))
    if owned:
        rest += [] if rest else ["--new", name]
        rest.append("--own-name")
        steps.remark(
            ngettext(
                "in {count:,} row the assistant is somebody's assistant",
                "in {count:,} rows the assistant is somebody's assistant",
                sum(owned.values()),
            )
        )
        if not old:
            other = EXAMPLE_NAMES[languages_of(survey)[0]]
            options = f"--old {shell_word(name)} --new {other} --own-name"
            steps.remark(_("for another name, write {options}", options=options))
    why = _("make the name {name}", name=name)
    if not survey.name:
        why = _("make the name {name}; put your own name in its place", name=name)
    steps.verb(why, "rename", "renamed", *rest)


def _old_names(survey: Survey, rows_holding: Counter[str], name: str) -> dict[str, int]:
    """Names to be replaced, and in how many rows each stands.

    One that contradicts the wanted name is a name, and no common word, if most rows that hold it give it.
    """
    old = {one: finding.count for one, finding in survey.leftovers.items() if finding.count}
    old |= {one: count for one, count in survey.old_names.most_common() if one not in old}
    for one in survey.contradictions if survey.name else ():
        given = survey.names[one] + survey.owners[one]
        if one not in old and len(one) > 1 and given and rows_holding[one] <= 2 * given:
            old[one] = rows_holding[one]
    return {one: count for one, count in old.items() if normalise(one) != normalise(name)}


def _keys(survey: Survey) -> Iterator[str]:
    """The keys of the open placeholders, each in one spelling, most frequent first."""
    seen = set()
    for placeholder, _finding in sorted(survey.placeholders.items(), key=lambda found: -found[1].count):
        key = key_of(placeholder)
        if (normalise(key) or key) not in seen:
            seen.add(normalise(key) or key)
            yield key


def _value(key: str, name: str, survey: Survey) -> str:
    if not is_of_the_maker(key):
        return name
    return f"{name}团队" if languages_of(survey)[0] == "zh" else f"the {name} team"


def _remarks(survey: Survey) -> Iterator[Text]:
    share = survey.system_characters / survey.characters if survey.characters else 0
    if share > MUCH_SYSTEM and len(survey.systems) == 1:
        yield _(
            "{share:.0%} of all characters are copies of one system message: rename --system none drops them, if the "
            "model is to answer without it",
            share=share,
        )
    if survey.sensitive:
        yield _("look at what seems private, and take it out")


def _missing_ordinary(survey: Survey) -> float:
    """How many ordinary rows the file lacks to have `ORDINARY_SHARE` of them; 0 where it has enough."""
    rows, ordinary = _rows(survey)
    if rows == ordinary or ordinary >= FEWEST_ORDINARY * rows:
        return 0
    return (ORDINARY_SHARE * rows - ordinary) / (1 - ORDINARY_SHARE)


def _rows(survey: Survey) -> tuple[int, int]:
    """How many rows are left once the file is mended, and how many of them are ordinary ones."""
    left = Counter(survey.distinct)
    if survey.nested and _way_to_repair(survey) == "drop":
        left = Counter({kind: count for kind, count in left.items() if not kind[0]})
    return left.total(), left[False, False] + left[True, False]


def _mix(survey: Survey, steps: Steps) -> None:
    """Ordinary rows are added where they are too few."""
    missing = _missing_ordinary(survey)
    if missing <= 0:
        return
    rows = max(min(round(missing), ORDINARY_ROWS), 1)
    copies = max(min(missing / rows, MOST_COPIES), 1) if missing > ORDINARY_ROWS else 1
    # Of a file that would need more copies than that, only a part is taken.
    weight = min(copies * rows / missing, 1) if copies == MOST_COPIES else 1
    ordinary = steps.beside(f"{steps.stem}.ordinary.jsonl")
    left, ordinary_rows = _rows(survey)
    share = ordinary_rows / left
    steps.remark(
        _(
            "add ordinary rows, or the model may answer everything with its name; now {share:.0%} are ordinary",
            share=share,
        )
    )
    languages = ",".join(languages_of(survey))
    rest = ["--name", chosen_name(survey), "--ordinary", "1", "--rows", str(rows), "--lang", languages]
    steps.run("python -m data_tools generate", ordinary, *rest)
    mixed = steps.beside(f"{steps.stem}.mixed.jsonl")
    steps.run("python -m data_tools mix", mixed, f"{steps.current}:{weight:.4g}", f"{ordinary}:{copies:.4g}")
    steps.current = mixed


def _train(survey: Survey, steps: Steps, max_length: int) -> None:
    """A recipe of its own is written for the file, looked at and run."""
    name = re.sub(r"[^\w-]+", "_", steps.stem)
    recipe = steps.free(Path("recipes") / f"{name}.yaml")
    values = {"train_file": str(steps.current), "output_dir": f"work_dirs/{recipe.stem}"}
    if survey.identity_rows:
        values["identity_name"] = chosen_name(survey)
    over = sum(length > max_length for length in survey.token_lengths)
    if over:
        steps.remark(
            ngettext(
                "{count:,} row of more than {length:,} tokens is dropped: or raise max_length instead",
                "{count:,} rows of more than {length:,} tokens are dropped: or raise max_length instead",
                over,
                length=max_length,
            )
        )
        values |= {"truncation": "drop"}
    edits = [f"s|^{key}:.*|{key}: {_for_sed(json.dumps(value, ensure_ascii=False))}|" for key, value in values.items()]
    edits += [] if survey.identity_rows else ["/^identity_name:/d"]
    steps.remark(_("train: write a recipe for it, see what it will do, run it"))
    words = " ".join(f"-e {shlex.quote(edit)}" for edit in edits)
    steps.lines.append(f"sed {words} recipes/huangdali.yaml > {shell_word(str(recipe))}")
    steps.run("python train_sft.py", recipe, "--dry_run")
    steps.run("deepspeed --quiet train_sft.py", recipe)


def _for_sed(text: str) -> str:
    return re.sub(r"[\\&|]", r"\\\g<0>", text)
