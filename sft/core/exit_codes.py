"""How a run ends: an exit code, a status, and one line that says why it is not done.

In: what was raised. Out: the code. A bug of ours keeps its traceback.
"""

import atexit
import os
import sys
import time
from typing import NoReturn

from sft.core.console import is_main_process
from sft.core.errors import RunFailed, Stopped, UserError

DONE, BUG, MISTAKE, FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
# By exit code, as result.json has it.
STATUSES = {
    DONE: "done",
    BUG: "bug",
    MISTAKE: "mistake",
    FAILED: "failed",
    STOPPED: "stopped",
    INTERRUPTED: "interrupted",
}
# What a process says of another that has gone or does not answer.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "timed out", "Broken pipe")
# A launcher ends all processes when the first has ended; the others wait, so that its error message is printed first.
PATIENCE = 10


def exit_code(end: BaseException) -> int:
    """Print in one line why the run has ended and return its exit code; a bug is raised again."""
    code, line = describe_exit(end)
    if code == BUG:
        raise end
    if line and (not is_main_process() or lost_a_peer(end)):
        # Mistakes and signals reach all processes alike: the main one reports them.
        time.sleep(PATIENCE)
    if line:
        print(f"train_sft.py: {line}", file=sys.stderr, flush=True)
    return code


def exit_now(code: int) -> NoReturn:
    """End this process when its exit functions are done, without taking the interpreter down.

    A thread of gloo's may still hold the tensors of its last operation and let go of them only now, for which it needs
    the interpreter; C++ aborts the whole process (-6) where that is being taken down meanwhile.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:  # nobody reads them
        code = end.code if isinstance(end.code, int) else BUG
    os._exit(code)


def describe_exit(end: BaseException) -> tuple[int, str | None]:
    """(exit code, the line that says why the run has ended); of a bug the line names the exception."""
    if isinstance(end, SystemExit):
        return (end.code if isinstance(end.code, int) else DONE if end.code is None else BUG), None
    if isinstance(end, UserError):
        return MISTAKE, str(end)
    if isinstance(end, RunFailed):
        return FAILED, str(end)
    if isinstance(end, Stopped):
        return STOPPED, str(end)
    if isinstance(end, KeyboardInterrupt):
        return INTERRUPTED, "stopped before training began; nothing was to be saved"
    if lost_a_peer(end):
        return FAILED, (
            "another process of this run has ended or did not answer within ddp_timeout: see its message above; run "
            "the same command to resume from the newest checkpoint, if there is one"
        )
    return BUG, f"{type(end).__name__}: {end}"


def lost_a_peer(end: BaseException) -> bool:
    """Whether this is what a process raises that waited for another in vain."""
    if not isinstance(end, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(end, DistError) or any(words in str(end) for words in LOST_PEER)
