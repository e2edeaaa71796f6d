"""`python -m model_tools VERB ...`"""

import sys

from model_tools import (
    ask,
    chat,
    demo_model,
    diagnose,
    export_adapter,
    export_llama,
    gguf,
    import_xtuner,
    info,
    merge,
    report,
    score,
    verdict,
    web,
)
from sft.core.streams import guarded
from sft.core.verbs import dispatch, verbs_of

VERBS = (
    demo_model, ask, chat, verdict, diagnose, import_xtuner, export_adapter, export_llama, merge, gguf, info, report,
    score, web,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that the arguments name; returns its exit code."""
    return dispatch("model_tools", verbs_of(VERBS), arguments)


if __name__ == "__main__":
    with guarded():
        sys.exit(main())
