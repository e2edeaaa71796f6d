"""Say why a fine-tuned model does not give its name, with facts and the one thing to do first.

In: a run directory or an adapter folder, and the merged folder that is asked, if there is one. Out: findings, the first
cause first; the exit code is 1 where there is one. Looks into weights tensor by tensor and never loads a model.
"""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from model_tools.chatting.model_folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    MERGE_RECORD,
    adapter_folder,
    config_file,
    read_json,
)
from sft.core.errors import UserError
from sft.models.lora_scale import lora_scale
from sft.runs.run_files import is_run_directory

LOADS = "PyTorch and Transformers"

if TYPE_CHECKING:
    import torch

    from model_tools.merging.tuned_modules import TunedModules
    from sft.evaluation.diagnosis import Finding
    from sft.evaluation.evidence import Evidence
    from sft.models.weight_files import WeightFiles

# So many modules that the adapter changes, and tensors that it does not, are compared, of these so many numbers.
SAMPLED, UNTOUCHED, NUMBERS = 3, 8, 65_536
# Of what the adapter adds, the merged weights must hold at least this share.
APPLIED = 0.5
# An adapter of a smaller scale alpha/r, or so much smaller than the recipe's, may do nothing; it does nothing where it
# changes the weights by less than this share.
SMALL_SCALE, LOST_SCALE, SMALL_CHANGE = 0.05, 0.1, 1e-3
SECOND = re.compile(r"\.lora_(?:embedding_)?B\b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory or adapter folder, such as work_dirs/demo")
    parser.add_argument("--merged", type=Path, metavar="DIR", help="the merged model that is asked")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model's folder, if it is not where it was")


def run(arguments: argparse.Namespace) -> int:
    from sft.core.console import console
    from sft.evaluation.diagnosis import diagnose

    parts = find_parts(arguments.run, arguments.merged, arguments.base)
    evidence = gather_evidence(parts)
    findings = [finding for cause in IN_WEIGHTS if (finding := cause(parts, evidence))] + diagnose(evidence)
    console.print(_heading(parts, evidence), markup=False)
    for place, finding in enumerate(findings, start=1):
        first, *more = finding.lines()
        console.print(f"{place}. {first}", markup=False, style="bold")
        console.print("\n".join(f"   {line}" for line in more), markup=False)
    if not findings:
        console.print("nothing wrong was found", markup=False, style="bold")
        console.print(f"checked: {', '.join(_checked(parts, evidence))}", markup=False)
    for line in _not_checked(parts, evidence):
        console.print(f"not checked: {line}", markup=False)
    for file in _changed_files(evidence):
        console.print(f"note: {file} is not as the run read it; what is said of it is of how it is now", markup=False)
    return 1 if findings else 0


