"""Knows which adapters can be merged, by what their configs say; of the others it says why not, and what to do.

In: adapters. Out: nothing, or a refusal in one line. Knows nothing about the base model.
"""

from collections.abc import Sequence

from peft import PeftConfig, PeftType

from model_tools.checkpoints.model_folder import read_adapter_config
from model_tools.merging.adapter import Adapter
from sft.core.errors import UserError

# Kinds whose merged weights are PEFT's own, to the last bit, when modules are merged one by one.
MERGED_KINDS = frozenset({
    "ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING",
    "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
})  # fmt: skip
ONLY_PROMPTS = frozenset({
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING",
})  # fmt: skip
# Their starting point is computed from the base's weights, and these are not there yet when an adapter is loaded here.
MADE_OF_THE_BASE = frozenset({"ADAMSS", "FROD", "OSF", "PSOFT"})
# Starts of LoRA that take a part out of the base's weights.
CHANGED_BASES = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ"}
# Settings of LoRA, and what they make of it that no weights can do.
UNMERGED_SETTINGS = {
    "alora_invocation_tokens": "works only from its invocation tokens on (aLoRA)",
    "arrow_config": "chooses among adapters by the text (Arrow)",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
    "use_qalora": "is for a quantised base (QALoRA)",
    "layer_replication": "repeats layers of the base (layer_replication), so that its config is another",
}
# Settings with which a weighted sum of adapters is not what it is of plain LoRA.
WHOLE_SETTINGS = ("use_dora", "kasa_config", "use_bdlora", "modules_to_save", "trainable_token_indices")
TOGETHER = "use it beside its base, with chat or PEFT"


def refuse_unmergeable(adapters: Sequence[Adapter]) -> None:
    """Stop where an adapter cannot be merged, or not with these others or this weight.

    Raises:
        UserError: says which one, why and what to do.
    """
    for adapter in adapters:
        said = read_adapter_config(adapter.folder)
        # What the file says comes first: PEFT itself wants other libraries for some of these.
        if reason := _changed_base(said) or _unmerged_kind(said) or _unmerged_setting(adapter.config):
            raise UserError(f"{adapter.folder}: {reason}")
        is_sum = len(adapters) > 1 or adapter.weight != 1
        if is_sum and not _is_plain(adapter.config):
            raise UserError(f"{adapter.folder}: only plain LoRA can be weighted or added to another adapter")


def _changed_base(said: dict) -> str | None:
    start = str(said.get("init_lora_weights")).lower()
    name = next((name for prefix, name in CHANGED_BASES.items() if start.startswith(prefix)), None)
    return name and (
        f"began as {name}, which changes the base's weights, and does not fit the plain base: save it with "
        "path_initial_model_for_weight_conversion, or merge it into the base as changed, with init_lora_weights true "
        "in its config"
    )


def _unmerged_kind(said: dict) -> str | None:
    kind = said.get("peft_type")
    if not isinstance(kind, str) or kind in MERGED_KINDS or kind not in PeftType.__members__:
        return None
    if kind in ONLY_PROMPTS:
        return f"is {kind}, which adds to the prompt and changes no weights: {TOGETHER}"
    if kind in MADE_OF_THE_BASE:
        return f"is {kind}, which is made of the base's own weights: merge it with PEFT's merge_and_unload"
    return f"is {kind}, which does more than change weights, so that it cannot be merged: {TOGETHER}"


def _unmerged_setting(config: PeftConfig) -> str | None:
    set_here = [what for setting, what in UNMERGED_SETTINGS.items() if getattr(config, setting, None)]
    return f"{set_here[0]}, which cannot be merged: {TOGETHER}" if set_here else None


def _is_plain(config: PeftConfig) -> bool:
    """Whether an adapter adds a product of two matrices to weights of the base, and does nothing else."""
    return config.peft_type == "LORA" and not any(getattr(config, setting, None) for setting in WHOLE_SETTINGS)
