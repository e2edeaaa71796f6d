"""Ends a process that waits for another longer than `ddp_timeout`: one that hangs, or has gone without a word.

In: the trainer's events, each a sign of life. Out: one line and exit code 3. Most operations between processes time out
by themselves; what DeepSpeed does through shared memory on a CPU never does.
"""

import faulthandler
import os
import sys
import threading
import time

from transformers import TrainerCallback

from sft.core.errors import RunFailed
from sft.core.exit_codes import FAILED
from sft.training.progress import ResultRecorder

# An operation that keeps the interpreter to itself lets no thread of ours speak; this one of C's still ends it.
LAST_RESORT = 5


class Watchdog(TrainerCallback):
    """Watches over one process of several while it trains."""

    def __init__(self, seconds: float, result: ResultRecorder):
        self.seconds = seconds
        self.result = result
        self._last_sign = time.monotonic()
        self._is_watching = False

    def on_train_begin(self, args, state, control, **_):
        self._is_watching = args.world_size > 1
        self._note_life()
        if self._is_watching:
            threading.Thread(target=self._watch, daemon=True).start()

    def on_step_begin(self, args, state, control, **_):
        self._note_life()

    on_substep_end = on_step_end = on_log = on_save = on_evaluate = on_prediction_step = on_step_begin

    def on_train_end(self, args, state, control, **_):
        self._is_watching = False
        faulthandler.cancel_dump_traceback_later()

    def _note_life(self) -> None:
        self._last_sign = time.monotonic()
        if self._is_watching:
            faulthandler.dump_traceback_later(self.seconds + LAST_RESORT, exit=True)

    def _watch(self) -> None:
        while self._is_watching:
            time.sleep(min(self.seconds / 10, 1))
            if self._is_watching and time.monotonic() - self._last_sign > self.seconds:
                line = (
                    f"nothing has moved for {self.seconds:g} s (ddp_timeout): another process hangs, or has gone: see "
                    "its message above; the same command resumes from the newest checkpoint, if there is one"
                )
                print(f"train_sft.py: {line}", file=sys.stderr, flush=True)
                self.result.record(RunFailed(line))
                os._exit(FAILED)
