"""How a run tells that it ended otherwise than by being done: one line, and an exit code.

In: what was raised. Out: the code. A bug of ours keeps its traceback.
"""

import atexit
import os
import sys
import time
from typing import NoReturn

from sft.core.console import is_main_process
from sft.core.errors import RunFailed, Stopped, UserError

MISTAKE, FAILED, STOPPED, INTERRUPTED = 2, 3, 75, 130
# What a process says of another that has gone or does not answer.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "timed out", "Broken pipe")
# A launcher ends all processes when the first has ended; until then the others keep quiet, so that it is heard first.
PATIENCE = 10


def exit_code(end: BaseException) -> int:
    """Tell in one line why the run has ended and give its exit code; anything unknown is raised again."""
    code, line = describe_exit(end)
    if line and (not is_main_process() or lost_a_peer(end)):
        # Mistakes and signals reach all processes alike: the main one tells of them.
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe_exit(end: BaseException) -> tuple[int, str | None]:
    if isinstance(end, SystemExit):
        return end.code, None
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
            "the same command to go on from the newest checkpoint, if there is one"
        )
    raise end


def lost_a_peer(end: BaseException) -> bool:
    """Whether this is what a process says that waited for another in vain."""
    if not isinstance(end, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(end, DistError) or any(words in str(end) for words in LOST_PEER)
