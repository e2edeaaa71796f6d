"""The one exception for a person's mistake, shared by every script and verb here.

Knows nothing about files or formats: whoever raises it writes the whole sentence.
"""


class UserError(Exception):
    """A mistake a person can mend; shown as one line without a traceback, exit code 2.

    The message says what is wrong, where (`file:line` or key) and what to do about it.
    """
