"""Callbacks of the trainer: one resumes the sums of the next log line, one checks that packed samples are apart, one
stops training when the held-out loss improves no more.

In: the trainer and its events. Out: a file in each checkpoint; `UserError` where a packed sample sees its neighbour.
Knows nothing about recipes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from trl import SFTTrainer

from sft.core.console import say
from sft.core.errors import RunFailed, UserError
from sft.core.text import counted
from sft.models.model_state import preserve_state
from sft.training import packed_attention
from sft.training.needed_tokens import NeededTokens, changes_logits
from sft.training.packed_attention import attend_over_packs

LOG_COUNTERS = "between_logs_{rank}.json"


def write_log_counters(trainer: SFTTrainer, checkpoint: Path) -> None:
    """Write what the next log line will be the mean of, which the Trainer does not save; each process its own sums."""
    record = {
        "loss": trainer._tr_loss.item(),
        "last_logged": trainer._globalstep_last_logged,
        "metrics": trainer._metrics["train"],
        "tokens": int(trainer._total_train_tokens),
    }
    path = checkpoint / LOG_COUNTERS.format(rank=trainer.args.process_index)
    path.write_text(json.dumps(record), encoding="utf-8")


def check_all_wrote(checkpoint: Path, processes: int, step: int) -> None:
    """See that every process has written its log counters, and with them its part of the checkpoint, here.

    Raises:
        RunFailed: one has written elsewhere.
    """
    ranks = range(processes)
    if missing := [rank for rank in ranks if not (checkpoint / LOG_COUNTERS.format(rank=rank)).is_file()]:
        raise RunFailed(
            f"step {step}: the checkpoint lacks what processes {missing} wrote: put output_dir on a file system that "
            "all machines share, or set save_strategy: no"
        )


class RestoreLogCounters(TrainerCallback):
    """After a resumption, begins the sums of the next log line where the checkpoint had them."""

    def __init__(self, trainer: SFTTrainer, checkpoint: Path):
        self.trainer = trainer
        path = checkpoint / LOG_COUNTERS.format(rank=trainer.args.process_index)
        self.record = json.loads(path.read_text(encoding="utf-8"))

    def on_train_begin(self, args, state, control, **_):
        """Put the sums back."""
        trainer = self.trainer
        trainer._tr_loss += self.record["loss"]
        trainer._globalstep_last_logged = self.record["last_logged"]
        trainer._metrics["train"].update(self.record["metrics"])
        trainer._total_train_tokens = self.record["tokens"]


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' own, which says that it stops, has that step saved, and resumes its count with the run."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Take the count of a checkpoint; `restore_callback_states_from_checkpoint` would make all callbacks anew.

        That of a run which had none before gets one: the stack takes for granted that it is there when it saves.
        """
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Count the evaluation, and stop where it is one too many."""
        was_over = control.should_training_stop
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if control.should_training_stop and not was_over:
            control.should_save = True
            evaluations = counted(self.early_stopping_patience_counter, "evaluation")
            say(
                f"step {state.global_step}: held-out loss {metrics['eval_loss']:.4f} is no better than "
                f"{state.best_metric:.4f}, and has not been for {evaluations} (early_stopping_patience): "
                f"{counted(state.max_steps - state.global_step, 'step')} saved"
            )


class CheckPackIsolation(TrainerCallback):
    """Before the first step, proves on the real model that packed samples cannot see each other.

    An architecture that does not hand positions down to its attention cannot attend sample by sample: it gets masks.
    """

    def __init__(self, base: PreTrainedModel, after: Callable[[], None], collate: Callable[[list], dict]):
        """`base` is the model without PEFT's wrapper; `after` is called once the forward passes are done.

        `collate` makes batches: where it names needed tokens, these are proved to be enough, or all are computed.
        """
        self.base, self.after, self.collate = base, after, collate

    def on_train_begin(self, args, state, control, model=None, **_):
        """Compare two packs, and once more with masks where the first comparison fails.

        Raises:
            UserError: a packed sample sees its neighbour.
        """
        vocabulary = model.config.get_text_config().vocab_size
        leak = packs_leak(model, vocabulary)
        if leak and attend_over_packs(self.base):
            leak = packs_leak(model, vocabulary)
        if isinstance(self.collate, NeededTokens):
            attends_by_sample = self.base.config._attn_implementation == packed_attention.NAME
            self.collate.is_used = attends_by_sample and not changes_logits(model, self.base, self.collate)
        self.after()
        if leak:
            raise UserError(
                "packing: with this model and attn_implementation a packed sample sees its neighbour (logits move by "
                f"{leak:.2g}): set attn_implementation to sdpa or flash_attention_2, or packing: false"
            )


def packs_leak(model: torch.nn.Module, vocabulary: int, length: int = 8) -> float:
    """How far the second sample's logits move when only the first sample of its pack is changed; 0.0 is right.

    Two forward passes over `(1, 2 * length)` tokens. Same shapes, same kernels, so any difference is a leak.
    """
    device = next(model.parameters()).device
    first, other, second = (torch.arange(length) * stride + stride for stride in (7, 11, 3))
    positions = torch.arange(length).repeat(2)[None].to(device)
    packs = [torch.cat([start, second])[None].to(device) % vocabulary for start in (first, other)]
    with preserve_state(model):
        logits = [model(input_ids=pack, position_ids=positions, use_cache=False).logits for pack in packs]
    return (logits[0] - logits[1])[:, length:].abs().max().item()
