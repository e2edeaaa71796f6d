"""Put a new name where an old one stands, in every text of a JSONL file, and fill placeholders like {{name}}.

In: any JSONL, nested as deeply as it likes. Out: the same lines with only the names changed, byte for byte otherwise.
Every text is one: content, reasoning, what a tool call passes and what a tool is described with; keys are none. In
arguments that are JSON text, names are found as they are and escaped, as \\u5c16\\u7c73.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_tools import bad_lines, inputs, system_message
from data_tools.bad_lines import BadLines
from data_tools.renaming import own_name
from data_tools.renaming.counts import Counts
from data_tools.renaming.spellings import Placeholders, as_word
from data_tools.renaming.survivors import Survivors
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import Tally, counted, one_line
from sft.core.verbs import add_output
from sft.data.rows.json_line import BadRow, ended, hides_a_key, json_line, parse_line

# A string of a JSON line with its quotes, and the colon after it if it is a key.
LITERAL = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?', re.DOTALL)
# What a backslash turns into something else, alone or as the last digit of \uXXXX.
ENDS_AN_ESCAPE = frozenset('"\\/bfnrtu0123456789abcdefABCDEF')
# As much of a text is shown before a change and after its beginning.
SHOWN_BEFORE, SHOWN_AFTER = 10, 30
# Who says a text, by the role of its turn or by its key; any other is the assistant's.
SPEAKERS = {"system": "system", **dict.fromkeys(("user", "human", "tool", "observation", "function"), "user")}
KEYS = {"system": "system", **dict.fromkeys(("input", "instruction", "question", "prompt", "query"), "user")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser)
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("--old", action="append", default=[], help="name to replace; may be given several times")
    parser.add_argument("--new", action="append", default=[], help="what stands there instead, one for each --old")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fill {{KEY}}, <KEY>, [KEY] and 【KEY】, in lower or upper case",
    )
    parser.add_argument(
        "--own-name",
        action="store_true",
        help='write "I am X" for "I am X\'s assistant", 我是X for 我是X的智能助手; give X with --new alone if it '
        "stands there already",
    )
    parser.add_argument(
        "--inside-words", action="store_true", help='replace Latin names inside longer words too, Al in "Always"'
    )
    system_message.add_argument(parser)
    parser.add_argument("--also", action="append", default=[], help="another spelling of the old name to warn about")
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replace the names and warn of spellings that remain; returns the exit code."""
    names, own_names = _names(arguments)
    settings, system = _settings(arguments.set), system_message.read(arguments.system)
    for warning in _overlaps(names):
        print(f"warning: {warning}")
    if not (names or own_names or settings or system is not None):
        raise UserError("nothing to rename: give --old and --new, --set KEY=VALUE, or --system")
    rename = Rename(names, arguments.also, settings, own_names if arguments.own_name else None, arguments.inside_words)
    work = _Work(arguments.input, rename, system, skip_bad=arguments.skip_bad is not None)
    counts = Counts()
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for renamed, of_block, bad_of_block in inputs.in_blocks(inputs.row_file(arguments.input, arguments), work):
            out.write(renamed)
            counts.add(of_block)
            bad.extend(bad_of_block)
    replaced = counted(sum(counts.replaced.values()), "replacement")
    print(f"{arguments.out}: {counted(counts.lines, 'line')}, {counts.changed:,} changed, {replaced}")
    if not counts.changed:
        print("nothing to change: the file holds no old name and no placeholder that was given")
    for summary in [*counts.report(), *bad.summary(), *counts.survivors.report()]:
        print(summary)
    return 0


@dataclass
class _Work:
    """Renames in blocks of lines."""

    path: Path
    rename: "Rename"
    system: str | None
    skip_bad: bool

    def __call__(self, block: Iterable[tuple[int, bytes]]) -> tuple[bytes, Counts, BadLines]:
        """The lines renamed, what was counted, and the bad lines.

        Raises:
            UserError: a line is bad, and bad ones are not to be skipped.
        """
        counts = self.rename.counts = Counts()
        bad, lines = BadLines.of_block(self.skip_bad), []
        for number, line in block:
            try:
                renamed = self.rename(
                    line if self.system is None else _with_system(line, self.system, counts.systems), number
                )
            except BadRow as problem:
                bad(self.path, number, problem, line)
                continue
            counts.changed += renamed is not line
            lines.append(ended(renamed))
        counts.lines = len(lines)
        return b"".join(lines), counts, bad


