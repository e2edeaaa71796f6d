"""Keys of the stack that would do nothing here, or fight with what is done, and what there is in their place.

In: the keys that a person set. Out: nothing, or a refusal. Every other field of the stack is left to the stack; a test
holds both lists against the installed versions.
"""

from typing import Any

from sft.settings_check import Refusal

ANSWERS = "loss falls on the assistant's words of every turn and nowhere else"
LOSS_ALONE = "of the held-out rows the loss alone is computed"
INERT = {
    "assistant_only_loss": ANSWERS,
    "completion_only_loss": ANSWERS,
    "eos_token": "what ends a turn is the chat template's; name another with chat_template_path",
    "dataset_text_field": "rows are conversations; see python -m data_tools convert",
    "dataset_kwargs": "rows are tokenised here, not by TRL",
    "truncation_mode": "what happens to long samples is truncation: error, drop or keep_start",
    "eval_packing": "held-out rows are packed as the training rows are: packing",
    "label_names": "labels are made here",
    "length_column_name": "there is no such column; train_sampling_strategy: group_by_length measures by itself",
    "prediction_loss_only": LOSS_ALONE,
    "batch_eval_metrics": LOSS_ALONE,
    "include_for_metrics": LOSS_ALONE,
    "eval_do_concat_batches": LOSS_ALONE,
    "do_train": "a run always trains; --dry_run does not",
    "do_eval": "name the rows with eval_file, and when with eval_strategy",
    "do_predict": "ask the model afterwards: python -m model_tools ask",
    "auto_find_batch_size": "out of memory is told with what to change; the plan says before what fits",
    "enable_jit_checkpoint": "SIGTERM saves the step here in any case",
}


def refuse_inert_keys(chosen: dict[str, Any], refuse: Refusal) -> None:
    """Call `refuse(key, problem)`, which raises, for a key that would change nothing and asks for something else."""
    for key, instead in INERT.items():
        if key in chosen and chosen[key] is not None and (key, chosen[key]) != ("assistant_only_loss", True):
            refuse(key, f"would change nothing: {instead}; leave it out")
