"""Says of one step for how long the GPU computed, at what, and in how many operations.

In: a trainer's events. Out: lines on the console. Where there is no GPU it profiles torch's operations on the CPU.
"""

import time

import torch
from transformers import TrainerCallback

# What kernels are for, by words in their names; of a name with several the first counts.
KINDS = {
    "4 bits": ("Dequant", "dequant", "gemm_4bit"),
    "attention": ("flash", "fmha", "attention"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitK"),
    "dropout": ("dropout",),
    "copies": ("Memcpy", "Memset", "copy"),
    "elementwise": ("elementwise", "reduce"),
    "Triton": ("triton", "_kernel"),
}
SHOWN = 24


class StepProfile(TrainerCallback):
    """Profiles the step after so many; prints the kinds of kernels, then single ones, the longest first."""

    def __init__(self, after: int):
        self._after = after
        on_gpu = torch.cuda.is_available()
        activities, devices = torch.profiler.ProfilerActivity, torch.autograd.DeviceType
        self._activity = activities.CUDA if on_gpu else activities.CPU
        self._device = devices.CUDA if on_gpu else devices.CPU

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self._after:
            wait_for_device()
            self._profiler = torch.profiler.profile(activities=[self._activity])
            self._profiler.start()
            self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if state.global_step != self._after + 1:
            return
        wait_for_device()
        seconds = time.perf_counter() - self._started
        self._profiler.stop()
        by_kind: dict[str, list[float]] = {}
        by_name: dict[str, list[float]] = {}
        for event in self._profiler.events():
            if event.device_type == self._device:
                for found, key in ((by_kind, _kind(event.name)), (by_name, event.name)):
                    found.setdefault(key, []).append(event.time_range.elapsed_us() / 1e3)
        busy = sum(map(sum, by_kind.values()))
        print(f"(a step, profiled: {seconds * 1e3:.0f} ms; its operations take {busy:.0f})")
        for found in (by_kind, by_name):
            for name, times in sorted(found.items(), key=lambda entry: -sum(entry[1]))[:SHOWN]:
                print(f"(    {sum(times):7.1f} ms in {len(times):,}: {name[:110]})", flush=True)


def _kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def wait_for_device() -> None:
    """Let the GPU, if there is one, finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
