"""`python -m data_tools VERB ...`"""

import sys

from data_tools import anchor, convert, dedup, generate, inspect, mix, preview, rename, repair, split
from sft.core.streams import guarded
from sft.core.verbs import dispatch, verbs_of

VERBS = verbs_of((generate, inspect, repair, rename, convert, split, mix, dedup, preview, anchor))


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that the arguments name; returns the exit code."""
    return dispatch("data_tools", VERBS, arguments)


if __name__ == "__main__":
    with guarded():
        sys.exit(main())
