"""Tool calls, reasoning, parts and marks of loss: every format's spelling becomes one, or is refused in one line."""

import json

import pytest

from sft.data.rows.canonical import BadRow, CannotHold, answered, texts_of
from sft.data.rows.formats import canonical_row
from sft.data.rows.row_writing import FORMATS

ASK = {"role": "user", "content": "上海天气"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "上海"}}, "id": "c1"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": '{"sky": "晴"}', "name": "weather", "tool_call_id": "c1"}
ANSWER = {"role": "assistant", "content": "晴。"}
FUNCTION = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
TOOL_ROW = {"messages": [ASK, CALLING, TOLD, ANSWER], "tools": [TOOL]}


def messages(*turns: dict, **row) -> dict:
    return {"messages": list(turns), **row}


def asked(*turns: dict, **row) -> dict:
    """A row of messages in which the user asks first."""
    return messages({"role": "user", "content": "q"}, *turns, **row)


def answer(**keys) -> dict:
    return {"role": "assistant", "content": "a"} | keys


def xtuner(*turns: dict) -> dict:
    return {"conversation": [{"input": "q", "output": "a", **turn} for turn in turns]}


def sharegpt(*turns: tuple, **row) -> dict:
    """Turns as (from, value) or (from, value, other keys)."""
    return {"conversations": [{"from": name, "value": value, **dict(*rest)} for name, value, *rest in turns], **row}


def read(row: dict) -> list[dict]:
    return canonical_row(row)["messages"]


def test_a_canonical_row_is_read_as_it_is():
    assert canonical_row(TOOL_ROW) == TOOL_ROW
    again = messages(ASK, CALLING, TOLD, TOLD, CALLING | {"reasoning_content": "r", "loss": False}, TOLD, ANSWER)
    assert canonical_row(again) == again
    # The last thing that is learned may be a call.
    assert canonical_row(messages(ASK, CALLING)) == messages(ASK, CALLING)


@pytest.mark.parametrize(
    "call",
    [CALL, {"name": "f"}, {"name": "f", "arguments": "not JSON"}, {"function": {"name": "f", "arguments": '{"a": 1}'}}],
)
def test_tool_calls_are_kept_as_they_are_whatever_their_shape(call):
    [_, calling] = read(asked(answer(tool_calls=[call], content=None)))
    assert calling == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_a_call_may_come_without_content_or_with_words():
    assert read(asked({"role": "assistant", "tool_calls": [CALL]}))[1] == CALLING
    assert read(asked(answer(tool_calls=[CALL])))[1] == CALLING | {"content": "a"}


def test_older_openai_rows_call_functions():
    call, told = {"name": "f", "arguments": "{}"}, {"role": "function", "name": "f", "content": "1"}
    row = asked(answer(content=None, function_call=call), told, answer(), functions=[FUNCTION])
    assert canonical_row(row) == asked(
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "1", "name": "f"},
        answer(),
        tools=[TOOL],
    )


def test_a_table_has_every_key_in_every_turn_and_null_says_nothing():
    nulls = dict.fromkeys(["name", "tool_call_id", "reasoning", "thinking", "loss", "weight", "function_call"])
    row = messages(ASK | nulls | {"tool_calls": []}, ANSWER | nulls | {"tool_calls": []}, tools=None, functions=[])
    assert canonical_row(row) == messages(ASK, ANSWER)


@pytest.mark.parametrize(
    "tools",
    [[TOOL], [FUNCTION], [FUNCTION | {"type": "function"}], json.dumps([TOOL]), json.dumps([FUNCTION])],
)
def test_tools_are_objects_or_json_text_and_flat_ones_are_wrapped(tools):
    assert canonical_row(asked(answer(), tools=tools))["tools"] == [TOOL]
    assert canonical_row(sharegpt(("human", "q"), ("gpt", "a"), tools=tools))["tools"] == [TOOL]


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null"])
def test_a_row_without_tools_has_no_such_key(tools):
    assert canonical_row(asked(answer(), tools=tools)) == asked(answer())
    assert canonical_row(sharegpt(("human", "q"), ("gpt", "a"), tools=tools)) == asked(answer())


