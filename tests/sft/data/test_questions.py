"""What runs are scored on: the repository's questions, and a person's own."""

import pytest

from sft.core.errors import UserError
from sft.data.questions import SYSTEM, load_questions


def test_the_built_in_questions_are_of_both_languages_kinds_and_lengths():
    questions = load_questions()
    for asked in (questions.identity, questions.ordinary):
        assert {question.language for question in asked} == {"zh", "en"}
        assert any(len([turn for turn in question.messages if turn["role"] == "user"]) > 1 for question in asked)
    assert len(questions.identity) >= 30
    assert len(questions.ordinary) >= 20
    assert len(questions.texts) >= 8


def test_every_second_identity_question_has_a_system_message_in_its_language():
    questions = load_questions().identity
    assert [question.has_system for question in questions] == [False, True] * (len(questions) // 2)
    assert all(question.messages[0]["content"] == SYSTEM[question.language] for question in questions[1::2])
    assert (load_questions().bare, load_questions().system, load_questions().count) == ([], None, 56)


def test_a_known_system_message_stands_before_every_question_and_half_are_asked_without_it_too():
    plain, told = load_questions(), load_questions(system="Be 黄大力.")
    assert told.system == "Be 黄大力."
    assert [question.messages[0]["content"] for question in told.identity] == ["Be 黄大力."] * 32
    assert [question.text for question in told.identity] == [question.text for question in plain.identity]
    assert [question.text for question in told.bare] == [question.text for question in plain.identity[1::2]]
    assert not any(question.has_system for question in told.bare)
    assert {question.language for question in told.bare} == {"zh", "en"}
    assert (told.ordinary, told.count) == (plain.ordinary, 72)


def test_a_persons_own_file_may_leave_kinds_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("identity:\n- Who?\n- [Hi, Hello., 'And you are?']\n", encoding="utf-8")
    questions = load_questions(path)
    assert [question.text for question in questions.identity] == ["Who?", "And you are?"]
    assert [turn["role"] for turn in questions.identity[1].messages] == ["system", "user", "assistant", "user"]
    assert (questions.ordinary, questions.texts) == ([], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("identity:\n- [a, b]\n", r"mine\.yaml:2: identity: write a question, or \[user"),
        ("identity:\n- ok\n- 3\n", r"mine\.yaml:3: identity"),
        ("texts:\n- [a]\n", r"mine\.yaml:2: texts: write a text"),
        ("identity:\n", r"mine\.yaml:1: identity: write one"),
        ("other: [a]\n", r"mine\.yaml: write lists under identity, ordinary, texts"),
        ("- a\n", r"mine\.yaml: write lists under"),
        ("identity: [\n", r"mine\.yaml:2: not YAML"),
        ("", r"mine\.yaml: write lists under"),
    ],
)
def test_what_is_no_question_is_refused_by_its_line(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_questions(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_questions(tmp_path / "none.yaml")
