"""Whatever JSON a file holds, reading it never ends in a traceback and never loses a word."""

import json
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from data_tools.__main__ import main
from data_tools.convert import convert
from sft.core.errors import UserError
from sft.data.formats import FORMATS, BadRow, CannotHold, canonical_row, read_rows

ROW_KEYS = ["conversation", "conversations", "messages", "instruction", "input", "output", "system", "history"]
TURN_KEYS = ["role", "content", "from", "value", "x"]
KEYS = some.sampled_from([*ROW_KEYS, *TURN_KEYS])
WORDS = some.text(max_size=8) | some.sampled_from(["user", "assistant", "system", "human", "gpt", "xxx", ""])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | WORDS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
TEXT = some.text(some.characters(exclude_categories=["Cs"]), min_size=1)
QUESTION = TEXT.filter(lambda text: text.strip() and not text.strip().lower().startswith("xxx"))
TURNS = some.lists(some.tuples(QUESTION, TEXT | some.just("")), min_size=1, max_size=4)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_a_row_or_a_bad_row(value):
    said = None
    try:
        row = canonical_row(value)
    except BadRow as problem:
        said = str(problem)
    assert "\n" not in said if said else row["messages"][-1]["role"] == "assistant"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(some.lists(JSON, max_size=3), some.binary(max_size=20))
def test_any_file_is_read_or_refused_by_line(tmp_path_factory, values, garbage):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"".join(json.dumps(value).encode() + b"\n" for value in values) + garbage)
    said = None
    try:
        rows = list(read_rows(path))
    except UserError as problem:
        said = str(problem)
    assert said.startswith(f"{path}:") if said else rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TURNS, some.none() | TEXT, some.sampled_from(sorted(FORMATS)), some.sampled_from(sorted(FORMATS)))
def test_a_conversation_survives_any_two_conversions(turns, system, first, second):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        there = convert({"messages": messages}, first)
        assert canonical_row(convert(there, second)) == {"messages": messages}
    except CannotHold:
        assert "alpaca" in (first, second)
        assert len(turns) > 1


VERBS = {
    "rename": ["--old", "a", "--new", "b"],
    "repair": ["--as", "turns"],
    "convert": ["--to", "alpaca", "--lossy"],
    "dedup": ["--near", "0.8"],
}
GOOD_ROW = {"conversation": [{"input": "q", "output": "a"}]}
ROWS = some.lists(JSON | some.just(GOOD_ROW), min_size=1, max_size=5)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS, some.binary(max_size=20), some.sampled_from(sorted(VERBS)))
def test_whatever_a_file_holds_no_verb_loses_a_row(tmp_path_factory, capsys, values, garbage, verb):
    source, out, report = (tmp_path_factory.getbasetemp() / name for name in ("in.jsonl", "out.jsonl", "bad.jsonl"))
    lines = [json.dumps(value).encode() for value in values] + [line for line in garbage.split(b"\n") if line.strip()]
    source.write_bytes(b"\n".join(lines))
    capsys.readouterr()
    assert main([verb, str(source), str(out), *VERBS[verb], "--skip-bad", str(report)]) in (0, 2)
    said = capsys.readouterr()
    if said.err:
        assert "UTF-16" in said.err
        return
    counts = re.findall(r"^ +([\d,]+)  (?:row )?(?:skipped|dropped)", said.out, re.MULTILINE)
    left_out = sum(int(count.replace(",", "")) for count in counts)
    rows_out = len(out.read_bytes().splitlines())
    assert rows_out + left_out == len(lines), said.out


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS, some.binary(max_size=20))
def test_whatever_a_file_holds_it_can_be_inspected(tmp_path_factory, capsys, values, garbage):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"".join(json.dumps(value).encode() + b"\n" for value in values) + garbage)
    code = main(["inspect", str(path), "--was", "a", "--html", str(path.with_suffix(".html"))])
    assert code == 0 or "UTF-16" in capsys.readouterr().err
