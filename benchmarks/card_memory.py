"""Measures how much of a GPU's memory a program takes, from outside it."""

import threading

import torch


class CardMemory:
    """Inside, watches how much more of the GPU's memory is taken than before; `peak` has the most, in bytes.

    It looks ten times a second at the card as a whole, so that it tells the same of every program: with what the
    program's allocator keeps for later, and CUDA itself.
    """

    def __enter__(self):
        self.peak, self._ended = 0, threading.Event()
        self._before = self._taken()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, self._taken() - self._before)

    def _taken(self) -> int:
        free, whole = torch.cuda.mem_get_info()
        return whole - free