@dataclass
class Parts:
    """Where the parts of the model that is asked lie; None for what there is not, or is not on this machine."""

    named: Path
    run: Path | None
    adapter: Path | None
    base_name: str | None
    base: Path | None
    merged: Path | None

    @cached_property
    def config(self) -> dict:
        """What stands in the adapter's config."""
        return read_json(self.adapter / ADAPTER_FILE)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by the names of its file; none where there is no adapter or no file."""
        from model_tools.checkpoints.trained_adapter import read_weights, weights_file

        file = weights_file(self.adapter) if self.adapter else None
        return read_weights(file) if file else {}

    @property
    def is_lora(self) -> bool:
        return bool(self.adapter and self.config.get("peft_type") == "LORA" and self.config.get("r"))

    @property
    def fitted(self) -> tuple[StoredParameters, TunedModules] | None:
        """The base's parameters, and the modules that the adapter changes; None where it does not fit."""
        return self._laid_over_base[0]

    @property
    def misfit(self) -> str | None:
        """Why the adapter does not fit its base, if so."""
        return self._laid_over_base[1]

    @cached_property
    def _laid_over_base(self) -> tuple[tuple[StoredParameters, TunedModules] | None, str | None]:
        from model_tools.merging.tuned_modules import Adapter, TunedModules

        is_plain = self.is_lora and not self.config.get("target_parameters")
        if not is_plain or not self.tensors or not self.base or not _is_known(self.base):
            return None, None
        try:
            parameters = StoredParameters(self.base, self.adapter)
            return (parameters, TunedModules(parameters.model, [Adapter(self.adapter)])), None
        except UserError as problem:
            return None, str(problem)

    @cached_property
    def merged_parameters(self) -> StoredParameters | None:
        """The merged folder's parameters; None where there is nothing to compare them with."""
        is_comparable = self.merged and self.fitted and _is_known(self.merged)
        return StoredParameters(self.merged, self.adapter) if is_comparable else None

    @cached_property
    def changes(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(the base's weight, what the adapter adds to it), both in float32, by the names of a few parameters."""
        if not self.fitted:
            return {}
        base, tuned = self.fitted
        modules = [name for name, needed in tuned.parameters.items() if base.sources.keys() >= set(needed)]
        found = {}
        for module in _spread(modules, SAMPLED):
            before = {name: base.read(name) for name in tuned.parameters[module]}
            after = tuned.merge(module, {name: value.clone() for name, value in before.items()}, "cpu")
            found |= {name: (value, after[name] - value) for name, value in before.items() if value.dim() == 2}
        return found


class StoredParameters:
    """A folder's weights under the names of its model's parameters, read one at a time.

    `sources` maps each parameter to the stored tensors it is made of; `model` is on the meta device.
    """

    def __init__(self, folder: Path, adapter: Path):
        import torch
        from transformers import AutoConfig

        from model_tools.merge import without_weights
        from model_tools.merging.layout import Layout
        from model_tools.merging.tuned_modules import Adapter
        from sft.models.weight_files import WeightFiles

        self.files = WeightFiles(folder)
        self.model = without_weights(AutoConfig.from_pretrained(folder), [Adapter(adapter)])
        stored = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in self.files.tensors.items()
        }
        self._layout = Layout(self.model, stored)
        self.sources = self._layout.sources

    def read(self, parameter: str) -> torch.Tensor:
        """One parameter, in float32."""
        stored = {name: self.files.read(name).float() for name in self.sources[parameter]}
        return self._layout.to_parameters(stored)[parameter]


def find_parts(named: Path, merged: Path | None, base: Path | None) -> Parts:
    """Find the run, the adapter and the base that go with a path.

    Raises:
        UserError: the path is neither a run nor an adapter, or a folder that was given is no model folder.
    """
    for option, folder in (("--merged", merged), ("--base", base)):
        if folder is not None and not (folder / CONFIG_FILE).is_file():
            raise UserError(f"{option} {folder}: holds no {CONFIG_FILE}: give a model folder")
    run = next((folder for folder in (named, named.parent) if is_run_directory(folder)), None)
    adapter = adapter_folder(named)
    if adapter is None and run != named:
        raise UserError(f"{named}: is no run directory and holds no adapter: give one, such as work_dirs/demo")
    if adapter is None:
        checkpoints = [file.parent for file in named.glob(f"checkpoint-*/{ADAPTER_FILE}")]
        adapter = max(checkpoints, key=lambda folder: folder.stat().st_mtime, default=None)
    base_name = str(base) if base else adapter and read_json(adapter / ADAPTER_FILE).get("base_model_name_or_path")
    return Parts(named, run, adapter, base_name, base or (_local_folder(base_name) if base_name else None), merged)


def gather_evidence(parts: Parts) -> Evidence:
    """What the run's files, its training files and its templates tell.

    Raises:
        UserError: one of them is there and cannot be read.
    """
    from sft.evaluation.evidence import Evidence, evidence_of_run
    from sft.models.loading import load_tokenizer
    from sft.runs.run_files import read_run

    evidence = evidence_of_run(read_run(parts.run)) if parts.run else Evidence()
    template = evidence.recipe.training.chat_template_path if evidence.recipe else None
    folders = (parts.adapter, parts.named / "final")
    own = next((folder for folder in folders if folder and (folder / "tokenizer_config.json").is_file()), None)
    if parts.base and (template is None or Path(template).is_file()):
        evidence.tokenizer = load_tokenizer(str(parts.base), chat_template_path=template)
    elif own:
        evidence.tokenizer = load_tokenizer(str(own))
    if asked := parts.merged or own:
        evidence.chat_tokenizer = load_tokenizer(str(asked))
    evidence.chat_folder = parts.merged
    return evidence


def no_adapter(parts: Parts, evidence: Evidence) -> Finding | None:
    """The run left no adapter, or only that of a checkpoint."""
    if parts.run != parts.named or (parts.run / "final").is_dir():
        return None
    last, planned = evidence.run.last_step, evidence.run.max_steps
    facts = [f"{parts.run} has no final/; the last step known of is {last:,} of {planned:,}"]
    facts += [f"what is looked at below is {parts.adapter}"] if parts.adapter else []
    return _finding("the run goes on or did not end: there is no final adapter to use", facts, evidence.train)


def adapter_is_no_numbers(parts: Parts, evidence: Evidence) -> Finding | None:
    """No file of weights, tensors of no size, or NaN."""
    tensors = parts.tensors
    if parts.adapter and not tensors:
        facts = [f"{parts.adapter}: holds no adapter_model.safetensors"]
        return _finding("the adapter has no weights", facts, _train_again(evidence))
    if hollow := [name for name, tensor in tensors.items() if not tensor.numel()]:
        facts = [f"{len(hollow)} of {len(tensors)} tensors have no numbers, such as {hollow[0]}"]
        do = f"python -m model_tools export-adapter {parts.run or 'RUN'}/checkpoint-N {_quoted(parts.adapter)}.whole"
        return _finding("the adapter's tensors are empty, as when one process of ZeRO-3 saves alone", facts, do)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        facts = [f"{len(broken)} of {len(tensors)} tensors hold NaN or infinity, such as {broken[0]}"]
        do = f"{_train_again(evidence)} --fp16 false --bf16 true --dtype bfloat16"
        return _finding("the adapter's weights are no numbers: training overflowed", facts, do)
    return None


def adapter_is_zero(parts: Parts, evidence: Evidence) -> Finding | None:
    """lora_B is where it starts from, so that the adapter adds nothing."""
    seconds = [tensor for name, tensor in parts.tensors.items() if SECOND.search(name)]
    if not seconds or any(tensor.any() for tensor in seconds):
        return None
    facts = [f"lora_B is zero in {len(seconds)} of {len(seconds)} modules of {parts.adapter}", *_steps(parts, evidence)]
    return _finding("the adapter is all zeros: it was never trained", facts, _train_again(evidence))


def never_trained(parts: Parts, evidence: Evidence) -> Finding | None:
    """What tells of steps says that none was done."""
    steps = _steps(parts, evidence)
    if not steps or not all(line.endswith(": 0 steps") for line in steps):
        return None
    return _finding("no training step was ever done", steps, _train_again(evidence))


def base_is_gone(parts: Parts, evidence: Evidence) -> Finding | None:
    """The folder that the adapter is to be laid over is not there."""
    if parts.base or not parts.base_name or not _is_path(parts.base_name):
        return None
    config = parts.adapter / ADAPTER_FILE
    facts = [f"{config}: base_model_name_or_path: {parts.base_name}", "there is no such model folder"]
    do = f"write where the base model is now into {config} as base_model_name_or_path"
    return _finding("the adapter's base model is gone, so that it cannot be loaded", facts, do)


def base_is_another(parts: Parts, evidence: Evidence) -> Finding | None:
    """The base model's weights are not those that the adapter was trained on."""
    from sft.models import fingerprint

    trained_on = fingerprint.read_fingerprint(parts.adapter) if parts.adapter and parts.base else None
    found = fingerprint.fingerprint(str(parts.base)) if trained_on else None
    if not found or found == trained_on:
        return None
    name = read_json(parts.adapter / fingerprint.RECORD).get("name")
    facts = [
        f"trained on {name}, whose weights had the fingerprint {trained_on[:12]}",
        f"those of {parts.base} have {found[:12]}",
    ]
    do = f"give the adapter the base it was trained on: {name} as it was then"
    return _finding("the base model is not the one that the adapter was trained on", facts, do)


def adapter_has_no_place(parts: Parts, evidence: Evidence) -> Finding | None:
    """The adapter changes modules that the base does not have; PEFT passes over them, or refuses."""
    if parts.misfit is None:
        return None
    firsts = [name for name in parts.tensors if "lora_A" in name]
    facts = [f"{len(firsts)} modules, such as {firsts[0]}"] if firsts else []
    do = f"write the base it was trained on into {parts.adapter / ADAPTER_FILE} as base_model_name_or_path"
    if any(".wqkv." in name for name in firsts):
        do = f"python -m model_tools export-adapter {_quoted(parts.adapter)} {_quoted(parts.adapter)}.native"
    wrong = "the adapter does not fit its base model, so that it is not loaded, or not all of it"
    return _finding(wrong, [*facts, parts.misfit], do)


def merged_into_another_base(parts: Parts, evidence: Evidence) -> Finding | None:
    """Weights that the adapter does not touch differ between the merged folder and the base."""
    merged = parts.merged_parameters
    if merged is None:
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
        f"{len(differing)} of {len(names)} tensors that the adapter does not touch differ, such as {differing[0]}",
        f"the adapter's base is {parts.base}",
        *_record_of_merge(parts.merged),
    ]
    return _finding("the adapter was merged into another base model", facts, _merge_again(parts))


