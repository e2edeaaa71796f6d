"""Says in which precision a named model is loaded: that in which its run was trained, or the one that a person names.

In: a `NamedModel` and bits. Out: settings of the stack, and words for them. Loads no model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_tools.checkpoints.asked import runs_of
from model_tools.checkpoints.model_folder import NamedModel
from sft.runs.run_files import read_run

# What of a recipe decides in which precision the base model is held, and what its products are computed in.
KEYS = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
FILES_OWN = "auto"


@dataclass(frozen=True)
class Precision:
    """How weights are held: `settings` are fields of TRL's ModelConfig.

    A model is answered and scored with as its run did it: `autocast` is the type of its mixed precision by torch, and
    `has_float32_adapter` false where DeepSpeed had the adapter in half precision too.
    """

    settings: dict[str, Any]
    origin: str = ""
    autocast: str | None = None
    has_float32_adapter: bool = True

    @property
    def line(self) -> str:
        """Such as "precision: 4 bits (nf4), as work_dirs/demo was trained"."""
        held = self.settings["dtype"]
        if self.settings.get("load_in_4bit"):
            held = f"4 bits ({self.settings['bnb_4bit_quant_type']})"
        elif self.settings.get("load_in_8bit"):
            held = "8 bits"
        elif held == FILES_OWN:
            held = "that of the files"
        return f"precision: {held}{self.origin}"


def precision_of(named: NamedModel, bits: int | None = None) -> Precision:
    """The precision of so many bits: 4 (NF4), 8, or 16, which is that of the files.

    Where no bits are named, what a run has left is loaded as the run had it: so it fits where it was trained, and says
    and scores what it did there. Any other model is loaded in 16 bits.

    Raises:
        UserError: the recipe of the run cannot be read.
    """
    if bits is None:
        run = next(runs_of([(named.adapter or Path(named.base)).resolve()]), None)
        if run:
            return _as_trained(run)
    settings: dict[str, Any] = {"dtype": FILES_OWN}
    if bits == 4:
        # What 4-bit weights are computed in has to be named.
        settings = {"dtype": "bfloat16", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    elif bits == 8:
        settings |= {"load_in_8bit": True}
    return Precision(settings)


def _as_trained(folder: Path) -> Precision:
    run = read_run(folder)
    recorded = {"dtype": "float32", "bnb_4bit_quant_type": "nf4"} | run.others | run.settings
    half = "float16" if recorded.get("fp16") else "bfloat16" if recorded.get("bf16") else None
    is_autocast = half is not None and not recorded.get("deepspeed")
    return Precision(
        {key: recorded[key] for key in KEYS if key in recorded},
        f", as {folder.name} was trained",
        half if is_autocast else None,
        has_float32_adapter=is_autocast or half is None,
    )
