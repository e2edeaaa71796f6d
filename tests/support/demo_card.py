"""The dataset card of 1,500 short rows in packs of 256 tokens."""

from sft.data.dataset_card import DatasetCard

CARD = DatasetCard(
    files=[], rows=1500, samples_made=1500, tokens=90_000, supervised_tokens=30_000, longest_sample=114, max_length=256,
    truncation="error", samples_over_max_length=0, samples_dropped=0, samples=1500, tokens_lost=0,
    supervised_tokens_lost=0, packing="bfd", packs=352, pack_fill=0.99,
    padding_share=0.0, packs_per_step=1, repeated=0,
    steps_per_epoch=352, total_steps=1056, rows_with_control_tokens=0, first_control_token="", answers=1500,
    answers_without_end=0, answers_asked_otherwise=0, samples_with_words_left_out=0, first_left_out="",
    samples_with_unused_keys=0, first_unused="",
    first_sample="",
)  # fmt: skip