class Rename:
    """Replaces names in the texts of one JSON line after another, and counts by field, in `counts`.

    All names are replaced in one pass, so that no replacement is replaced again; where a new name holds an old one,
    it is left alone, so that a second run changes nothing. A name that begins or ends in a Latin letter or a digit is
    replaced only as a word of its own, unless `inside_words`. `settings` fill placeholders by key. With `own_names`,
    "X's assistant" becomes X, for these, the old and the new names, where it says what the speaker is.
    """

    def __init__(
        self,
        names: dict[str, str],
        also: Sequence[str] = (),
        settings: dict[str, str] | None = None,
        own_names: Sequence[str] | None = None,
        inside_words: bool = False,
    ):
        self.replacements = replacements = names | _in_json_text(names)
        self.counts = Counts()
        new_names = {*names.values(), *(settings or {}).values()}
        settled = {new for new in (*replacements.values(), *new_names) if any(old in new for old in replacements)}
        unescaped = {escaped: old for old in names for escaped in _in_json_text({old: ""})}
        words = sorted({*replacements, *settled}, key=len, reverse=True)
        patterns = {w: re.escape(w) if inside_words else as_word(unescaped.get(w, w), w) for w in words}
        self._placeholders = Placeholders(settings) if settings else None
        self._text = re.compile("|".join(patterns.values()) or "(?!)")
        raw = {_escaped(word): _escaped(replacements.get(word, word)) for word in words}
        self._raw_replacements = raw
        self._only, self._several = list(raw), len(raw) > 1
        # Names that nothing in JSON escapes and whose new name does not hold them: their bytes are their text.
        self._plain = {
            _escaped(old): old for old, new in replacements.items() if old not in new and _escaped(old) == old.encode()
        }
        # Names that may be parts of longer words, where they are left alone.
        self._words = {old: re.compile(patterns[old]) for old in replacements if patterns[old] != re.escape(old)}
        # Whose assistant somebody may be, and where he is it.
        owners = sorted({*names, *new_names, *(own_names or ())}, key=len, reverse=True)
        self._owner = re.compile("|".join(map(as_word, owners)) or "(?!)")
        self._own = re.compile(own_name.phrase(self._owner.pattern)) if own_names is not None else None
        # A line that holds one of these is renamed text by text.
        self._hints = [b""] if settings else [rb"\u", *own_name.HINTS] if self._own else []
        self.survivors = Survivors(names, [*replacements.values(), *new_names, *(own_names or ())], also, inside_words)

    def __call__(self, line: bytes, number: int = 1) -> bytes:
        """The line with names replaced; the very same object where there was nothing to replace.

        Raises:
            BadRow: the line is not JSON, or a key stands twice in one object.
        """
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            parse_line(line)
            raise BadRow(f"holds what JSON has no form for, such as NaN ({problem}): write null there") from None
        renamed = None if self._hints and any(hint in line for hint in self._hints) else self._quickly(line, row)
        if renamed is None:
            renamed = self._carefully(line, row, number)
        self.survivors.look(renamed, number, self.counts.survivors)
        return renamed

    def _quickly(self, line: bytes, row: object) -> bytes | None:
        """The line renamed by replacing bytes, or None where that might not come to the same as changing the texts.

        It does where one name stands in the line, as often in its bytes as in its texts as a word of its own, and no
        escape runs into it.
        """
        present = [word for word in self._raw_replacements if word in line] if self._several else self._only
        if len(present) > 1:
            return None
        around = line.split(present[0]) if present else [line]
        if len(around) == 1:
            return None if b"\\u" in line or b"\\/" in line else line
        old = self._plain.get(present[0])
        if not old or (old[0] in ENDS_AN_ESCAPE and b"\\" in line):
            return None
        counts: dict[str, int] = {}
        texts = _count(row, old, self._words.get(old), "", counts)
        if sum(counts.values()) != len(around) - 1:
            return None
        # Where every quote of the line is one of a parsed text's two, no repeated key is hidden among them.
        if line.count(b'"') > 2 * texts and hides_a_key(line, row):
            parse_line(line)
        for field, count in counts.items():
            self.counts.replaced[field] += count
        return self._raw_replacements[present[0]].join(around)

    def _carefully(self, line: bytes, row: object, number: int) -> bytes:
        """The line renamed text by text: those that change are written anew, every other byte stays."""
        if hides_a_key(line, row):
            parse_line(line)
        changed = {}
        for index, (text, field, speaker) in enumerate(_texts(row)):
            renamed = self._renamed(text, field, speaker, number)
            if renamed != text:
                changed[index] = renamed
        if not changed:
            return line
        index = -1

        def rewrite(literal: re.Match) -> bytes:
            nonlocal index
            if literal[2]:
                return literal[0]
            index += 1
            if index not in changed:
                return literal[0]
            is_escaped = literal[0].isascii() and rb"\u" in literal[0]
            return json.dumps(changed[index], ensure_ascii=is_escaped).encode("utf-8")

        return LITERAL.sub(rewrite, line)

    def _renamed(self, text: str, field: str, speaker: str, number: int) -> str:
        if self._placeholders:
            text, filled = self._placeholders.fill(text)
            self.counts.filled.update(filled)
            self.counts.replaced[field] += filled.total()
        phrases = [match for match in self._own.finditer(text) if _is_own(match, speaker)] if self._own else []
        renamed = self._with_own_names(text, phrases) if phrases else text
        if self._text.search(renamed):
            renamed = self._text.sub(lambda match: self._replace(match, field), renamed)
        if phrases:
            owned = self.counts.owned
            if speaker != "system":
                owned.extend(Tally(0, [self._example(phrases[0], renamed, number)]))
            elif not owned.count:
                self.counts.first_owned = [self._example(phrases[0], renamed, number)]
            owned.count += len(phrases)
        return renamed

    def _example(self, phrase: re.Match, renamed: str, number: int) -> str:
        """The phrase before and after."""
        text, start = phrase.string, phrase.start()
        shift = len(self._text.sub(self._new, text[:start])) - start
        return f"line {number:,}: {_around(text, start)} -> {_around(renamed, start + shift)}"

    def _with_own_names(self, text: str, phrases: list[re.Match]) -> str:
        """The text with the name alone, still the old one, where the phrases stand."""
        parts, end = [], 0
        for phrase in phrases:
            owner = self._owner.search(phrase[0])
            parts += [text[end : phrase.start()], owner[0] if owner else phrase[0]]
            end = phrase.end()
        return "".join([*parts, text[end:]])

    def _replace(self, match: re.Match, field: str) -> str:
        new = self._new(match)
        self.counts.replaced[field] += new != match[0]
        return new

    def _new(self, match: re.Match) -> str:
        """What stands in the place of a name; a new name that holds an old one stays."""
        return self.replacements.get(match[0], match[0])


