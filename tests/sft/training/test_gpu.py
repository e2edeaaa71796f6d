"""Suggestions are in order, cumulative, and stop when a run fits; steps that fp16 skips are counted.

What only a GPU itself shows is in tests/gpu.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sft.core.paths import REPOSITORY
from sft.training import gpu
from sft.training.gpu import CountSkippedSteps, Suggestion, suggest_changes
from sft.training.memory import GIB, predict_memory
from tests.support.both_languages import english_half
from tests.support.demo_card import CARD
from tests.support.shapes import INTERNLM2_5_7B

ZERO2 = {"deepspeed": "ds_configs/zero2.json"}
# huangdali.yaml on a card of so many GiB: what is suggested where nothing was recomputed, and where it is.
RECOMPUTE = {"activation_checkpointing": True}
IN_RAM = {"activation_offloading": True}
OFFLOAD = {"deepspeed": "ds_configs/zero2_offload.json"}
CARDS = [
    (24, [RECOMPUTE], []),
    (16, [RECOMPUTE], []),
    (8, [RECOMPUTE, OFFLOAD], [OFFLOAD]),
    # Lower ranks and shorter packs alone would not do: what scoring takes stays.
    pytest.param(
        6.9,
        [RECOMPUTE, OFFLOAD, IN_RAM, {"max_length": 1024}, {"lora_r": 32, "lora_alpha": 8}],
        [OFFLOAD, IN_RAM, {"max_length": 1024}, {"lora_r": 32, "lora_alpha": 8}],
        marks=pytest.mark.long,
    ),
]


@pytest.mark.parametrize(("gib", "from_nothing", "as_it_is"), CARDS)
def test_what_to_change_for_a_card_too_small(read, gib, from_nothing, as_it_is):
    card = replace(CARD, longest_sample=400, max_length=2048)
    for is_recomputed, expected in ((False, from_nothing), (True, as_it_is)):
        recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2, activation_checkpointing=is_recomputed)
        steps = suggest_changes(recipe, card, gib * GIB)
        assert [step.changes for step in steps][: len(expected)] == expected
        peaks = [predict_memory(recipe, card, on_gpu=True).peak, *(step.peak for step in steps)]
        assert peaks == sorted(peaks, reverse=True)
        # Every change but the last was not enough, and the last one is.
        assert all(peak > gib * GIB for peak in peaks[:-1])
        assert peaks[-1] <= gib * GIB
        # Each peak is that of all changes so far.
        for step in steps:
            recipe = gpu._with_changes(recipe, step.changes)
            assert predict_memory(recipe, card, on_gpu=True).peak == step.peak


def test_suggestions_end_where_nothing_is_left_to_change(read):
    steps = suggest_changes(read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2), CARD, GIB)
    assert steps[-1] == Suggestion({"lora_r": 8, "lora_alpha": 2}, steps[-1].peak)
    assert steps[-1].peak > GIB


def test_smaller_batches_come_first_and_no_sample_is_made_too_long(read):
    card = replace(CARD, longest_sample=1025, max_length=2048)
    recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2, per_device_train_batch_size=4)
    recipe.training.gradient_accumulation_steps = 2
    steps = suggest_changes(recipe, card, GIB)
    assert steps[0].changes == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert not any("max_length" in step.changes for step in steps)


def test_4_bits_are_suggested_where_the_base_has_16(read):
    recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, load_in_4bit=False, **ZERO2)
    steps = suggest_changes(recipe, replace(CARD, max_length=2048), 12 * GIB)
    assert steps[-1].changes == {"load_in_4bit": True, "load_in_8bit": False, "use_bnb_nested_quant": True}
    assert (REPOSITORY / steps[0].changes["deepspeed"]).is_file()


def test_steps_that_the_scaler_of_fp16_skipped_are_counted_and_reported(capsys):
    """The scaler itself needs a GPU; what it tells the accelerator is given here."""
    accelerator = SimpleNamespace(optimizer_step_was_skipped=False)
    counted = CountSkippedSteps(SimpleNamespace(accelerator=accelerator))
    printed = {}
    for step, skipped in enumerate([False, True, True, *[False] * 2, *[True] * 20], start=1):
        accelerator.optimizer_step_was_skipped = skipped
        counted.on_step_end(None, SimpleNamespace(global_step=step), None)
        if out := capsys.readouterr().out:
            printed[step] = out
    assert printed.keys() == {2, 21}
    assert printed[2].startswith("step 2: skipped, since a gradient overflowed fp16 (grad norm inf)")
    assert english_half(printed[21].splitlines()) == [
        "warning: step 21: the last 16 steps were all skipped, so nothing is learned",
        "         do: use bf16: true in place of fp16, or a lower learning_rate",
    ]
    counted.on_train_end(None, None, None)
    assert capsys.readouterr().out == "fp16: 22 of 25 steps skipped by the loss scaler\n"