def adapter_is_not_merged(parts: Parts, evidence: Evidence) -> Finding | None:
    """The merged weights lack what the adapter adds to the base's."""
    merged = parts.merged_parameters
    if merged is None or not parts.changes:
        return None
    facts, along, whole = [], 0.0, 0.0
    for name, (before, added) in parts.changes.items():
        found = merged.read(name) - before if name in merged.sources else None
        if found is None or found.shape != added.shape:
            return None
        along, whole = along + (found * added).sum().item(), whole + (added * added).sum().item()
        facts.append(f"{name}: {(found == 0).sum().item():,} of {found.numel():,} numbers are the base's")
    if not whole or along >= APPLIED * whole:
        return None
    share = f"the merged weights hold {along / whole:.0%} of what the adapter adds"
    facts = [share, *facts, *_record_of_merge(parts.merged)]
    return _finding("the adapter is not in the merged model", facts, _merge_again(parts))


def adapter_is_faint(parts: Parts, evidence: Evidence) -> Finding | None:
    """alpha/r is so small that what was learned hardly counts."""
    if not parts.is_lora:
        return None
    scale = lora_scale(parts.config["lora_alpha"], parts.config["r"], is_rslora=bool(parts.config.get("use_rslora")))
    model = evidence.recipe.model if evidence.recipe and evidence.recipe.model.use_peft else None
    trained = lora_scale(model.lora_alpha, model.lora_r, is_rslora=model.use_rslora) if model else scale
    change = max((float(added.norm() / before.norm()) for before, added in parts.changes.values()), default=0.0)
    is_lost = scale < LOST_SCALE * trained
    if not is_lost and (scale >= SMALL_SCALE or change >= SMALL_CHANGE or evidence.is_learned):
        return None
    path = parts.adapter / ADAPTER_FILE
    facts = [f"{path}: lora_alpha {parts.config['lora_alpha']:g}, r {parts.config['r']}: scale {scale:.2g}"]
    facts += [f"it changes the weights by {change:.1e} of their size"] if parts.changes else []
    do = "set lora_alpha to lora_r in the recipe, and train again"
    if is_lost:
        facts.append(f"it was trained with lora_alpha {model.lora_alpha}, r {model.lora_r}: scale {trained:g}")
        do = f'in {path}, write "lora_alpha": {model.lora_alpha}'
    return _finding("the adapter is too faint to be heard: its scale alpha/r is tiny", facts, do)


