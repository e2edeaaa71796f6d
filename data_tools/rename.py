"""Put a new name where an old one stands, in every text of a JSONL file, and fill placeholders like {{name}}.

In: any JSONL, nested as deeply as it likes. Out: the same lines with only the names changed, byte for byte otherwise.
Every text is one: content, reasoning, what a tool call passes and what a tool is described with; keys are none. In
arguments that are JSON text, names are found as they are and escaped, as \\u5c16\\u7c73.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from data_tools import bad_lines
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data import formats

KEY = re.compile(rb'"\s*:')
# What a backslash turns into something else, alone or as the last digit of \uXXXX.
ENDS_AN_ESCAPE = frozenset('"\\/bfnrtu0123456789abcdefABCDEF')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("input", type=Path, help="JSONL file to read")
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("--old", action="append", default=[], help="name to replace; may be given several times")
    parser.add_argument("--new", action="append", default=[], help="what stands there instead, one for each --old")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fill {{KEY}}, in lower or upper case"
    )
    parser.add_argument("--also", action="append", default=[], help="another spelling of the old name to warn about")
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replace the names and warn of spellings that remain; returns the exit code."""
    names = _names(arguments.old, arguments.new)
    for warning in _overlaps(names):
        print(f"warning: {warning}")
    replacements = names | placeholders(_settings(arguments.set))
    if not replacements:
        raise UserError("nothing to rename: give --old and --new, or --set KEY=VALUE")
    rename = Rename(replacements, arguments.also)
    lines = changed = 0
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for number, line in files.numbered_lines(arguments.input):
            try:
                renamed = rename(line)
            except formats.BadRow as problem:
                bad(arguments.input, number, problem, line)
                continue
            lines, changed = lines + 1, changed + (renamed is not line)
            out.write(renamed if renamed.endswith(b"\n") else renamed + b"\n")
    replaced = counted(sum(rename.replaced.values()), "replacement")
    print(f"{arguments.out}: {counted(lines, 'line')}, {changed:,} changed, {replaced}")
    if not changed:
        print("nothing to change: the file holds no old name and no placeholder that was given")
    for field, count in rename.replaced.most_common():
        print(f"  {count:>9,}  {field}")
    for summary in bad.summary():
        print(summary)
    for spelling, (count, number) in rename.survivors.items():
        print(f"warning: {spelling!r} still stands in {counted(count, 'line')}, the first is line {number}")
    return 0


