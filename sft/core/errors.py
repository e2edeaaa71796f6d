"""The exceptions that are shown as one line: a user's mistake, a run that failed, a run that was stopped.

Knows nothing about files or formats: the code that raises one writes the whole sentence.
"""


class UserError(Exception):
    """A mistake that the user can correct; shown as one line without a traceback, exit code 2.

    The message says what is wrong, where (`file:line` or key) and what to do about it.
    """

    def __str__(self) -> str:
        """The message; a line break in a name that it quotes does not make it two lines."""
        return super().__str__().replace("\n", "\\n")


class RunFailed(Exception):
    """The run cannot continue; shown as one line, exit code 3. What was saved before stays.

    The message says what happened, at which step, and what to do about it.
    """


class Stopped(Exception):
    """A signal ended the run, after a checkpoint was saved; shown as one line, exit code 75."""


class ReaderGone(SystemExit):
    """Who reads the output has closed it, as `head` does; the program ends without a word, exit code 141."""

    def __init__(self) -> None:
        super().__init__(141)  # 128 + SIGPIPE, as a shell shows it of other programs
