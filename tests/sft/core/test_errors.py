"""What an exception says, in one line."""

from sft.core.errors import one_line


def test_a_message_of_several_lines_becomes_one_of_a_given_length():
    problem = ValueError("expected 3\n\n   found\t4\n")
    assert one_line(problem) == "expected 3 found 4"
    assert one_line(problem, 10) == "expected 3"