def test_sharegpt_calls_and_observations_become_the_same_row():
    calls = [{"name": "weather", "arguments": json.dumps({"city": "上海"}), "id": "c1"}]
    for value in (json.dumps(calls), json.dumps(calls[0]), json.dumps([CALL])):
        for tool in ("observation", "tool"):
            told = (tool, TOLD["content"], {"name": "weather", "tool_call_id": "c1"})
            turns = [("human", ASK["content"]), ("function_call", value), told, ("gpt", "晴。")]
            assert canonical_row(sharegpt(*turns, tools=json.dumps([FUNCTION]))) == TOOL_ROW


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", '"text"', '{"a": 1, "a": 2}', 3])
def test_sharegpt_arguments_that_are_the_text_of_no_object_stay(arguments):
    value = json.dumps({"name": "f", "arguments": arguments})
    [_, calling] = read(sharegpt(("human", "q"), ("function_call", value)))
    assert calling["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name):
    expected = answer(reasoning_content="so")
    assert read(asked(answer(**{name: "so"})))[1] == expected
    assert read(asked(answer(**{name: "so", "reasoning_content": "so"})))[1] == expected
    assert read(sharegpt(("human", "q"), ("gpt", "a", {name: "so"})))[1] == expected


def test_the_texts_of_parts_are_joined_with_nothing_between():
    parts = [{"type": "text", "text": "上"}, {"type": "text", "value": "海", "text": None}]
    for role in ("user", "assistant", "system", "tool"):
        turns = {"user": asked(answer()), "assistant": asked(answer()), "tool": TOOL_ROW}.get(role)
        turns = turns or messages({"role": "system", "content": "s"}, ASK, ANSWER)
        row = {"messages": [turn | ({"content": parts} if turn["role"] == role else {}) for turn in turns["messages"]]}
        assert {turn["content"] for turn in read(row) if turn["role"] == role} == {"上海"}


@pytest.mark.parametrize("content", [[], {}, ["q"], [{"text": "q"}], [{"type": 1}]])
def test_a_users_content_that_is_no_list_of_parts_is_no_question(content):
    with pytest.raises(BadRow, match="not the user's words: write the question there as text"):
        canonical_row(messages({"role": "user", "content": content}, answer()))
    with pytest.raises(BadRow, match="is the placeholder"):
        canonical_row(messages({"role": "user", "content": [{"type": "text", "text": "xxx"}]}, answer()))


MARKS = ["loss", "weight", "loss_weight"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(("value", "carries"), [(False, False), (0, False), (0.0, False), (True, True), (1.0, True)])
def test_a_marked_answer_carries_loss_or_none(mark, value, carries):
    kept = [("human", "q"), ("gpt", "a"), ("human", "q")]
    for row in (
        asked(answer(), {"role": "user", "content": "q"}, answer(**{mark: value})),
        sharegpt(*kept, ("gpt", "a", {mark: value})),
        xtuner({}, {"output_with_loss": value}),
    ):
        assert [turn.get("loss") for turn in read(row) if turn["role"] == "assistant"] == [None, carries]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_that_says_what_is_so_anyway_leaves_nothing(mark):
    assert read(messages(ASK | {mark: 0}, ANSWER | {mark: None})) == [ASK, ANSWER]
    assert read(sharegpt(("human", "q", {mark: False}), ("gpt", "a"))) == asked(answer())["messages"]
    assert read(messages(ASK, CALLING, TOLD | {mark: False}, ANSWER)) == TOOL_ROW["messages"]
    assert read(asked(answer(loss=True, weight=1)))[1] == answer(loss=True)


def test_a_call_can_be_marked_too():
    value = json.dumps({"name": "f", "arguments": {}})
    turns = ("human", "q"), ("function_call", value, {"loss": False}), ("observation", "1"), ("gpt", "a")
    assert [turn.get("loss") for turn in read(sharegpt(*turns))] == [None, False, None, None]


def test_what_ends_an_xtuner_turn_may_be_said_where_it_is_so_anyway():
    plain = read(xtuner({}))
    for keys in (
        {"need_eos_token": True},
        {"sep": ""},
        {"sep": None, "need_eos_token": None, "output_with_loss": None},
    ):
        assert read(xtuner(keys)) == plain


@pytest.mark.parametrize("keys", [{"id": 3}, {"mask": None}, {"source": "x"}])
def test_keys_that_say_nothing_of_training_are_passed_over_where_they_were(keys):
    assert read(xtuner(keys)) == read(sharegpt(("human", "q", keys), ("gpt", "a", keys))) == asked(answer())["messages"]


HALF = "\ud83d"
REFUSED = [
    # calls
    (asked(answer(tool_calls={})), "messages[1].tool_calls is an object: it must be a list of tool calls"),
    (asked(answer(tool_calls=["f"])), "messages[1].tool_calls[0] is text: a tool call is a JSON object"),
    (asked(answer(tool_calls=[CALL, {}])), "messages[1].tool_calls[1] names no function: write"),
    (asked(answer(tool_calls=[{"function": "f"}])), "tool_calls[0] names no function"),
    (asked(answer(tool_calls=[{"function": None, "name": "f"}])), "tool_calls[0] names no function"),
    (asked(answer(tool_calls=[{"name": ""}])), "tool_calls[0] names no function"),
    (asked(answer(tool_calls=[{"name": 3}])), "tool_calls[0] names no function"),
    (asked(answer(tool_calls=[{"name": "f", "arguments": {"a": [HALF]}}])), "tool_calls holds half of a surrogate"),
    (asked(answer(tool_calls=[{"name": "f", "arguments": {HALF: 1}}])), "tool_calls holds half of a surrogate"),
    (asked(answer(function_call="f")), "messages[1].function_call[0] names no function"),
    (asked(answer(function_call={"function": {"name": "f"}})), "function_call[0] names no function"),
    (asked(answer(tool_calls=[CALL], function_call=CALL)), "has tool_calls and function_call, which are two names"),
    (messages(ASK | {"tool_calls": [CALL]}, ANSWER), "messages[0] has tool_calls, which would not be trained on: only"),
    (asked(answer(tool_call_id="c1")), "messages[1] has tool_call_id, which would not be trained on: only role"),
    (messages(ASK, CALLING, TOLD | {"name": 3}, ANSWER), "messages[2].name is a number: it must be text"),
    (messages(ASK, CALLING, TOLD | {"tool_call_id": HALF}, ANSWER), "tool_call_id holds half of a surrogate"),
    (messages(ASK, CALLING, TOLD | {"content": {}}, ANSWER), "messages[2].content is an object: it must be text"),
    (asked(answer(content=None)), "messages[1].content is null: it must be text"),
    # order
    (messages(ASK, ANSWER, TOLD, ANSWER), "a tool message stands where no tool was called: it comes after"),
    (messages(TOLD, ANSWER), "a tool message stands where no tool was called"),
    (messages(ASK, CALLING, ASK, ANSWER), "comes after an assistant's that calls a tool; found user: write what"),
    (messages(ASK, CALLING, ANSWER), "comes after an assistant's that calls a tool; found assistant"),
    (messages(ASK, CALLING, TOLD), "an assistant message comes after a tool's; found the end: write what"),
    (messages(ASK, CALLING, TOLD, ASK, ANSWER), "an assistant message comes after a tool's; found user"),
    (messages(ASK, CALLING, TOLD, ANSWER, ASK), "assistant last; found user, assistant, tool, assistant, user"),
    # tools
    (asked(answer(), tools={}), "tools is an object: it must be a list of tools"),
    (asked(answer(), tools="[{"), "tools is not JSON (Expecting property name"),
    (asked(answer(), tools='[{"name": "f", "name": "g"}]'), 'tools: the key "name" stands twice'),
    (asked(answer(), tools='{"name": "f"}'), "tools is an object"),
    (asked(answer(), tools=["f"]), "tools[0] is text: a tool is a JSON object"),
    (asked(answer(), functions=[{"type": "search"}]), "functions[0] names no function: write"),
    (asked(answer(), tools=[FUNCTION | {"description": HALF}]), "tools holds half of a surrogate pair"),
    (asked(answer(), tools=[TOOL], functions=[FUNCTION]), "the row has tools and functions, which are two names"),
    (sharegpt(("human", "q"), ("gpt", "a"), tools="f(x)"), "tools is not JSON"),
    (sharegpt(("human", "q"), ("function_call", "f(x)")), "conversations[1].value is not JSON"),
    (sharegpt(("human", "q"), ("function_call", "3")), "conversations[1].value[0] is a number: a tool call is a JSON"),
    (sharegpt(("human", "q"), ("function_call", "[]")), "conversations[1].value is empty: it must be a list"),
    (sharegpt(("human", "q"), ("gpt", "a"), ("observation", "1")), "in sharegpt a function_call"),
    # reasoning
    (asked(answer(reasoning="a", thinking="b")), "messages[1] has reasoning and thinking, which differ: keep one"),
    (asked(answer(reasoning=["a"])), "messages[1].reasoning is a list: it must be text"),
    (asked(answer(thinking=HALF)), "messages[1].thinking holds half of a surrogate pair"),
    (messages(ASK | {"reasoning": "r"}, ANSWER), "messages[0] has reasoning, which would not be trained on"),
    # parts
    (asked(answer(content=[{"type": "text"}])), 'messages[1].content[0] lacks "text"'),
    (asked(answer(content=[{"type": "text", "text": 3}])), "messages[1].content[0].text is a number: it must be"),
    (asked(answer(content=[{"type": "text", "text": "a", "b": 1}])), "content[0] has b, which would not be trained on"),
    (asked(answer(content=[{"type": "thinking", "thinking": "t"}])), "of the type thinking: it holds no text, and"),
    *(
        (messages({"role": "user", "content": [{"type": "text", "text": "q"}, {"type": name}]}, ANSWER),
         f"messages[0].content[1] is of the type {name}: it holds {held}, and only text can be trained on; drop")
        for name, held in [("image_url", "an image"), ("image", "an image"), ("input_audio", "audio"),
                           ("audio", "audio"), ("video", "a video")]
    ),
    # marks
    (asked(answer(weight=0.5)), "messages[1].weight is 0.5: a turn carries loss or none; write true or false, 1 or 0"),
    (asked(answer(loss="no")), "messages[1].loss is 'no': a turn carries loss or none"),
    (asked(answer(loss=[])), "messages[1].loss is []: a turn carries loss or none"),
    (xtuner({"output_with_loss": 2}), "conversation[0].output_with_loss is 2: a turn carries loss or none"),
    (messages(ASK | {"loss": True}, ANSWER), "messages[0].loss asks for loss on a turn of the user, and only"),
    (messages(ASK | {"loss": True}, ANSWER), "loss_on: everything in the recipe trains every token"),
    (messages(ASK, CALLING, TOLD | {"weight": 1}, ANSWER), "messages[2].weight asks for loss on a turn of the tool"),
    (sharegpt(("human", "q", {"loss_weight": 1}), ("gpt", "a")), "loss_weight asks for loss on a turn of the user"),
    (asked(answer(loss=True, weight=0)), "messages[1] has loss and weight, which contradict each other: keep one"),
    (asked(answer(loss=False)), "every turn of the assistant is marked to carry no loss, so nothing is to be learned"),
    (xtuner({"output_with_loss": False}, {"output_with_loss": False}), "nothing is to be learned: drop the row"),
    (messages(ASK, CALLING | {"loss": 0}, TOLD, ANSWER | {"weight": 0}), "nothing is to be learned"),
    (xtuner({"need_eos_token": False}), "conversation[0].need_eos_token is false, and the chat template writes what"),
    (xtuner({"sep": "\n"}), "conversation[0].sep is '\\n', and the chat template writes what ends a turn: empty it"),
    (xtuner({"loss": False}), "conversation[0].loss cannot be honoured: mark a turn with output_with_loss: true or"),
    (sharegpt(("human", "q"), ("gpt", "a", {"Train": 0})), "conversations[1].Train cannot be honoured: mark a turn"),
    (sharegpt(("human", "q", {"mask_it": 0}), ("gpt", "a")), "conversations[0].mask_it cannot be honoured"),
    (asked(answer(train=False)), "messages[1] has train, which would not be trained on"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), REFUSED)
def test_what_training_could_not_honour_is_refused_by_its_field(row, said):
    with pytest.raises(BadRow) as error:
        canonical_row(row)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


REASONED = messages(ASK, ANSWER | {"reasoning_content": "r"})
MARKED = messages(ASK, ANSWER | {"loss": False}, ASK, ANSWER | {"loss": True}, ASK, ANSWER)
BARE = messages(ASK, CALLING | {"tool_calls": [{"type": "function", "function": {"name": "f"}}]})
ODD = messages(ASK, CALLING | {"tool_calls": [CALL | {"index": 0}]}, tools=[TOOL | {"strict": True}])


@pytest.mark.parametrize(
    ("form", "row"),
    [
        *(("messages", row) for row in (TOOL_ROW, REASONED, MARKED, BARE, ODD)),
        *(("sharegpt", row) for row in (TOOL_ROW, MARKED, BARE, ODD)),
        ("xtuner", MARKED),
    ],
)
def test_what_a_format_holds_comes_back_from_it(form, row):
    written = FORMATS[form](row)
    assert json.loads(json.dumps(written)) == written
    assert canonical_row(written) == row


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("xtuner", TOOL_ROW, "tools, tool_calls, name, tool_call_id, for which xtuner has no place"),
        ("xtuner", REASONED, "reasoning_content, for which xtuner has no place"),
        ("sharegpt", REASONED, "reasoning_content, for which sharegpt has no place"),
        ("sharegpt", messages(ASK, CALLING | {"content": "I look."}), "in words and tool calls in one turn"),
        ("alpaca", messages(ASK, ANSWER | {"loss": True}), "loss, for which alpaca has no place"),
        ("alpaca", messages(ASK, ANSWER, tools=[TOOL]), "tools, for which alpaca has no place"),
        ("alpaca", messages(ASK, CALLING), "tool_calls, for which alpaca has no place"),
    ],
)
def test_what_a_format_has_no_place_for_is_named(form, row, said):
    with pytest.raises(CannotHold, match=said):
        FORMATS[form](row)


