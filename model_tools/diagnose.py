"""Say why a fine-tuned model does not give its name, with facts and the one thing to do first.

In: a run directory or an adapter folder, and the merged folder that is asked, if there is one. Out: findings, the first
cause first; the exit code is 1 where there is one. Looks into weights tensor by tensor and never loads a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

LOADS = "PyTorch and Transformers"

if TYPE_CHECKING:
    from model_tools.diagnosing.model_parts import ModelParts
    from sft.evaluation.evidence import Evidence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("run", type=Path, help="run directory or adapter folder, such as work_dirs/demo")
    parser.add_argument("--merged", type=Path, metavar="DIR", help="the merged model that is asked")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model's folder, if it is not where it was")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where there is a finding, else 0."""
    from model_tools.diagnosing.causes import CAUSES_IN_WEIGHTS
    from model_tools.diagnosing.model_parts import find_parts
    from sft.core.console import console
    from sft.evaluation.diagnosis import diagnose

    parts = find_parts(arguments.run, arguments.merged, arguments.base)
    evidence = gather_evidence(parts)
    findings = [finding for cause in CAUSES_IN_WEIGHTS if (finding := cause(parts, evidence))] + diagnose(evidence)
    console.print(_heading(parts, evidence), markup=False)
    for number, finding in enumerate(findings, start=1):
        first, *more = finding.lines()
        console.print(f"{number}. {first}", markup=False, style="bold")
        console.print("\n".join(f"   {line}" for line in more), markup=False)
    if not findings:
        console.print("nothing wrong was found", markup=False, style="bold")
        console.print(f"checked: {', '.join(_checked(parts, evidence))}", markup=False)
    for line in _not_checked(parts, evidence):
        console.print(f"not checked: {line}", markup=False)
    for file in _changed_files(evidence):
        console.print(
            f"note: {file} has changed since the run read it; what is said of it holds for the file as it is now",
            markup=False,
        )
    return 1 if findings else 0


def gather_evidence(parts: ModelParts) -> Evidence:
    """What the run's files, its training files and its templates tell.

    Raises:
        UserError: one of them is there and cannot be read.
    """
    from sft.evaluation.evidence import Evidence, evidence_of_run
    from sft.models.loading import load_tokenizer
    from sft.runs.run_files import read_run

    evidence = evidence_of_run(read_run(parts.run)) if parts.run else Evidence()
    template = evidence.recipe.training.chat_template_path if evidence.recipe else None
    kwargs = evidence.recipe.run.chat_template_kwargs if evidence.recipe else None
    folders = (parts.adapter, parts.named / "final")
    own = next((folder for folder in folders if folder and (folder / "tokenizer_config.json").is_file()), None)
    if parts.base and (template is None or Path(template).is_file()):
        evidence.tokenizer = load_tokenizer(str(parts.base), chat_template_path=template, chat_template_kwargs=kwargs)
    elif own:
        evidence.tokenizer = load_tokenizer(str(own))
    if chat_folder := parts.merged or own:
        evidence.chat_tokenizer = load_tokenizer(str(chat_folder))
    evidence.chat_folder = parts.merged
    return evidence


def _heading(parts: ModelParts, evidence: Evidence) -> str:
    if not evidence.name:
        return f"{parts.named}: the name it should give is not known"
    source = "identity_name" if evidence.recipe and evidence.recipe.run.identity_name else "as most training rows say"
    share = (
        "" if evidence.identity_share is None else f"; it gave it in {evidence.identity_share:.0%} of its last answers"
    )
    if share and not evidence.score.get("is_complete", True):
        asked, total = evidence.score["identity_asked"], evidence.score.get("identity_total", "more")
        share += f" ({asked} of {total} questions asked)"
    if evidence.score.get("assistant_of"):
        share += f", and called itself {evidence.name}'s assistant in {evidence.score['assistant_of']:.0%}"
    return f"{parts.named}: should call itself {evidence.name} ({source}){share}"


def _checked(parts: ModelParts, evidence: Evidence) -> list[str]:
    """What was looked into."""
    from model_tools.diagnosing.causes import SECOND_FACTOR

    log, scores = (len(records) for records in (evidence.run.log, evidence.run.scores)) if evidence.run else (0, 0)
    modules = sum(1 for name in parts.tensors if SECOND_FACTOR.search(name))
    checked = {
        f"{modules} modules of {parts.adapter}": parts.tensors,
        f"their base {parts.base}": parts.base,
        f"the merged weights in {parts.merged}": parts.merged_parameters,
        f"{evidence.rows.rows if evidence.rows else 0:,} training rows": evidence.rows,
        "the chat template": evidence.tokenizer,
        f"{log:,} lines of log.jsonl": log,
        f"{scores:,} scores": scores,
    }
    return [part for part, was_there in checked.items() if was_there]


def _not_checked(parts: ModelParts, evidence: Evidence) -> list[str]:
    """What could not be looked into, and how to have it looked into."""
    lines = []
    if evidence.run is None:
        lines.append("training rows, log and scores (give the run directory, if there is one)")
    elif evidence.recipe and len(evidence.files) < len(evidence.recipe.train_files):
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

    hashes = [file.get("sha256") for file in evidence.card.get("files", ())]
    return [file.path for file in evidence.files if hashes and file_hash(file.path) not in hashes]
