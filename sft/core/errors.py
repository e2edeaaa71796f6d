"""The exceptions that are shown as one line: a person's mistake, a run that failed, a run that was stopped.

Knows nothing about files or formats: whoever raises one writes the whole sentence.
"""


class UserError(Exception):
    """A mistake a person can mend; shown as one line without a traceback, exit code 2.

    The message says what is wrong, where (`file:line` or key) and what to do about it.
    """


class RunFailed(Exception):
    """The run cannot go on; shown as one line, exit code 3. What was saved before stays.

    The message says what happened, at which step, and what to do about it.
    """


class Stopped(Exception):
    """The run was ended by a signal, after its checkpoint was saved; shown as one line, exit code 75."""


def one_line(problem: Exception, longest: int | None = None) -> str:
    """What an exception says, in one line of at most so many characters."""
    return " ".join(str(problem).split())[:longest]