class Rename:
    """Replaces names in the texts of one JSON line after another, and counts by field.

    All names are replaced in one pass, so that no replacement is replaced again; where a new name holds an old one,
    it is left alone, so that a second run changes nothing.
    """

    def __init__(self, names: dict[str, str], also: Sequence[str] = ()):
        self.replacements = replacements = names | _in_json_text(names)
        self.replaced: Counter[str] = Counter()
        self.survivors: dict[str, tuple[int, int]] = {}
        settled = [new for new in replacements.values() if any(old in new for old in replacements)]
        words = sorted({*replacements, *settled}, key=len, reverse=True)
        self._text = re.compile("|".join(map(re.escape, words)))
        raw = {_escaped(word): _escaped(replacements.get(word, word)) for word in words}
        self._raw = re.compile(b"|".join(re.escape(word) for word in raw))
        self._raw_replacements = raw
        self._only, self._several = list(raw), len(raw) > 1
        # Names that nothing in JSON escapes and whose new name does not hold them: their bytes are their text.
        self._plain = {
            _escaped(old): old for old, new in replacements.items() if old not in new and _escaped(old) == old.encode()
        }
        self._spaced = {old: re.compile(r"\W*".join(map(re.escape, old)), re.IGNORECASE) for old in names}
        # Most lines hold not even the first character of an old name, which is quick to see in its bytes.
        firsts = {case for text in (*names, *also) if text for case in (text[0].lower(), text[0].upper())}
        self._hints_at_survivors = re.compile(b"|".join(re.escape(first.encode()) for first in sorted(firsts))).search
        self._also = also
        self._lines = 0

    def __call__(self, line: bytes) -> bytes:
        """The line with names replaced; the very same object where there was nothing to replace.

        Raises:
            BadRow: the line is not JSON, or a key stands twice in one object.
        """
        self._lines += 1
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            formats.parse_line(line)
            raise formats.BadRow(f"not JSON ({problem}): one JSON object to a line") from None
        renamed = self._quickly(line, row)
        if renamed is None:
            renamed = self._carefully(line, row)
        if self._hints_at_survivors(renamed):
            self._look_for_survivors(renamed)
        return renamed

    def _quickly(self, line: bytes, row: object) -> bytes | None:
        """The line renamed by replacing bytes, or None where that might not come to the same as changing the texts.

        It does where one name stands in the line, as often in its bytes as in its texts, and no escape runs into it.
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
        texts = _count(row, old, "", counts)
        if sum(counts.values()) != len(around) - 1:
            return None
        # Where every quote of the line is one of a parsed text's two, no repeated key is hidden among them.
        if line.count(b'"') > 2 * texts:
            _refuse_repeated_keys(line, row)
        for field, count in counts.items():
            self.replaced[field] += count
        return self._raw_replacements[present[0]].join(around)

    def _carefully(self, line: bytes, row: object) -> bytes:
        """The line renamed by changing its texts; in its bytes where that comes to the same, else written anew."""
        counts: Counter[str] = Counter()
        renamed_row = self._walk(row, "", counts)
        if not counts:
            return line
        _refuse_repeated_keys(line, row)
        self.replaced.update(counts)
        renamed, replaced = self._in_bytes(line)
        if replaced != sum(counts.values()) or orjson.loads(renamed) != renamed_row:
            renamed = orjson.dumps(renamed_row) + b"\n"
        return renamed

    def _in_bytes(self, line: bytes) -> tuple[bytes, int]:
        replaced = 0

        def replace(match: re.Match) -> bytes:
            nonlocal replaced
            new = self._raw_replacements[match.group()]
            replaced += new != match.group()
            return new

        return self._raw.sub(replace, line), replaced

    def _walk(self, value: object, field: str, counts: Counter) -> object:
        if isinstance(value, str):
            return self._text.sub(self._counting(field, counts), value) if self._text.search(value) else value
        if isinstance(value, dict):
            return {key: self._walk(item, f"{field}.{key}" if field else key, counts) for key, item in value.items()}
        if isinstance(value, list):
            return [self._walk(item, f"{field}[]", counts) for item in value]
        return value

    def _counting(self, field: str, counts: Counter) -> Callable[[re.Match], str]:
        def replace(match: re.Match) -> str:
            new = self.replacements.get(match.group(), match.group())
            if new != match.group():
                counts[field] += 1
            return new

        return replace

    def _look_for_survivors(self, line: bytes) -> None:
        """Remember spellings of an old name that the exact search does not find: spaced, in other case, or given."""
        text = self._without_new_names(line)
        for old, spaced in self._spaced.items():
            for spelling in {match.group() for match in spaced.finditer(text)} - {old}:
                self._survives(spelling)
        for spelling in self._also:
            if spelling.lower().encode() in line.lower():
                self._survives(spelling)

    def _without_new_names(self, line: bytes) -> str:
        text = line.decode("utf-8")
        for new in self.replacements.values():
            text = text.replace(new, "\0")
        return text

    def _survives(self, spelling: str) -> None:
        count, first = self.survivors.get(spelling, (0, self._lines))
        self.survivors[spelling] = (count + 1, first)


def _names(old: list[str], new: list[str]) -> dict[str, str]:
    if len(old) != len(new) or not all([*old, *new]):
        raise UserError("--old and --new come in pairs, and neither may be empty: give each --old its --new")
    if len(set(old)) < len(old):
        raise UserError("--old: the same name is given twice: give each once")
    return dict(zip(old, new, strict=True))


def _settings(settings: list[str]) -> dict[str, str]:
    filled = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise UserError(f"--set {setting}: write it as KEY=VALUE, such as name=黄大力")
        filled[key] = value
    return filled


def placeholders(values: dict[str, str]) -> dict[str, str]:
    """What other projects' files hold for a value yet to be filled in, {{key}} or {{KEY}}, by spelling."""
    return {
        f"{{{{{spelling}}}}}": value for key, value in values.items() for spelling in (key, key.upper(), key.lower())
    }


def _overlaps(names: dict[str, str]) -> list[str]:
    return [
        f"the {'new name ' + new if old in new else 'old name ' + old} holds the "
        f"{'old' if old in new else 'new'} one; look at a few lines of the result"
        for old, new in names.items()
        if old in new or new in old
    ]


def _count(value: object, old: str, field: str, counts: dict[str, int]) -> int:
    """Add up how often a name stands in each text field; returns how many texts there are, keys included.

    Most of a run's time is spent here, so that it looks into a text only once and names a field only when it must.
    """
    if type(value) is dict:
        texts = len(value)
        for key, item in value.items():
            kind = type(item)
            if kind is str:
                texts += 1
                if old in item:
                    name = f"{field}.{key}" if field else key
                    counts[name] = counts.get(name, 0) + item.count(old)
            elif kind is dict or kind is list:
                texts += _count(item, old, f"{field}.{key}" if field else key, counts)
        return texts
    texts, field = 0, f"{field}[]"
    for item in value if type(value) is list else ():
        if type(item) is str:
            texts += 1
            if old in item:
                counts[field] = counts.get(field, 0) + item.count(old)
        else:
            texts += _count(item, old, field, counts)
    return texts


def _in_json_text(names: dict[str, str]) -> dict[str, str]:
    """The names as they stand in a text that is JSON itself and escapes all but ASCII, where that differs."""
    return {json.dumps(old)[1:-1]: json.dumps(new)[1:-1] for old, new in names.items() if not old.isascii()}


def _escaped(text: str) -> bytes:
    """The text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8")


def _refuse_repeated_keys(line: bytes, row: object) -> None:
    """A key that stands twice hides its first text from any parser, so that a name could survive there."""
    # Every key is a quote and a colon; where there are no more of these than parsed keys, none is hidden.
    if len(KEY.findall(line)) > _count_keys(row):
        formats.parse_json(line.decode("utf-8"))


def _count_keys(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0
