"""Adapters and checkpoints of others and ours, read without running anything of them: PEFT, DeepSpeed, XTuner."""
