"""The data summary of a run, `dataset_card.json`: what came in, what went out and why, in samples and tokens.

Knows nothing about how any of it is counted.
"""

from dataclasses import asdict, dataclass

from sft.core.text import counted, one_line

SUPERVISED_OPENS, SUPERVISED_CLOSES = "⟦", "⟧"
# So much is shown of a system message.
SHOWN_CHARACTERS = 80


@dataclass
class DatasetCard:
    """What came in, what went out and why, in samples and tokens; the counts add up."""

    files: list[dict]
    rows: int
    samples_made: int
    tokens: int
    supervised_tokens: int
    longest_sample: int
    max_length: int | None
    truncation: str
    samples_over_max_length: int
    samples_dropped: int
    samples: int
    tokens_lost: int
    supervised_tokens_lost: int
    packing: str
    packs: int
    pack_fill: float
    padding_share: float
    packs_per_step: int
    steps_per_epoch: int
    total_steps: int
    repeated: int
    rows_with_control_tokens: int
    first_control_token: str  # such as "data/train.jsonl:7: <|im_end|>"; "" where there is none
    answers: int
    answers_without_end: int
    answers_asked_otherwise: int
    samples_with_words_left_out: int
    first_left_out: str  # such as "data/train.jsonl:7: system"
    samples_with_unused_keys: int
    first_unused: str  # such as "data/train.jsonl:7: id, source"
    first_sample: str
    system_message: str | None = None  # with which every row begins, where all have the same

    def to_dict(self) -> dict:
        """The card as it is saved in the run directory."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The card as text, one fact a line; the supervised part of the first sample stands in ⟦ ⟧."""
        kind = "packs" if self.packing != "none" else "sequences"
        fill = f", {self.pack_fill:.1%} full" if self.packing != "none" else ""
        cut = ["               samples are cut across packs and see each other, as in XTuner"]
        return [
            *(_file_line(file) for file in self.files),
            *([self._unused_line()] if self.first_unused else []),
            *([self._system_line()] if self.system_message else []),
            f"rows           {self.rows:,} -> {self._samples()}"
            f" ({self.samples_over_max_length:,} over max_length {self.max_length}, {self.samples_dropped:,} dropped)",
            f"tokens         {self.tokens:,}, of them supervised {self.supervised_tokens:,}"
            f" ({self.supervised_tokens / self.tokens:.1%}); longest sample {self.longest_sample:,}",
            f"tokens lost    {self.tokens_lost:,}"
            f" (supervised {self.supervised_tokens_lost:,}; truncation: {self.truncation})",
            f"{kind:<14} {self.packs:,} of up to {self.max_length:,} tokens ({self.packing}{fill},"
            f" padding {self.padding_share:.1%})",
            *(cut if self.packing == "wrapped" else []),
            f"steps          {self.total_steps:,} in all, {self.steps_per_epoch:,} an epoch;"
            f" {kind} a step: {self.packs_per_step:,}",
            *([self._repeated_line(kind)] if self.repeated else []),
            f"first sample   loss falls on {SUPERVISED_OPENS}...{SUPERVISED_CLOSES} only:",
            *(f"               {line}" for line in self.first_sample.splitlines()),
        ]

    def _unused_line(self) -> str:
        samples = counted(self.samples_with_unused_keys, "sample")
        return f"unused keys    in {samples}, not trained on; the first is {self.first_unused}"

    def _system_line(self) -> str:
        return f"system message the same in every row: {one_line(self.system_message or '', SHOWN_CHARACTERS)}"

    def _samples(self) -> str:
        if self.samples_made == self.rows:
            return counted(self.samples, "sample")
        split = (
            f"{counted(self.samples_made, 'sample')}, one for each answer that history shows otherwise (split_turns)"
        )
        return split if self.samples == self.samples_made else f"{split} -> {self.samples:,}"

    def _repeated_line(self, kind: str) -> str:
        return (
            f"repeated       {self.repeated:,} of the {kind} of every epoch, so that each process has as many; "
            "dataloader_drop_last: true drops the last, incomplete batches instead"
        )


def _file_line(file: dict) -> str:
    taken = f": {file['taken']:,} of {counted(file['rows'], 'row')} (weight {file['weight']:g})"
    read_as = f" ({file['read_as']})" if file["read_as"] else ""
    return f"file           {file['path']}{read_as}{taken if file['weight'] != 1 else ''}"
