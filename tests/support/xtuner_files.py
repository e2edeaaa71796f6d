"""Files as XTuner writes them, in the layout that mmengine gives them."""

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

# What mmengine keeps of a number it logs, with the functions it adds when it is pickled.
HISTORY_BUFFER = """
import numpy

class HistoryBuffer:
    def __init__(self, values):
        self.max_length = 1000000
        self._log_history = numpy.array(values)
        self._count_history = numpy.ones(len(values))

    def current(self): pass
    def mean(self): pass

    def __getstate__(self):
        return self.__dict__ | {"statistics_methods": {"current": HistoryBuffer.current, "mean": HistoryBuffer.mean}}
"""
# As mmengine's `Config.pretty_text` writes an XTuner config: every value spelled out, classes as text.
CONFIG = """
SYSTEM = 'xtuner.utils.SYSTEM_TEMPLATE.alpaca'
max_length = 2048
model = dict(
    llm=dict(
        pretrained_model_name_or_path='BASE',
        quantization_config=dict(
            bnb_4bit_compute_dtype='torch.float16',
            load_in_4bit=True,
            type='transformers.BitsAndBytesConfig'),
        torch_dtype='torch.float16',
        trust_remote_code=True,
        type='transformers.AutoModelForCausalLM.from_pretrained'),
    lora=dict(
        bias='none',
        lora_alpha=ALPHA,
        lora_dropout=0.1,
        r=RANK,
        task_type='CAUSAL_LM',
        type='peft.LoraConfig'),
    type='xtuner.model.SupervisedFinetune',
    use_varlen_attn=False)
"""


def xtuner_config(base: Path, rank: int, alpha: int = 16) -> str:
    return CONFIG.replace("BASE", str(base)).replace("RANK", str(rank)).replace("ALPHA", str(alpha))


@contextmanager
def mmengine() -> Iterator[None]:
    """Within, mmengine's class can be pickled and unpickled; without, it is not there, as where it is not installed."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    sys.modules.update({name: ModuleType(name) for name in names})
    exec(HISTORY_BUFFER, sys.modules[names[-1]].__dict__)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def mmengine_state(config: str | None) -> dict:
    """What mmengine saves beside the weights; to be pickled with `mmengine` there."""
    buffer = sys.modules["mmengine.logging.history_buffer"].HistoryBuffer
    meta = {"iter": 500, "epoch": 1, "experiment_name": "20260101_000000", "seed": 1234, "mmengine": "0.10.6"}
    return {
        "meta": meta | ({"cfg": config} if config else {}),
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": buffer([2.5, 1.5]), "train/lr": buffer([2e-4, 1e-4])}),
            "runtime_info": OrderedDict({"iter": 500, "max_iters": 500}),
            "resumed_keys": OrderedDict({"train/loss": True}),
        },
        "param_schedulers": [{"base_values": [2e-4], "last_step": 500}],
    }


def write_xtuner(path: Path, state: dict[str, torch.Tensor], config: str | None, older_format: bool = False) -> Path:
    """Write `iter_N.pth` as XTuner does, with a config in it unless that is None."""
    with mmengine():
        content = {"state_dict": OrderedDict(state), **mmengine_state(config)}
        content["optimizer"] = {"state": {0: {"step": torch.tensor(500.0)}}, "param_groups": [{"lr": 2e-4}]}
        torch.save(content, path, _use_new_zipfile_serialization=not older_format)
    return path