def _around(text: str, start: int) -> str:
    return one_line(text[max(start - SHOWN_BEFORE, 0) : start + SHOWN_AFTER])


def _names(arguments: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """The new names by the old ones, and those that stand in the file already, for which there is no old one."""
    old, new = arguments.old, arguments.new
    if arguments.own_name and not old and all(new) and (new or arguments.set):
        return {}, new
    if arguments.own_name and not old:
        raise UserError("--own-name: whose? give --old and --new, or --new alone for a name that stands there already")
    if len(old) != len(new) or not all([*old, *new]):
        raise UserError("--old and --new come in pairs, and neither may be empty: give each --old its --new")
    if len(set(old)) < len(old):
        raise UserError("--old: the same name is given twice: give each once")
    return dict(zip(old, new, strict=True)), []


def _settings(settings: list[str]) -> dict[str, str]:
    filled = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key.strip() and equals and value):
            raise UserError(f"--set {setting}: write it as KEY=VALUE, such as name=黄大力")
        filled[key.strip()] = value
    return filled


def _with_system(line: bytes, text: str, done: Counter[str]) -> bytes:
    row = parse_line(line)
    what = system_message.replace(row, text)
    if what is None:
        return line
    done[what] += 1
    return json_line(row)


def _is_own(phrase: re.Match, speaker: str) -> bool:
    return own_name.speaks_of_itself(phrase.string, phrase.start(), phrase.end(), speaker)


def _texts(value: object, field: str = "", speaker: str = "assistant") -> Iterator[tuple[str, str, str]]:
    """Every text of a row in its order, with its field and who says it; keys are none."""
    if isinstance(value, str):
        yield value, field, speaker
    elif isinstance(value, dict):
        role = value.get("role", value.get("from"))
        speaker = SPEAKERS.get(role, "assistant") if isinstance(role, str) else speaker
        for key, item in value.items():
            yield from _texts(item, f"{field}.{key}" if field else key, KEYS.get(key, speaker))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, f"{field}[]", speaker)


def _overlaps(names: dict[str, str]) -> list[str]:
    return [
        f"the {'new name ' + new if old in new else 'old name ' + old} holds the "
        f"{'old' if old in new else 'new'} one; look at a few lines of the result"
        for old, new in names.items()
        if old in new or new in old
    ]


def _count(value: object, old: str, word: re.Pattern | None, field: str, counts: dict[str, int]) -> int:
    """Add up how often a name stands in each text field, as a `word` if it must be one.

    Returns how many texts there are, keys included. Most of a run's time is spent here, so that it looks into a text
    only once and names a field only when it must.
    """
    if type(value) is dict:
        texts = len(value)
        for key, item in value.items():
            kind = type(item)
            if kind is str:
                texts += 1
                if old in item:
                    name = f"{field}.{key}" if field else key
                    counts[name] = counts.get(name, 0) + (len(word.findall(item)) if word else item.count(old))
            elif kind is dict or kind is list:
                texts += _count(item, old, word, f"{field}.{key}" if field else key, counts)
        return texts
    texts, field = 0, f"{field}[]"
    for item in value if type(value) is list else ():
        if type(item) is str:
            texts += 1
            if old in item:
                counts[field] = counts.get(field, 0) + (len(word.findall(item)) if word else item.count(old))
        else:
            texts += _count(item, old, word, field, counts)
    return texts


def _in_json_text(names: dict[str, str]) -> dict[str, str]:
    """The names as they stand in a text that is JSON itself and escapes all but ASCII, where that differs."""
    return {json.dumps(old)[1:-1]: json.dumps(new)[1:-1] for old, new in names.items() if not old.isascii()}


def _escaped(text: str) -> bytes:
    """The text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8")
