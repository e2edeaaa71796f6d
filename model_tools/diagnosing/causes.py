"""Causes that can be seen in weights and folders: why a tuned model does not give its name, the first to mend first.

In: the model's parts and the evidence of its run. Out: a `Finding`, or None. Causes in rows, recipe and templates are
`sft.evaluation.diagnosis`'s.
"""

import re
import shlex
from pathlib import Path

import torch

from model_tools.checkpoints.model_folder import ADAPTER_FILE, MERGE_RECORD
from model_tools.diagnosing.model_parts import ModelParts, is_path
from sft.core.finding import Finding
from sft.core.json_file import read_json
from sft.core.language import Text, _, ngettext, same
from sft.evaluation.evidence import Evidence
from sft.models.adapter import BASE_RECORD, lora_scale, model_fingerprint, read_fingerprint
from sft.models.weight_files import WeightFiles

# So many tensors that the adapter does not change are compared, of each so many numbers.
UNTOUCHED, NUMBERS = 8, 65_536
# Of what the adapter adds, the merged weights must hold at least this share.
APPLIED = 0.5
# An adapter of a smaller scale alpha/r, or so much smaller than the recipe's, may do nothing; it does nothing where it
# changes the weights by less than this share.
SMALL_SCALE, LOST_SCALE, SMALL_CHANGE = 0.05, 0.1, 1e-3
SECOND_FACTOR = re.compile(r"\.lora_(?:embedding_)?B\b")


