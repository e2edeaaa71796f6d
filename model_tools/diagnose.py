"""Say why a fine-tuned model does not give its name, with facts and the one thing to do first.

In: a run directory or an adapter folder, and the merged folder that is asked, if there is one. Out: findings, the first
cause first; the exit code is 1 where there is one. Looks into weights tensor by tensor and never loads a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sft.core.errors import UserError
from sft.core.language import Text, _, joined, listed, ngettext, shown_languages
from sft.core.verbs import add_language

LOADS = "PyTorch and Transformers"

if TYPE_CHECKING:
    from model_tools.diagnosing.model_parts import ModelParts
    from sft.core.finding import Finding
    from sft.evaluation.evidence import Evidence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("run", type=Path, help="run directory or adapter folder, such as work_dirs/demo")
    parser.add_argument("--merged", type=Path, metavar="DIR", help="the merged model that is asked")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model's folder, if it is not where it was")
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where there is a finding, else 0."""
    if not arguments.run.is_dir():
        raise UserError(f"{arguments.run}: no such folder: give a run directory or an adapter, such as work_dirs/demo")
    from model_tools.diagnosing.causes import CAUSES_IN_WEIGHTS
    from model_tools.diagnosing.model_parts import find_parts
    from sft.core.console import console
    from sft.evaluation.diagnosis import diagnose

    parts = find_parts(arguments.run, arguments.merged, arguments.base)
    evidence = gather_evidence(parts)
    findings = [finding for cause in CAUSES_IN_WEIGHTS if (finding := cause(parts, evidence))] + diagnose(evidence)
    lines = _lines(parts, evidence, findings)
    for language in shown_languages():
        for text, style in lines:
            console.print(getattr(text, language), markup=False, style=style)
    return 1 if findings else 0


def _lines(parts: ModelParts, evidence: Evidence, findings: list[Finding]) -> list[tuple[Text, str | None]]:
    """What is printed, each line with its style."""
    lines: list[tuple[Text, str | None]] = [(_heading(parts, evidence), None)]
    for number, finding in enumerate(findings, start=1):
        first, *more = finding.lines()
        lines.append((_("{number}. {what}", number=number, what=first), "bold"))
        lines += [(line.indented(3), None) for line in more]
    if not findings:
        lines.append((_("nothing wrong was found"), "bold"))
        lines.append((_("checked: {what}", what=listed(_checked(parts, evidence))), None))
    lines += [(_("not checked: {what}", what=what), None) for what in _not_checked(parts, evidence)]
    lines += [(_changed(file), None) for file in _changed_files(evidence)]
    return lines


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


def _heading(parts: ModelParts, evidence: Evidence) -> Text:
    model, name = parts.named, evidence.name
    if not name:
        return _("{model}: the name it should give is not known.", model=model)
    sentences = [_("{model} should call itself {name}, the name in most training rows.", model=model, name=name)]
    if evidence.recipe and evidence.recipe.run.identity_name:
        sentences = [_("{model} should call itself {name}, its identity_name.", model=model, name=name)]
    if (share := evidence.identity_share) is not None:
        sentences.append(_("{share:.0%} of its last answers gave that name.", share=share))
        if not evidence.score.get("is_complete", True):
            asked, total = evidence.score["identity_asked"], evidence.score.get("identity_total", "?")
            sentences.append(_("Only {asked} of {total} questions were asked.", asked=asked, total=total))
    if share := evidence.score.get("assistant_of"):
        sentences.append(_("In {share:.0%} it called itself {name}'s assistant.", share=share, name=name))
    return joined(sentences)


def _checked(parts: ModelParts, evidence: Evidence) -> list[Text]:
    """What was looked into."""
    from model_tools.diagnosing.causes import SECOND_FACTOR

    log, scores = (len(records) for records in (evidence.run.log, evidence.run.scores)) if evidence.run else (0, 0)
    modules = sum(1 for name in parts.tensors if SECOND_FACTOR.search(name))
    rows, folder = evidence.rows.rows if evidence.rows else 0, parts.adapter
    checked = [
        (ngettext("{count} module of {folder}", "{count} modules of {folder}", modules, folder=folder), parts.tensors),
        (_("its base model {folder}", folder=parts.base), parts.base),
        (_("the merged weights in {folder}", folder=parts.merged), parts.merged_parameters),
        (ngettext("{count:,} training row", "{count:,} training rows", rows), evidence.rows),
        (_("the chat template"), evidence.tokenizer),
        (ngettext("{count:,} line of log.jsonl", "{count:,} lines of log.jsonl", log), log),
        (ngettext("{count:,} score", "{count:,} scores", scores), scores),
    ]
    return [part for part, was_there in checked if was_there]


def _not_checked(parts: ModelParts, evidence: Evidence) -> list[Text]:
    """What could not be looked into, and how to have it looked into."""
    lines = []
    if evidence.run is None:
        lines.append(_("training rows, log and scores (give the run directory, if there is one)"))
    elif evidence.recipe and len(evidence.files) < len(evidence.recipe.train_files):
        lines.append(_("training rows: a file of train_file is not on this machine"))
    if parts.adapter and parts.base is None and parts.base_name:
        lines.append(_("the base model {model}, which is not on this machine (give --base DIR)", model=parts.base_name))
    elif parts.adapter and parts.base is None:
        lines.append(_("the base model, which the adapter does not name (give --base DIR)"))
    if parts.merged is None:
        lines.append(_("a merged model (give --merged DIR, if that is what you chat with)"))
    elif parts.merged_parameters is None:
        lines.append(
            _("the weights in {folder}: they cannot be compared with adapter and base model", folder=parts.merged)
        )
    return lines


def _changed(file: str) -> Text:
    what = _("{file} has changed since the run read it; what is said of it holds for the file as it is now", file=file)
    return _("note: {what}", what=what)


def _changed_files(evidence: Evidence) -> list[str]:
    """Training files that are other ones than those the run read."""
    from sft.core.files import file_hash

    hashes = [file.get("sha256") for file in evidence.card.get("files", ())]
    return [file.path for file in evidence.files if hashes and file_hash(file.path) not in hashes]