IN_WEIGHTS = (
    no_adapter, adapter_is_no_numbers, adapter_is_zero, never_trained,
    base_is_gone, base_is_another, adapter_has_no_place,
    merged_into_another_base, adapter_is_not_merged, adapter_is_faint,
)  # fmt: skip


def _heading(parts: Parts, evidence: Evidence) -> str:
    if not evidence.name:
        return f"{parts.named}: which name it shall give is not known"
    source = "identity_name" if evidence.recipe.run.identity_name else "as most training rows say"
    share = (
        "" if evidence.identity_share is None else f"; it gave it in {evidence.identity_share:.0%} of its last answers"
    )
    return f"{parts.named}: shall call itself {evidence.name} ({source}){share}"


def _checked(parts: Parts, evidence: Evidence) -> list[str]:
    """What was looked into."""
    log, scores = (len(records) for records in (evidence.run.log, evidence.run.scores)) if evidence.run else (0, 0)
    checked = {
        f"{sum(1 for name in parts.tensors if SECOND.search(name))} modules of {parts.adapter}": parts.tensors,
        f"their base {parts.base}": parts.base,
        f"the merged weights in {parts.merged}": parts.merged_parameters,
        f"{evidence.rows.rows if evidence.rows else 0:,} training rows": evidence.rows,
        "the chat template": evidence.tokenizer,
        f"{log:,} lines of log.jsonl": log,
        f"{scores:,} scores": scores,
    }
    return [what for what, was_there in checked.items() if was_there]