def no_adapter(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """The run left no adapter, or only that of a checkpoint."""
    if evidence.run is None or parts.run != parts.named or (parts.named / "final").is_dir():
        return None
    steps = {"last": evidence.run.last_step, "planned": evidence.run.max_steps}
    facts = [_("{run} has no final/; the last known step is {last:,} of {planned:,}", run=parts.run, **steps)]
    if parts.adapter:
        facts.append(_("what follows is about {adapter}", adapter=parts.adapter))
    wrong = _("the run is still training, or it ended early: there is no final adapter")
    return Finding(wrong, facts, same(evidence.train))


def adapter_has_no_values(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """No file of weights, tensors of no size, or NaN."""
    tensors = parts.tensors
    if parts.adapter and not tensors:
        facts = [_("{adapter} contains no adapter_model.safetensors", adapter=parts.adapter)]
        return Finding(_("the adapter has no weights"), facts, _train_again(evidence))
    if hollow := [name for name, tensor in tensors.items() if not tensor.numel()]:
        counts = {"count": len(hollow), "tensors": len(tensors)}
        facts = [_("{count} of {tensors} tensors are empty, such as {name}", **counts, name=hollow[0])]
        do = f"python -m model_tools export-adapter {parts.run or 'RUN'}/checkpoint-N {_quote(parts.adapter)}.whole"
        wrong = _("the adapter's tensors are empty, as when one process of ZeRO-3 saves alone")
        return Finding(wrong, facts, same(do))
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        counts = {"count": len(broken), "tensors": len(tensors)}
        facts = [_("{count} of {tensors} tensors contain NaN or infinity, such as {name}", **counts, name=broken[0])]
        return Finding(
            _("the adapter's weights are NaN or infinite: training overflowed"), facts, _train_in_bfloat16(evidence)
        )
    return None


def adapter_is_zero(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """lora_B is where it starts from, so that the adapter adds nothing."""
    seconds = [tensor for name, tensor in parts.tensors.items() if SECOND_FACTOR.search(name)]
    if not seconds or any(tensor.any() for tensor in seconds):
        return None
    fact = ngettext(
        "lora_B is zero in the {count} module of {adapter}",
        "lora_B is zero in all {count} modules of {adapter}",
        len(seconds),
        adapter=parts.adapter,
    )
    facts = [fact, *_step_lines(_steps(parts, evidence))]
    return Finding(_("the adapter is all zeros: it was never trained"), facts, _train_again(evidence))


def never_trained(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """Every file that counts steps says that none was done."""
    steps = _steps(parts, evidence)
    if not steps or any(steps.values()):
        return None
    return Finding(_("no training step was done"), _step_lines(steps), _train_again(evidence))


def base_is_gone(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """The folder that the adapter is to be laid over is not there."""
    if parts.adapter is None or parts.base or not parts.base_name or not is_path(parts.base_name):
        return None
    config = parts.adapter / ADAPTER_FILE
    facts = [same(f"{config}: base_model_name_or_path: {parts.base_name}"), _("there is no such model folder")]
    do = _("write where the base model is now into {file} as base_model_name_or_path", file=config)
    return Finding(_("the adapter's base model is gone, so the adapter cannot be loaded"), facts, do)


def base_is_another(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """The base model's weights are not those that the adapter was trained on."""
    if parts.adapter is None or parts.base is None:
        return None
    trained_on = read_fingerprint(parts.adapter)
    present = model_fingerprint(str(parts.base)) if trained_on else None
    if not trained_on or not present or present == trained_on:
        return None
    name = read_json(parts.adapter / BASE_RECORD).get("name")
    facts = [
        _("trained on {name}, whose weights had the fingerprint {hash}", name=name, hash=trained_on[:12]),
        _("the weights of {base} have the fingerprint {hash}", base=parts.base, hash=present[:12]),
    ]
    do = _("use the adapter with the base model it was trained on: {name} as it was then", name=name)
    return Finding(_("the base model is not the one that the adapter was trained on"), facts, do)


def adapter_has_no_place(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """The adapter changes modules that the base does not have; PEFT passes over them, or refuses."""
    if parts.adapter is None or parts.misfit is None:
        return None
    firsts = [name for name in parts.tensors if "lora_A" in name]
    facts = [
        _("modules that the adapter changes: {count}, such as {name}", count=len(firsts), name=name)
        for name in firsts[:1]
    ]
    facts.append(_("loading it fails: {error}", error=parts.misfit))
    config = parts.adapter / ADAPTER_FILE
    do = _("write the base model it was trained on into {file} as base_model_name_or_path", file=config)
    if any(".wqkv." in name for name in firsts):
        do = same(f"python -m model_tools export-adapter {_quote(parts.adapter)} {_quote(parts.adapter)}.native")
    return Finding(_("the adapter does not fit its base model: it is loaded in part or not at all"), facts, do)


def merged_into_another_base(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """Weights that the adapter does not touch differ between the merged folder and the base."""
    merged = parts.merged_parameters
    if merged is None or parts.fitted is None:
        return None
    base, tuned = parts.fitted
    touched = {name for needed in tuned.parameters.values() for each in needed for name in base.sources.get(each, ())}
    names = [name for name in base.files.tensors if name in merged.files.tensors and name not in touched]
    # Matrices first: norms are often the same as in a sister model.
    names = sorted(names, key=lambda name: -len(base.files.tensors[name].shape))[:UNTOUCHED]
    differing = [name for name in names if not _begin_alike(base.files, merged.files, name)]
    if not differing:
        return None
    facts = [
        _(
            "{count} of {tensors} tensors that the adapter does not touch differ, such as {name}",
            count=len(differing),
            tensors=len(names),
            name=differing[0],
        ),
        _("the adapter's base model is {base}", base=parts.base),
        *_record_of_merge(merged.files.folder),
    ]
    return Finding(_("the adapter was merged into another base model"), facts, _merge_again(parts))


def adapter_is_not_merged(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """The merged weights lack what the adapter adds to the base's."""
    merged = parts.merged_parameters
    if merged is None or not parts.changes:
        return None
    facts, along, whole = [], 0.0, 0.0
    for name, (before, added) in parts.changes.items():
        change = merged.read(name) - before if name in merged.sources else None
        if change is None or change.shape != added.shape:
            return None
        along, whole = along + (change * added).sum().item(), whole + (added * added).sum().item()
        equal = int((change == 0).sum())
        facts.append(
            _("{name}: {equal:,} of {count:,} numbers are the base's", name=name, equal=equal, count=change.numel())
        )
    if not whole or along >= APPLIED * whole:
        return None
    share = _("the merged weights contain {share:.0%} of what the adapter adds", share=along / whole)
    facts = [share, *facts, *_record_of_merge(merged.files.folder)]
    return Finding(_("the adapter is not in the merged model"), facts, _merge_again(parts))


def adapter_is_scaled_down(parts: ModelParts, evidence: Evidence) -> Finding | None:
    """alpha/r is so small that what was learned hardly counts."""
    if parts.adapter is None or not parts.is_lora:
        return None
    alpha, r = parts.config["lora_alpha"], parts.config["r"]
    scale = lora_scale(alpha, r, is_rslora=bool(parts.config.get("use_rslora")))
    model = evidence.recipe.model if evidence.recipe and evidence.recipe.model.use_peft else None
    trained = lora_scale(model.lora_alpha, model.lora_r, is_rslora=model.use_rslora) if model else scale
    change = max((float(added.norm() / before.norm()) for before, added in parts.changes.values()), default=0.0)
    is_lost = scale < LOST_SCALE * trained
    if not is_lost and (scale >= SMALL_SCALE or change >= SMALL_CHANGE or evidence.is_learned):
        return None
    path = parts.adapter / ADAPTER_FILE
    facts = [_("{file}: lora_alpha {alpha:g}, r {r}: scale {scale:.2g}", file=path, alpha=alpha, r=r, scale=scale)]
    facts += [_("it changes the weights by {share:.1e} of their size", share=change)] if parts.changes else []
    do = _("set lora_alpha to the value of lora_r in the recipe, and train again")
    if model and is_lost:
        settings = {"alpha": model.lora_alpha, "r": model.lora_r, "scale": trained}
        facts.append(_("it was trained with lora_alpha {alpha}, r {r}: scale {scale:g}", **settings))
        setting = f'"lora_alpha": {model.lora_alpha}'
        do = _("in {file}, set {setting}", file=path, setting=setting)
    return Finding(_("the adapter's scale alpha/r is too small for it to have an effect"), facts, do)


CAUSES_IN_WEIGHTS = (
    no_adapter, adapter_has_no_values, adapter_is_zero, never_trained,
    base_is_gone, base_is_another, adapter_has_no_place,
    merged_into_another_base, adapter_is_not_merged, adapter_is_scaled_down,
)  # fmt: skip


def _steps(parts: ModelParts, evidence: Evidence) -> dict[Text, int]:
    """How many steps were done, by every file that counts them."""
    steps = {}
    state = parts.adapter / "trainer_state.json" if parts.adapter else None
    if state and state.is_file():
        steps[same(str(state))] = read_json(state).get("global_step", 0)
    if evidence.run and (evidence.run.log or evidence.run.evaluated_steps):
        steps[_("log and evaluations of {run}", run=evidence.run.folder)] = evidence.run.last_step
    return steps


def _step_lines(steps: dict[Text, int]) -> list[Text]:
    return [
        ngettext("{source}: {count:,} step", "{source}: {count:,} steps", count, source=source)
        for source, count in steps.items()
    ]


def _begin_alike(base: WeightFiles, merged: WeightFiles, name: str) -> bool:
    """Whether the first numbers of a tensor are the same in both, as far as the merged one's type can tell."""
    if base.tensors[name].shape != merged.tensors[name].shape:
        return False
    before, after = _first_numbers(base, name), _first_numbers(merged, name)
    return bool((before.to(after.dtype) == after).all())


def _first_numbers(files: WeightFiles, name: str) -> torch.Tensor:
    dtype = files.tensors[name].dtype
    return torch.frombuffer(bytearray(files.first_bytes(name, NUMBERS * dtype.itemsize)), dtype=dtype)


def _record_of_merge(merged: Path) -> list[Text]:
    """What `merge` wrote down about the folder, if it was it that wrote it."""
    path = merged / MERGE_RECORD
    if not path.is_file():
        return []
    record = read_json(path)
    adapters = ", ".join(str(made.get("path")) for made in record.get("adapters", ()))
    return [_("{file}: made of {base} and {adapters}", file=path, base=record.get("base"), adapters=adapters)]


def _merge_again(parts: ModelParts) -> Text:
    base, adapter, out = map(_quote, (parts.base_name, parts.adapter, f"{parts.merged}.again"))
    return same(f"python -m model_tools merge {base} {adapter} {out}")


def _train_again(evidence: Evidence) -> Text:
    return same(evidence.train) if evidence.recipe else _("train it again")


def _train_in_bfloat16(evidence: Evidence) -> Text:
    if evidence.recipe:
        return same(f"{evidence.train} --fp16 false --bf16 true --dtype bfloat16")
    return _("train it again with bf16: true and dtype: bfloat16 in place of fp16")


def _quote(path: object) -> str:
    return shlex.quote(str(path))
