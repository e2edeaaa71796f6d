"""`python -m model_tools VERB ...`"""

import sys

from data_tools.verbs import dispatch, verbs_of
from model_tools import ask, chat, demo_model, export_adapter, import_xtuner, info, merge, score, web
from sft.console import quiet_the_stack


def main(arguments: list[str] | None = None) -> int:
    quiet_the_stack()
    verbs = verbs_of((demo_model, ask, chat, web, import_xtuner, export_adapter, merge, info, score))
    return dispatch("model_tools", verbs, arguments)


if __name__ == "__main__":
    sys.exit(main())
