"""Runs train_sft.py, and at the end writes what each process holds of the adapter: DUMP/<rank>.safetensors."""

import os
from pathlib import Path

import deepspeed
from safetensors.torch import save_file

import train_sft
from sft.training import final_model


def main(arguments: list[str]) -> None:
    save_final = final_model.save_final

    def dump_and_save(trainer, card, answers):
        trainable = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
        is_partitioned = any(hasattr(value, "ds_id") for value in trainable.values())
        with deepspeed.zero.GatheredParameters(list(trainable.values()), enabled=is_partitioned):
            held = {name: value.detach().float().cpu().clone() for name, value in trainable.items()}
        save_file(held, Path(os.environ["DUMP"]) / f"{trainer.args.process_index}.safetensors")
        return save_final(trainer, card, answers)

    final_model.save_final = dump_and_save
    train_sft.main(arguments)
