"""`python -m model_tools VERB ...`"""

import sys

from data_tools.verbs import dispatch, verbs_of
from model_tools import ask, demo_model, import_xtuner, merge
from sft.console import quiet_the_stack


def main(arguments: list[str] | None = None) -> int:
    quiet_the_stack()
    return dispatch("model_tools", verbs_of((demo_model, ask, import_xtuner, merge)), arguments)


if __name__ == "__main__":
    sys.exit(main())
