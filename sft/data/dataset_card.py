"""The data summary of a run, `dataset_card.json`: what came in, what went out and why, in samples and tokens.

Knows nothing about how any of it is counted.
"""

from dataclasses import asdict, dataclass

from rich.cells import cell_len

from sft.core.language import ENGLISH, Text, _, ngettext, same
from sft.core.text import one_line

SUPERVISED_OPENS, SUPERVISED_CLOSES = "⟦", "⟧"
LABEL = 15  # columns of a console for the name of a fact
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

    def lines(self, language: str = ENGLISH) -> list[str]:
        """The card as text, one fact a line; the supervised part of the first sample stands in ⟦ ⟧."""
        shown = [(getattr(label, language), getattr(value, language)) for label, value in self.facts()]
        return [
            *(f"{_padded(label)}{value}" for label, value in shown),
            *(f"{_padded('')}{line}" for line in self.first_sample.splitlines()),
        ]

    def facts(self) -> list[tuple[Text, Text]]:
        """Each fact with its name; the last one says what the first sample, which comes after it, shows."""
        kind = _("packs") if self.packing != "none" else _("sequences")
        return [
            *((_("file"), _file_fact(file)) for file in self.files),
            *([self._unused()] if self.first_unused else []),
            *([self._system()] if self.system_message else []),
            (_("rows"), self._rows()),
            (
                _("tokens"),
                _(
                    "{tokens:,}, of them supervised {supervised:,} ({share:.1%}); longest sample {longest:,}",
                    tokens=self.tokens,
                    supervised=self.supervised_tokens,
                    share=self.supervised_tokens / self.tokens,
                    longest=self.longest_sample,
                ),
            ),
            (
                _("tokens lost"),
                _(
                    "{tokens:,} (supervised {supervised:,}; truncation: {truncation})",
                    tokens=self.tokens_lost,
                    supervised=self.supervised_tokens_lost,
                    truncation=self.truncation,
                ),
            ),
            (kind, self._packs()),
            *([(same(""), _("samples are cut across packs and see each other, as in XTuner"))] * self._is_cut),
            (_("steps"), self._steps()),
            *([(_("repeated"), self._repeated())] if self.repeated else []),
            (
                _("first sample"),
                _("loss falls on {opens}...{closes} only:", opens=SUPERVISED_OPENS, closes=SUPERVISED_CLOSES),
            ),
        ]

    @property
    def _is_cut(self) -> bool:
        return self.packing == "wrapped"

    def _unused(self) -> tuple[Text, Text]:
        said = ngettext(
            "in {count:,} sample, not trained on; the first is {first}",
            "in {count:,} samples, not trained on; the first is {first}",
            self.samples_with_unused_keys,
            first=self.first_unused,
        )
        return _("unused keys"), said

    def _system(self) -> tuple[Text, Text]:
        shown = one_line(self.system_message or "", SHOWN_CHARACTERS)
        return _("system message"), _("the same in every row: {system}", system=shown)

    def _rows(self) -> Text:
        counts = {"over": self.samples_over_max_length, "limit": self.max_length, "dropped": self.samples_dropped}
        if self.samples_made == self.rows:
            return ngettext(
                "{rows:,} -> {count:,} sample ({over:,} over max_length {limit}, {dropped:,} dropped)",
                "{rows:,} -> {count:,} samples ({over:,} over max_length {limit}, {dropped:,} dropped)",
                self.samples,
                rows=self.rows,
                **counts,
            )
        if self.samples == self.samples_made:
            return ngettext(
                "{rows:,} -> {count:,} sample, one for each answer that history shows otherwise (split_turns) "
                "({over:,} over max_length {limit}, {dropped:,} dropped)",
                "{rows:,} -> {count:,} samples, one for each answer that history shows otherwise (split_turns) "
                "({over:,} over max_length {limit}, {dropped:,} dropped)",
                self.samples_made,
                rows=self.rows,
                **counts,
            )
        return ngettext(
            "{rows:,} -> {count:,} sample, one for each answer that history shows otherwise (split_turns) -> {left:,} "
            "({over:,} over max_length {limit}, {dropped:,} dropped)",
            "{rows:,} -> {count:,} samples, one for each answer that history shows otherwise (split_turns) -> {left:,} "
            "({over:,} over max_length {limit}, {dropped:,} dropped)",
            self.samples_made,
            rows=self.rows,
            left=self.samples,
            **counts,
        )

    def _packs(self) -> Text:
        counts = {
            "packs": self.packs,
            "limit": self.max_length,
            "packing": self.packing,
            "padding": self.padding_share,
        }
        if self.packing == "none":
            return _("{packs:,} of up to {limit:,} tokens ({packing}, padding {padding:.1%})", **counts)
        return _(
            "{packs:,} of up to {limit:,} tokens ({packing}, {fill:.1%} full, padding {padding:.1%})",
            fill=self.pack_fill,
            **counts,
        )

    def _steps(self) -> Text:
        counts = {"total": self.total_steps, "epoch": self.steps_per_epoch, "step": self.packs_per_step}
        if self.packing == "none":
            return _("{total:,} in all, {epoch:,} an epoch; sequences a step: {step:,}", **counts)
        return _("{total:,} in all, {epoch:,} an epoch; packs a step: {step:,}", **counts)

    def _repeated(self) -> Text:
        if self.packing == "none":
            return _(
                "{count:,} of the sequences of every epoch, so that each process has as many; "
                "dataloader_drop_last: true drops the last, incomplete batches instead",
                count=self.repeated,
            )
        return _(
            "{count:,} of the packs of every epoch, so that each process has as many; "
            "dataloader_drop_last: true drops the last, incomplete batches instead",
            count=self.repeated,
        )


def _padded(label: str) -> str:
    """The label, so wide that the values of all stand in one column."""
    return label + " " * max(LABEL - cell_len(label), 1)


def _file_fact(file: dict) -> Text:
    shown = f"{file['path']} ({file['read_as']})" if file["read_as"] else file["path"]
    if file["weight"] == 1:
        return same(shown)
    return ngettext(
        "{file}: {taken:,} of {count:,} row (weight {weight:g})",
        "{file}: {taken:,} of {count:,} rows (weight {weight:g})",
        file["rows"],
        file=shown,
        taken=file["taken"],
        weight=file["weight"],
    )
