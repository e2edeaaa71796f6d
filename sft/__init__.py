"""The library under `train_sft.py`, `sweep.py`, `data_tools`, `model_tools` and `benchmarks`; it imports none of them.

Nine rooms, each of which imports only from those before it: core, models, config, data, runs, training, evaluation,
reports, sweeps.
"""