def test_sharegpt_is_written_as_others_read_it():
    written = FORMATS["sharegpt"](TOOL_ROW)
    assert json.loads(written["tools"]) == [FUNCTION]
    assert [turn["from"] for turn in written["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(written["conversations"][1]["value"]) == [
        {"name": "weather", "arguments": {"city": "上海"}, "id": "c1"}
    ]


def test_texts_and_answers_of_a_row_with_tools():
    reasoned = CALLING | {"reasoning_content": "r", "tool_calls": [CALL, {"name": "f", "arguments": [1, {"k": ["v"]}]}]}
    assert list(texts_of(reasoned)) == ["", "r", "weather", "上海", "f", "v"]
    turns = [ASK, CALLING, TOLD, ANSWER, ASK, ANSWER]
    assert list(answered(turns)) == [(ASK, CALLING), (ASK, ANSWER)]


def test_calls_that_have_turns_of_their_own_are_one_message_with_the_words_before_them():
    call = '{"name": "weather", "arguments": {"city": "上海"}}'
    made = read(
        asked(answer(), {"role": "tool_call", "content": call}, {"role": "tool_call", "content": call},
              {"role": "tool_response", "content": "晴"}, {"role": "tool_response", "content": "晴"}, ANSWER)
    )  # fmt: skip
    called = {key: CALL[key] for key in ("type", "function")}
    told = {"role": "tool", "content": "晴"}
    assert made[1:] == [answer(tool_calls=[called, called]), told, told, ANSWER]


OBJECTS = "pandas wrote columns or an index here"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"data": [{"question": "q", "answer": "a"}]}, "the rows stand in a list under data: .* jq -c '.data\\[\\]'"),
        ({"question": {"0": "q"}, "answer": {"0": "a"}}, OBJECTS),
        ({"0": {"question": "q", "answer": "a"}}, OBJECTS),
        ({"columns": ["question"], "index": [0], "data": [["q"]]}, OBJECTS),
        ({"顾客说": "q", "我们说": "a"}, "--columns question=顾客说,answer=我们说, in a recipe columns: {question"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "question=instruction,answer=chosen"),
        ({"rejected_m": [ANSWER], "chosen_m": [ASK, ANSWER]}, "--columns messages=chosen_m"),
        ({"question": {"a": 1}, "answer": "a"}, "question is an object, not the user's words: write the question"),
        ({"question": "q", "A": "a", "B": "b"}, 'has "question" and no answer to it'),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {}, "rejected": {}}, "its answer under chosen"),
    ],
)  # fmt: skip
def test_a_row_of_no_known_format_says_what_can_be_done(row, said):
    with pytest.raises(BadRow, match=said):
        canonical_row(row)