def _not_checked(parts: Parts, evidence: Evidence) -> list[str]:
    """What could not be looked into, and how to have it looked into."""
    lines = []
    if evidence.run is None:
        lines.append("training rows, log and scores (give the run directory, if there is one)")
    elif len(evidence.files) < len(evidence.recipe.train_files):
        lines.append("training rows: a file of train_file is not on this machine")
    if parts.adapter and parts.base is None:
        lines.append(f"the base model {parts.base_name or '(none is named)'}, which is not here (give --base DIR)")
    if parts.merged is None:
        lines.append("a merged model (give --merged DIR, if that is what you chat with)")
    elif parts.merged_parameters is None:
        lines.append(f"the weights in {parts.merged}: they cannot be compared with base and adapter")
    return lines


def _changed_files(evidence: Evidence) -> list[str]:
    """Training files that are other ones than those the run read."""
    from sft.core.files import file_hash

    read = [file.get("sha256") for file in evidence.card.get("files", ())]
    return [file.path for file in evidence.files if read and file_hash(file.path) not in read]


def _steps(parts: Parts, evidence: Evidence) -> list[str]:
    """How many steps were done, by every file that tells."""
    state = parts.adapter / "trainer_state.json" if parts.adapter else None
    lines = [f"{state}: {read_json(state).get('global_step', 0):,} steps"] if state and state.is_file() else []
    if evidence.run and (evidence.run.log or evidence.run.evaluated_steps):
        lines.append(f"log and evaluations of {evidence.run.folder}: {evidence.run.last_step:,} steps")
    return lines


def _begin_alike(base: WeightFiles, merged: WeightFiles, name: str) -> bool:
    """Whether the first numbers of a tensor are the same in both, as far as the merged one's type can tell."""
    if base.tensors[name].shape != merged.tensors[name].shape:
        return False
    before, after = _first_numbers(base, name), _first_numbers(merged, name)
    return bool((before.to(after.dtype) == after).all())


def _first_numbers(files: WeightFiles, name: str) -> torch.Tensor:
    import torch

    dtype = files.tensors[name].dtype
    first = bytearray(next(files.chunks(name))[: NUMBERS * dtype.itemsize])
    return torch.frombuffer(first, dtype=dtype)


def _record_of_merge(merged: Path) -> list[str]:
    """What `merge` wrote down about the folder, if it was it that wrote it."""
    path = merged / MERGE_RECORD
    if not path.is_file():
        return []
    record = read_json(path)
    adapters = ", ".join(str(made.get("path")) for made in record.get("adapters", ()))
    return [f"{path}: made of {record.get('base')} and {adapters}"]


def _merge_again(parts: Parts) -> str:
    base, adapter, out = map(_quoted, (parts.base_name, parts.adapter, f"{parts.merged}.again"))
    return f"python -m model_tools merge {base} {adapter} {out}"


def _train_again(evidence: Evidence) -> str:
    return evidence.train if evidence.recipe else "train it again"


def _spread(items: list, count: int) -> list:
    """So many of the items, from the first to the last."""
    if len(items) <= count:
        return items
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _local_folder(model: str) -> Path | None:
    """The folder of a model that is on this machine: by its path, or in the hub's cache."""
    from sft.evaluation.evidence import found_path

    folder = found_path(model)
    config = (config_file(str(folder)) if folder else None) or config_file(model)
    return config.parent if config else None


def _is_path(model: str) -> bool:
    """Whether a name can only be a path: a hub id is `name` or `owner/name`, and its owner is no folder here."""
    from sft.evaluation.evidence import found_path

    parent = Path(model).parent
    return not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", model) or (
        str(parent) != "." and found_path(str(parent)) is not None
    )


def _is_known(folder: Path) -> bool:
    """Whether a folder holds a model that Transformers knows, in full precision."""
    from transformers import AutoConfig

    from sft.models import internlm2

    internlm2.register()
    try:
        return not getattr(AutoConfig.from_pretrained(folder), "quantization_config", None)
    except (ValueError, KeyError, OSError):
        return False


def _quoted(path: object) -> str:
    return shlex.quote(str(path))


def _finding(wrong: str, evidence: list[str], do: str) -> Finding:
    """A finding; its module takes seconds to import, and no other verb is to wait for it."""
    from sft.evaluation.diagnosis import Finding

    return Finding(wrong, evidence, do)
