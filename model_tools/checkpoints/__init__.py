"""Folders of models, adapters and checkpoints, read without running anything in them: PEFT, DeepSpeed, XTuner."""
