"""One training run: launching, plan and memory, the trainer, its health, progress, interrupts and final model.

Knows nothing about what is asked of the model or how results are shown.
"""
