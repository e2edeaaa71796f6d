"""Spellings: names as words of their own, what looks like them, and placeholders."""

import re
import unicodedata

import pytest

from data_tools.renaming.spellings import Placeholders, as_word, first_characters, key_of, other_spellings
from sft.data.placeholders import open_placeholders


def fill(text: str, values: dict[str, str]) -> str:
    return Placeholders(values).fill(text)[0]


@pytest.mark.parametrize(
    "text", ["Al", "Al's", "Al-", "我是Al。", "叫Al吧", "(Al)", "_Al_", "\nAl", r"{\"a\": \"x\nAl\"}"]
)
def test_a_latin_name_ends_where_a_word_does(text):
    assert re.search(as_word("Al"), text)


@pytest.mark.parametrize("text", ["Always", "Pal", "PAl", "Al2", "Al.5", "Alé", "Al\u0301", "БAl", "ＡAl"])
def test_a_latin_name_is_no_part_of_a_longer_word(text):
    assert not re.search(as_word("Al"), text)


def test_a_chinese_name_needs_no_space_and_a_mixed_one_at_its_latin_end():
    assert re.search(as_word("尖米"), "小尖米们")
    assert re.search(as_word("小Al"), "我是小Al呀")
    assert not re.search(as_word("小Al"), "小Alan")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("Al", "Ａｌ"),
        ("Al", "AL"),
        ("Al", "A\u200bl"),
        ("A Li", "ALi"),
        ("黄大力", "黃大力"),
        ("黃大力", "黄大力"),
        ("黄大力", "黄 大\u200b力"),
        ("José", unicodedata.normalize("NFD", "José")),
        (unicodedata.normalize("NFD", "Émile"), "émile"),
    ],
)
def test_what_a_person_takes_for_the_name_is_another_spelling_of_it(name, spelling):
    assert other_spellings(name).findall(f"是 {spelling}。") == [spelling]
    assert spelling[0] in first_characters(name)


def test_longer_words_and_other_names_are_no_spellings():
    assert not other_spellings("Al").search("also ALWAYS a lot")
    assert not other_spellings("黄大力").search("黄。大力")


@pytest.mark.parametrize(
    "text",
    ["{{NAME}}", "{{name}}", "{{ Name }}", "<NAME>", "<name>", "[NAME]", "【name】", "＜NAME＞"],
)
def test_placeholders_are_filled_in_every_bracket_and_case(text):
    key = "Name" if "Name" in text else "NAME"
    assert fill(f"我是 {text}，I am {text}.", {key: "黄大力"}) == "我是 黄大力，I am 黄大力."


@pytest.mark.parametrize("text", ["NAME", "《NAME》", "%NAME%", "__NAME__", "xxx", "某某某", "○○", "[Your Name]"])
def test_whatever_is_seen_as_a_placeholder_is_filled_under_its_key(text):
    (seen,) = open_placeholders(f"你好，我是{text}，很高兴。")
    assert fill(f"你好，我是{text}，很高兴。", {key_of(seen): "黄大力"}) == "你好，我是黄大力，很高兴。"


def test_a_chinese_key_is_filled_and_a_value_is_taken_as_it_is():
    assert fill("我是【名字】和{{名字}}", {"名字": r"黄\1"}) == r"我是黄\1和黄\1"


@pytest.mark.parametrize(
    "text",
    [
        "List<Name> names",
        "<name>Ada</name>",
        "rows[name] = 1",
        "[name](https://example.com)",
        "name",
        "my name is Ada",
        "$NAME",
        "FIRST_NAME",
        "NAME=ada",
    ],
)
def test_code_and_words_are_no_placeholders(text):
    assert fill(text, {"NAME": "黄大力", "Name": "黄大力"}) == text
