"""Runs train_sft.py with deadlines that pass four times as fast in every process but the first."""

import os
import time
from types import SimpleNamespace

import train_sft
from sft.evaluation import deadline


def main(arguments: list[str]) -> None:
    if os.environ["RANK"] != "0":
        deadline.time = SimpleNamespace(perf_counter=lambda: 4 * time.perf_counter())
    train_sft.main(arguments)
