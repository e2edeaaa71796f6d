"""The predicted peak is near the measured one; advice is in order, cumulative, and stops when it fits."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import ParallelismConfig
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from sft.config.load import load_recipe
from sft.core.paths import REPOSITORY
from sft.data.dataset import DatasetCard
from sft.training import memory
from sft.training.memory import GIB, Advice, advice, predict
from tests.support.shapes import INTERNLM2_5_7B, SMOLLM2

CARD = DatasetCard(
    files=[], rows=1500, tokens=90_000, supervised_tokens=30_000, longest_sample=114, max_length=256,
    truncation="error", samples_over_max_length=0, samples_dropped=0, samples=1500, tokens_lost=0,
    supervised_tokens_lost=0, packing="bfd", packs=352, pack_fill=0.99,
    padding_share=0.0, packs_per_step=1, repeated=0,
    steps_per_epoch=352, total_steps=1056, rows_with_control_tokens=0, first_control_token="",
    first_sample="",
)  # fmt: skip
ZERO2 = {"deepspeed": "ds_configs/zero2.json"}
FLOAT32, BFLOAT16 = {"dtype": "float32"}, {"dtype": "bfloat16", "bf16": True}
# MiB of resident memory: of a process before its model was loaded, and at its peak (getrusage, ru_maxrss). On
# 2026-11-25, 2 x86-64 cores with AVX512-BF16, torch 2.13: recipes/demo.yaml without identity_name, with
# `--eval_prompts_steps 0 --max_steps 20` and the keys given here.
BEFORE = 590
SILENT = {"save_strategy": "no"}
MEASURED = [
    (FLOAT32 | ZERO2 | SILENT, 2002),
    (FLOAT32 | SILENT, 1737),
    (FLOAT32 | ZERO2 | SILENT | {"load_in_4bit": False, "lora_r": 4, "max_length": 512}, 2529),
    (
        FLOAT32
        | ZERO2
        | SILENT
        | {"load_in_4bit": False, "lora_r": 16, "activation_checkpointing": True}
        | {"max_length": 128, "per_device_train_batch_size": 2},
        1900,
    ),
    (BFLOAT16 | ZERO2 | SILENT, 1851),
    (BFLOAT16 | SILENT, 1764),
    (BFLOAT16 | ZERO2 | SILENT | {"activation_checkpointing": True}, 1658),
    (BFLOAT16 | SILENT | {"lora_r": 16, "max_length": 512}, 1918),
    (BFLOAT16 | ZERO2 | SILENT | {"optim": "adamw_torch"}, 1938),
]


@pytest.fixture
def read(tmp_path, train_file):
    """A recipe of the repository on a model that is nothing but a configuration, with settings on top."""

    def read(name: str, config: dict, **keys):
        (tmp_path / "config.json").write_text(json.dumps(config))
        paths = ["--model_name_or_path", str(tmp_path), "--train_file", str(train_file)]
        recipe = load_recipe([f"recipes/{name}.yaml", *paths], for_training=False)
        # A GPU's settings cannot be parsed where there is none.
        for key, value in keys.items():
            setattr(recipe.model if hasattr(recipe.model, key) else recipe.training, key, value)
        return recipe

    return read


@pytest.mark.parametrize(("keys", "measured"), MEASURED)
def test_the_peak_of_a_cpu_process_is_near_what_was_measured(read, keys, measured):
    predicted = predict(read("demo", SMOLLM2, **keys), CARD, on_gpu=False)
    mib = BEFORE + (predicted.peak - predicted.process) / 2**20
    assert mib == pytest.approx(measured, rel=0.13)


def test_adapters_states_and_gradients_are_what_a_real_trainer_holds(make_trainer):
    trainer, card = make_trainer(max_steps=1)
    trainer.train()
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    adapters = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    held = sum(tensor.nbytes for tensor in (*states, *adapters))
    assert predict(trainer.recipe, card, on_gpu=False).training == held + sum(weight.nbytes for weight in adapters)


def test_recomputed_activations_are_what_goes_into_each_layer_and_one_layer_more(read):
    whole, recomputed = (
        predict(read("demo", SMOLLM2, **ZERO2, activation_checkpointing=is_on), CARD, on_gpu=False).activations
        for is_on in (False, True)
    )
    inputs = 30 * 256 * 576 * 4  # layers, tokens, hidden size, float32
    assert recomputed == inputs + whole // 30


def test_only_packs_and_padded_batches_need_a_mask(read):
    card = replace(CARD, longest_sample=256)
    packed, alone, padded = (
        predict(
            read("demo", SMOLLM2, load_in_4bit=False, packing=packing, per_device_train_batch_size=batch),
            card,
            on_gpu=True,
        ).activations
        for packing, batch in ((True, 1), (False, 1), (False, 2))
    )
    assert alone < packed
    assert padded == pytest.approx(2 * packed, rel=0.001)


def test_on_a_cpu_samples_that_are_kept_apart_need_none(read):
    card = replace(CARD, longest_sample=256)
    apart, cut, alone = (
        predict(read("demo", SMOLLM2, packing=packing, packing_strategy=strategy), card, on_gpu=False).activations
        for packing, strategy in ((True, "bfd"), (True, "wrapped"), (False, "bfd"))
    )
    assert apart == alone < cut


def test_the_tiles_of_logits_are_trls():
    assert chunked_logprob.TOKEN_CHUNK_SIZE == memory.TOKENS_A_TILE
    assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == memory.VOCABULARY_A_TILE


def test_the_parts_add_up_and_the_process_is_measured_only_on_a_cpu(read):
    recipe = read("demo", SMOLLM2)
    on_cpu, on_gpu = (predict(recipe, CARD, on_gpu=on_gpu) for on_gpu in (False, True))
    for predicted in (on_cpu, on_gpu):
        parts = (predicted.process, predicted.weights, predicted.training, predicted.activations, predicted.logits)
        assert predicted.peak == sum(parts)
    assert on_gpu.process == memory.CUDA_CONTEXT != on_cpu.process
    assert "GiB of RAM a process: the process so far" in on_cpu.line()
    assert "GiB of GPU memory a process: CUDA itself 0.75" in on_gpu.line()


def test_more_processes_share_what_zero_shares(read):
    shares = {}
    for stage in (1, 2, 3):
        recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, deepspeed={"zero_optimization": {"stage": stage}})
        for processes in (1, 4):
            recipe.training.distributed_state = SimpleNamespace(num_processes=processes)  # what `world_size` reads
            shares[stage, processes] = predict(recipe, CARD, on_gpu=True)
    assert shares[2, 4].training < shares[2, 1].training - GIB
    assert shares[2, 4].weights == shares[2, 1].weights
    assert shares[3, 4].weights < shares[3, 1].weights / 2


def test_fsdp_divides_all_but_weights_that_are_bytes(read):
    shares = {}
    for storage in ("uint8", "bfloat16"):
        for processes in (1, 4):
            recipe = read("huangdali", INTERNLM2_5_7B, fsdp=True, bnb_4bit_quant_storage=storage)
            recipe.training.distributed_state = SimpleNamespace(num_processes=processes)
            shares[storage, processes] = predict(recipe, CARD, on_gpu=True)
    assert shares["bfloat16", 4].weights < shares["bfloat16", 1].weights / 3
    four_bits = sum(weight.parameters for weight in memory.MetaModel(recipe.model).weights if weight.is_quantised) / 2
    assert shares["uint8", 4].weights > four_bits
    assert shares["uint8", 4].training == pytest.approx(shares["uint8", 1].training / 4, abs=1)


def test_processes_that_share_a_sequence_hold_their_part_of_it(read):
    card = replace(CARD, longest_sample=2048, max_length=2048)
    together = read("huangdali", INTERNLM2_5_7B, fp16=True, parallelism_config=ParallelismConfig(sp_size=4))
    assert memory.batch_shape(together.training, card) == (1, 512)
    alone = read("huangdali", INTERNLM2_5_7B, fp16=True)
    # Not a whole quarter: DeepSpeed's way to share a sequence is given a mask.
    assert predict(together, card, on_gpu=True).activations < predict(alone, card, on_gpu=True).activations / 2.9


def test_offloaded_activations_are_no_longer_on_the_gpu(read):
    sizes = {
        (is_recomputed, is_offloaded): predict(
            read(
                "huangdali",
                INTERNLM2_5_7B,
                fp16=True,
                activation_checkpointing=is_recomputed,
                activation_offloading=is_offloaded,
            ),
            CARD,
            on_gpu=True,
        ).activations
        for is_recomputed in (False, True)
        for is_offloaded in (False, True)
    }
    layer_input = 2048 * 4096 * 2  # tokens, hidden size, float16
    assert sizes[True, False] - sizes[True, True] == (32 - 6) * layer_input
    assert sizes[False, True] < sizes[False, False] / 10


# huangdali.yaml on a card of so many GiB: what is advised where nothing was recomputed, and where it is.
RECOMPUTE = {"activation_checkpointing": True}
IN_RAM = {"activation_offloading": True}
OFFLOAD = {"deepspeed": "ds_configs/zero2_offload.json"}
CARDS = [
    (24, [RECOMPUTE], []),
    (16, [RECOMPUTE], []),
    (8, [RECOMPUTE, OFFLOAD], [OFFLOAD]),
    (
        6.25,
        [RECOMPUTE, OFFLOAD, IN_RAM, {"max_length": 1024}, {"max_length": 512}, {"lora_r": 32, "lora_alpha": 8}],
        [OFFLOAD, IN_RAM, {"max_length": 1024}, {"max_length": 512}, {"lora_r": 32, "lora_alpha": 8}],
    ),
]


@pytest.mark.parametrize(("gib", "from_nothing", "as_it_is"), CARDS)
def test_a_card_too_small_is_told_what_to_change(read, gib, from_nothing, as_it_is):
    card = replace(CARD, longest_sample=400, max_length=2048)
    for is_recomputed, expected in ((False, from_nothing), (True, as_it_is)):
        recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2, activation_checkpointing=is_recomputed)
        steps = advice(recipe, card, gib * GIB)
        assert [step.changes for step in steps][: len(expected)] == expected
        peaks = [predict(recipe, card, on_gpu=True).peak, *(step.peak for step in steps)]
        assert peaks == sorted(peaks, reverse=True)
        # Every change but the last was not enough, and the last one is.
        assert all(peak > gib * GIB for peak in peaks[:-1])
        assert peaks[-1] <= gib * GIB
        # Each peak is that of all changes so far.
        for step in steps:
            recipe = memory._with_changes(recipe, step.changes)
            assert predict(recipe, card, on_gpu=True).peak == step.peak


def test_advice_ends_where_nothing_is_left_to_change(read):
    steps = advice(read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2), CARD, GIB)
    assert steps[-1] == Advice({"lora_r": 8, "lora_alpha": 2}, steps[-1].peak)
    assert steps[-1].peak > GIB


def test_smaller_batches_come_first_and_no_sample_is_made_too_long(read):
    card = replace(CARD, longest_sample=1025, max_length=2048)
    recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, **ZERO2, per_device_train_batch_size=4)
    recipe.training.gradient_accumulation_steps = 2
    steps = advice(recipe, card, GIB)
    assert steps[0].changes == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert not any("max_length" in step.changes for step in steps)


def test_4_bits_are_advised_where_the_base_has_16(read):
    recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, load_in_4bit=False, **ZERO2)
    steps = advice(recipe, replace(CARD, max_length=2048), 12 * GIB)
    assert steps[-1].changes == {"load_in_4bit": True, "load_in_8bit": False, "use_bnb_nested_quant": True}
    assert torch.float16 == memory.trained_dtype(recipe, memory.MetaModel(recipe.model))
    assert (REPOSITORY / steps[0].changes["deepspeed"]).is_file()
