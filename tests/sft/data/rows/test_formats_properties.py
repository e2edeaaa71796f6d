"""Whatever JSON a file holds, reading it never ends in a traceback and never loses a word."""

import copy
import json
import re

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

from data_tools.__main__ import main
from data_tools.convert import convert
from sft.core.errors import UserError
from sft.data.rows.canonical import BadRow, CannotHold, texts_of
from sft.data.rows.formats import canonical_row, read_rows
from sft.data.rows.row_writing import FORMATS

ROW_KEYS = ["conversation", "conversations", "messages", "instruction", "input", "output", "system", "history"]
ROW_KEYS += ["tools", "functions"]
TURN_KEYS = ["role", "content", "from", "value", "x", "type", "text", "tool_calls", "function_call", "function", "name"]
TURN_KEYS += ["arguments", "reasoning", "thinking", "loss", "weight", "output_with_loss", "need_eos_token", "sep"]
KEYS = some.sampled_from([*ROW_KEYS, *TURN_KEYS])
WORDS = some.text(max_size=8) | some.sampled_from(["user", "assistant", "system", "human", "gpt", "xxx", ""])
WORDS |= some.sampled_from(["tool", "function", "function_call", "observation", "text", '[{"name": "f"}]'])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | WORDS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
TEXT = some.text(some.characters(exclude_categories=["Cs"]), min_size=1)
QUESTION = TEXT.filter(lambda text: text.strip() and not text.strip().lower().startswith("xxx"))
TURNS = some.lists(some.tuples(QUESTION, TEXT | some.just("")), min_size=1, max_size=4)
OBJECT = some.dictionaries(TEXT, some.recursive(TEXT | some.integers() | some.none(), some.lists, max_leaves=3))
FUNCTION = some.fixed_dictionaries({"name": TEXT, "arguments": OBJECT})
CALL = some.fixed_dictionaries({"type": some.just("function"), "function": FUNCTION}, optional={"id": TEXT})
MARK = some.fixed_dictionaries({}, optional={"loss": some.booleans()})
CALLING = some.builds(lambda calls, mark: {"tool_calls": calls, **mark}, some.lists(CALL, min_size=1, max_size=2), MARK)
TOLD = some.fixed_dictionaries({"content": TEXT | some.just("")}, optional={"name": TEXT, "tool_call_id": TEXT})
ANSWER = some.builds(lambda content, mark: {"content": content, **mark}, TEXT | some.just(""), MARK)
USE = some.tuples(CALLING, some.lists(TOLD, min_size=1, max_size=2))
TALK = some.lists(some.tuples(QUESTION, some.lists(USE, max_size=2), ANSWER), min_size=1, max_size=3)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_a_row_or_a_bad_row(value):
    said = None
    try:
        row = canonical_row(value)
    except BadRow as problem:
        said = str(problem)
    if said:
        assert "\n" not in said
        return
    assert row["messages"][-1]["role"] == "assistant"
    assert all(isinstance(text, str) for message in row["messages"] for text in texts_of(message))
    assert canonical_row(row) == row


CALLS = [{"name": "f", "arguments": "{}"}, {"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}]
GOOD_ROWS = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": CALLS, "thinking": "t", "weight": 0},
            {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"name": "f"}, {"type": "function", "function": {"name": "g"}}],
    },
    {
        "conversations": [
            {"from": "human", "value": "q", "loss": False},
            {"from": "function_call", "value": json.dumps(CALLS)},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "a", "loss": True},
        ],
        "tools": json.dumps([{"name": "f"}]),
    },
    {"conversation": [{"input": "q", "output": "a", "output_with_loss": 1, "need_eos_token": True, "sep": ""}]},
]


@some.composite
def rows_with_one_fault(draw) -> dict:
    """A good row in which any value stands in place of another one, or under a new key."""
    row = value = copy.deepcopy(draw(some.sampled_from(GOOD_ROWS)))
    while True:
        key = draw(some.sampled_from(range(len(value)) if isinstance(value, list) else [*value, draw(KEYS)]))
        at_key = value[key] if isinstance(value, list) else value.get(key)
        if not at_key or not isinstance(at_key, (dict, list)) or draw(some.booleans()):
            value[key] = draw(JSON)
            return row
        value = at_key


@settings(max_examples=500, deadline=None, derandomize=True)
@given(rows_with_one_fault())
def test_a_row_with_one_fault_is_read_or_refused_and_what_was_read_is_read_the_same_again(row):
    before = json.dumps(row)
    canonical, said = None, ""
    try:
        canonical = canonical_row(row)
    except BadRow as problem:
        said = str(problem)
    assert "\n" not in said
    assert canonical is None or canonical_row(canonical) == canonical
    assert json.dumps(row) == before


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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TALK, some.lists(some.fixed_dictionaries({"name": TEXT, "parameters": OBJECT}), max_size=2))
def test_a_conversation_with_tools_and_marks_survives_or_its_format_has_no_place_for_it(talk, functions):
    messages = []
    for question, uses, answer in talk:
        messages.append({"role": "user", "content": question})
        for calling, told in uses:
            messages.append({"role": "assistant", "content": "", **calling})
            messages += [{"role": "tool", **answered} for answered in told]
        messages.append({"role": "assistant", **answer})
    if all(message.get("loss") is False for message in messages if message["role"] == "assistant"):
        messages[-1]["loss"] = True
    row = {"messages": messages}
    if functions:
        row["tools"] = [{"type": "function", "function": function} for function in functions]
    used = {key for message in messages for key in message} | row.keys() - {"messages"}
    for form, held in (("messages", used), ("sharegpt", used), ("xtuner", {"role", "content", "loss"})):
        try:
            assert canonical_row(convert(row, form)) == row
        except CannotHold:
            assert used - held


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
    assume(not source.read_bytes().lstrip().startswith(b"["))  # one array, whatever its lines
    capsys.readouterr()
    assert main([verb, str(source), str(out), *VERBS[verb], "--skip-bad", str(report), "--force"]) in (0, 2)
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
    code = main(["inspect", str(path), "--was", "a", "--html", str(path.with_suffix(".html")), "--force"])
    said = capsys.readouterr().err
    assert code in (0, 1) or (said.startswith(f"data_tools inspect: {path}:") and said.count("\n") == 1)
