"""The one exception for a person's mistake, shared by every script and verb here, and other exceptions' words in it.

Knows nothing about files or formats: whoever raises it writes the whole sentence.
"""


class UserError(Exception):
    """A mistake a person can mend; shown as one line without a traceback, exit code 2.

    The message says what is wrong, where (`file:line` or key) and what to do about it.
    """


def one_line(problem: Exception, longest: int | None = None) -> str:
    """What an exception says, in one line of at most so many characters."""
    return " ".join(str(problem).split())[:longest]
