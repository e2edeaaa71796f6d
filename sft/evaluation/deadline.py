"""Says what a scoring has time for: how much may be begun, and whether what was begun came to its end.

In: a model and seconds. Out: decisions that all processes share where only all together can run the model. Knows
nothing about questions.
"""

import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list

from sft.models.model_state import is_in_parts

T = TypeVar("T")


class Deadline:
    """A point in time, by the main process's clock where each process holds a part of every weight."""

    def __init__(self, model: torch.nn.Module, seconds: float):
        self._is_in_parts = is_in_parts(model)
        self._over_at = time.perf_counter() + seconds

    @property
    def seconds_left(self) -> float | None:
        """By this process's own clock; None where there is no end."""
        return None if math.isinf(self._over_at) else max(self._over_at - time.perf_counter(), 0.0)

    def most(self, wanted: int, seconds_each: float) -> int:
        """As many of those wanted as there is time for, if each takes so long; none once the time is over."""

        def count() -> int:
            left = self.seconds_left
            if left is None or (left and not seconds_each):
                return wanted
            return min(wanted, int(left / seconds_each)) if left else 0

        return self.agree(count)

    def agree(self, decide: Callable[[], T]) -> T:
        """What this process decides, or the main one for all that run the model together."""
        return broadcast_object_list([decide()])[0] if self._is_in_parts else decide()
