"""Loads an adapter's tensors into a model that PEFT has prepared for them, or says which of them do not fit and why.

In: a PEFT model and an adapter. Out: nothing; its weights are in place, in float32. PEFT itself passes over tensors
that no module takes, and leaves as it was what no tensor fills.
"""

import re
from collections.abc import Iterable

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from transformers import PreTrainedModel

from model_tools.checkpoints.adapter_tensors import BIAS, PREFIX
from model_tools.merging.adapter import Adapter
from sft.core.errors import UserError

Tensors = dict[str, torch.Tensor]
# Where the vocabulary was resized, PEFT writes an embedding that it trains whole under these names as well.
WRITTEN_TWICE = re.compile(r"\.(original_module|modules_to_save)\.")
SINGLE_EXPERT = re.compile(r"\.experts\.\d+\.")


def load_adapter(peft_model: PeftModel, adapter: Adapter, name: str, *, is_sum: bool) -> None:
    """Load an adapter under a name; every tensor must find its place, and every place its tensor.

    `is_sum` says that it is weighted or added to another.

    Raises:
        UserError: a tensor has no place in the model, or another shape there; or one is missing.
    """
    model = peft_model.get_base_model()
    assert isinstance(model, PreTrainedModel)
    stored = {key: value for key, value in adapter.tensors().items() if not WRITTEN_TWICE.search(key)}
    named = convert_peft_adapter_state_dict_for_transformers(
        peft_model, peft_model.peft_config[name], stored, adapter_name=name
    )
    places = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    # The base's own parameters: an adapter that changes the embedding brings it along, one with biases all of them.
    own = {f"{PREFIX}{key}": value for key, value in model.state_dict().items()}
    _refuse_another_vocabulary(adapter, named, own | places, model)
    if homeless := named.keys() - places.keys() - own.keys():
        task = peft_model.peft_config[name].task_type
        raise UserError(f"{adapter.folder}: {_why_homeless(min(homeless), model, task)}")
    if missing := places.keys() - named.keys():
        raise UserError(f"{adapter.folder}: lacks {min(missing)}, which its config asks for: write the adapter again")
    biases = sorted(key for key in named if BIAS.fullmatch(key) and key in own)
    if is_sum and biases:
        raise UserError(
            f"{adapter.folder}: only plain LoRA can be weighted or added to another adapter, and this one brings "
            f"biases of its own ({biases[0]}): merge it alone and without a weight"
        )
    weights = {key: value.float() for key, value in stored.items()}
    set_peft_model_state_dict(peft_model, weights, adapter_name=name, low_cpu_mem_usage=True)


def what_to_do(tensors: Iterable[str]) -> str:
    """What a person can do whose adapter, of these tensors, does not fit the base."""
    if any(SINGLE_EXPERT.search(name) for name in tensors):
        return (
            "Transformers 5 keeps the experts of a layer in one tensor: merge it with the Transformers 4 it was made by"
        )
    return "give its own"


def _why_homeless(tensor: str, model: PreTrainedModel, task: str | None) -> str:
    why = f"{tensor} has no place in the base model"
    if "wqkv" in tensor:
        return f"{why} (InternLM2's fused names; model_tools export-adapter splits them): give its own"
    if task not in (None, "CAUSAL_LM"):
        return f"{why}: it is for the task {task}, and the base a {type(model).__name__}: give a base with its head"
    return f"{why}: {what_to_do([tensor])}"


def _refuse_another_vocabulary(adapter: Adapter, tensors: Tensors, places: Tensors, model: PreTrainedModel) -> None:
    """Other shapes PEFT itself reports, but not what it means that only the number of tokens differs."""
    has = getattr(model.config.get_text_config(), "vocab_size", None)
    for key in sorted(tensors.keys() & places.keys()):
        shapes = zip(tensors[key].shape, places[key].shape, strict=False)
        differing = [(trained, here) for trained, here in shapes if trained != here]
        if len(differing) == 1 and differing[0][1] == has:
            trained = differing[0][0]
            raise UserError(
                f"{adapter.folder}: was trained on a base of {trained:,} tokens, and this one has {has:,}: resize the "
                f"base with resize_token_embeddings({trained}), save it with save_pretrained and give that"
            )
