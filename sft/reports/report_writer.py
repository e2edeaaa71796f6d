"""Keeps a run's `report.html` up to date while it trains, and what only the running process knows for it.

In: a trainer. Out: `sample.json`, `time.json`, `report.html`, from the main process. Training is left bit-identical to
a run without a report, and continues where the page cannot be written.
"""

from pathlib import Path

from sft.core.clock import clock
from sft.core.console import say
from sft.core.language import _
from sft.data.preview import Piece, Sequence, pieces
from sft.evaluation.chat_eval import Evaluation
from sft.reports import report
from sft.runs import run_files
from sft.training.trainer import RecipeTrainer

# As much of a pack as one looks at.
SAMPLE_TOKENS = 4096


class ReportWriter(Evaluation):
    """Writes at every evaluation and checkpoint; added after the evaluations, so that it finds what they wrote."""

    def __init__(self, trainer: RecipeTrainer):
        super().__init__(trainer)
        self.folder = Path(trainer.args.output_dir)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # A run that resumes finds the time it had spent before.
            clock.resume_from(run_files.read_time(self.folder))
            run_files.write_json(self.folder / run_files.SAMPLE, first_pack(self.trainer), indent=None)
        super().on_train_begin(args, state, control, **kwargs)

    def evaluate(self, state, control) -> None:
        """Write the page anew."""
        self._refresh(state)

    def on_save(self, args, state, control, **_):
        self._refresh(state)

    @clock.spent_on("other")
    def _refresh(self, state) -> None:
        if not state.is_world_process_zero:
            return
        try:
            _write(self.folder)
        except Exception as problem:  # whatever it is, a page is not worth a run
            say(f"step {state.global_step}: {report.REPORT} was not written: {problem!r}", style="yellow")


def write_report(trainer: RecipeTrainer) -> None:
    """Write the report of a run that has ended, and say where it is.

    Raises:
        UserError: it cannot be written.
    """
    if trainer.is_world_process_zero():
        say(f"report: {_write(Path(trainer.args.output_dir))}")
    trainer.accelerator.wait_for_everyone()


def first_pack(trainer: RecipeTrainer) -> dict:
    """The first sequence as the model gets it, as JSON: its samples, and in each the pieces with and without loss."""
    packs, tokenizer = trainer.train_dataset, trainer.processing_class
    pack = packs[0]
    length = len(pack["input_ids"])
    shown = {"sequences": len(packs), "tokens": length, "shown": SAMPLE_TOKENS}
    title = _("The first of {sequences:,} sequences: {tokens:,} tokens.", **shown)
    if length > SAMPLE_TOKENS:
        title = _("The first of {sequences:,} sequences: {shown:,} of its {tokens:,} tokens.", **shown)
    sequence = Sequence(
        title,
        pack["input_ids"][:SAMPLE_TOKENS],
        pack["labels"][:SAMPLE_TOKENS],
        pack.get("seq_lengths") or [length],
    )
    samples = [
        {"heading": heading.to_dict(), "pieces": [_piece(piece) for piece in pieces(tokenizer, ids, labels)]}
        for heading, ids, labels in sequence.samples()
        if ids
    ]
    return {"title": title.to_dict(), "samples": samples}


def _piece(piece: Piece) -> dict:
    return {"text": piece.text, "supervised": piece.supervised, "special": piece.special}


def _write(folder: Path) -> Path:
    run_files.write_json(folder / run_files.TIME, clock.seconds(), indent=None)
    return report.write_report(folder)
