"""Runs train_sft.py with FSDP2 between CPU processes, and says at the end what each of them holds of the model, and how
much of it is gathered for saving.

accelerate leaves `fsdp` aside without a word where there is no accelerator (`AcceleratorState`), so that a recipe with
it is refused there. Only these gates are opened: sharding, gathering and saving are torch's, accelerate's and
Transformers' own.
"""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train_sft
from sft.config import machine_check
from sft.training import final_model


def open_the_gates() -> None:
    make = AcceleratorState.__init__

    def make_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        is_first = not AcceleratorState._shared_state
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_first and fsdp_plugin:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = make_with_fsdp
    machine_check.refuse_fsdp = lambda *_: None


def say_what_is_held() -> None:
    save_final = final_model.save_final

    def say_and_save(trainer, *args):
        weights = list(trainer.model.parameters())
        held = sum(weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel() for weight in weights)
        print(f"holds {held} of {sum(weight.numel() for weight in weights)}", flush=True)
        save = trainer._save

        def say_and_write(folder, gathered):
            print(f"gathers {sum(weight.numel() for weight in gathered.values())}", flush=True)
            save(folder, gathered)

        trainer._save = say_and_write
        return save_final(trainer, *args)

    final_model.save_final = say_and_save


def main(arguments: list[str]) -> None:
    open_the_gates()
    say_what_is_held()
    train_sft.main(arguments)
