"""A model folder that is not whole, and settings that contradict each other, are refused with what to do."""

import os
import re
import shutil

import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from sft.config.model_check import check_liger_fits, check_model_folder, check_tokens, refuse_contradictions
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.models import precision


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def in_shards(folder):
    """The folder's weights in two shards with an index, as Transformers writes them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_whole_folder_passes_in_one_file_or_in_shards(folder):
    check_model_folder(folder)
    assert len(in_shards(folder)) > 1
    check_model_folder(str(folder))


def test_weights_may_be_elsewhere_where_none_will_be_loaded(folder):
    (folder / "model.safetensors").unlink()
    check_model_folder(folder, with_weights=False)


def test_what_is_no_folder_here_is_left_to_the_stack(tmp_path):
    check_model_folder("internlm/internlm2_5-7b-chat")
    check_model_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json: is it a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON .*download it again"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), r"config\.json: not JSON .*download it again"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: has no model_type"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json: has no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), r"model\.safetensors: is 5,000 bytes"),
        (lambda folder: in_shards(folder)[1].unlink(), r"model-00002-of-.*: is missing"),
        (lambda folder: os.truncate(in_shards(folder)[0], 5000), r"model-00001-of-.*: is 5,000 bytes and should be"),
    ],
)
def test_what_is_missing_or_cut_short_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(UserError, match=said) as error:
        check_model_folder(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_or_a_file_is_no_model_folder(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(UserError, match=r"is an adapter, .* python -m model_tools merge BASE"):
        check_model_folder(folder)
    with pytest.raises(UserError, match="is a file: name the folder"):
        check_model_folder(folder / "model.safetensors")


class Refused(Exception):
    pass


def refusals(chosen: dict, **machine) -> str | None:
    def refuse(key, problem):
        raise Refused(f"{key}: {problem}")

    try:
        refuse_contradictions(chosen, refuse, **machine)
    except Refused as refused:
        return str(refused)


ADAPTER = {"use_peft": True}
ZERO3 = {"deepspeed": str(REPOSITORY / "ds_configs" / "zero3.json")}
NF4 = ADAPTER | {"load_in_4bit": True}
DORA = {"use_dora": True, "use_peft": True}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"fp16": True, "bf16": False, "dtype": "bfloat16"}, "dtype: bfloat16 weights under fp16: .*--dtype float16"),
        ({"bf16": True, "dtype": "float16"}, "dtype: float16 weights under bf16: true; use --dtype bfloat16"),
        # TRL trains in bfloat16 unless told not to.
        ({"dtype": "float16"}, "bf16: float16 weights"),
        ({"fp16": True, "dtype": "float16"}, "dtype: weights that are trained themselves .* use --dtype float32"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation: .*; pip install flash-attn,"),
        ({"attn_implementation": "flash_attention_3"}, "attn_implementation: .*; pip install flash_attn_3"),
        (DORA | ZERO3 | {"load_in_4bit": True}, "use_dora: .* load_in_4bit under ZeRO-3; use --deepspeed"),
        (DORA | ZERO3 | {"load_in_8bit": True}, "use_dora: does not work with load_in_8bit under ZeRO-3"),
        (DORA | {"deepspeed": {"zero_optimization": {"stage": 3}}, "load_in_4bit": True}, "use_dora: does not work"),
        (NF4 | ZERO3 | {"fp16": True, "dtype": "float16", "bnb_4bit_quant_storage": "bfloat16"},
         "bnb_4bit_quant_storage: bfloat16 in a run in float16: DeepSpeed would cast .*; write float16, or leave"),
        (NF4 | ZERO3 | {"bnb_4bit_quant_storage": "float16"}, "float16 in a run in bfloat16"),
        (NF4 | ZERO3 | {"bf16": True, "bnb_4bit_quant_storage": "float32"}, "float32 in a run in bfloat16"),
        (NF4 | ZERO3 | {"bf16": False, "bnb_4bit_quant_storage": "bfloat16"}, "bfloat16 in a run in float32"),
        (NF4 | {"fsdp": True, "fp16": True, "bnb_4bit_quant_storage": "bfloat16"}, "FSDP would cast"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_together_are_refused(chosen, said):
    assert re.search(said, refusals(chosen) or "passed")


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"fp16": True, "dtype": "float16"} | ADAPTER,
        {"fp16": True, "dtype": "float16", "deepspeed": "ds_configs/zero2.json"},
        {"fp16": True, "dtype": "float32"},
        {"fp16": True, "dtype": "auto"},
        {"bf16": False, "dtype": "float16"} | ADAPTER,
        {"bf16": True, "dtype": "bfloat16"},
        {"attn_implementation": "sdpa"},
        DORA | ZERO3,
        DORA | {"load_in_4bit": True},
        DORA | {"load_in_4bit": True, "deepspeed": str(REPOSITORY / "ds_configs" / "zero2.json")},
        NF4 | ZERO3 | {"bnb_4bit_quant_storage": "uint8"},
        NF4 | ZERO3 | {"bnb_4bit_quant_storage": "bfloat16"},
        NF4 | ZERO3 | {"fp16": True, "dtype": "float16", "bnb_4bit_quant_storage": "float16"},
        NF4 | {"fp16": True, "dtype": "float16", "bnb_4bit_quant_storage": "bfloat16"},
    ],
)
def test_settings_that_work_pass(chosen):
    assert refusals(chosen) is None


def test_bf16_is_refused_where_the_gpu_has_none():
    for chosen in ({"bf16": True, "dtype": "bfloat16"}, {}):
        assert "this GPU has no bfloat16; use --bf16 false --fp16 true" in refusals(chosen, gpu_has_bf16=False)
        assert refusals(chosen, gpu_has_bf16=True) is None
    assert refusals({"bf16": False, "dtype": "float32"}, gpu_has_bf16=False) is None


def test_what_is_installed_here_says_nothing_of_a_card_elsewhere():
    for chosen in (
        {"attn_implementation": "flash_attention_2"},
        {"use_liger_kernel": True},
        {"model_init_kwargs": {"use_kernels": True}},
    ):
        assert refusals(chosen)
        assert refusals(chosen | {"card": 24}) is None


def test_liger_is_refused_for_a_model_that_it_would_pass_over_in_silence():
    pytest.importorskip("liger_kernel")
    check_liger_fits(SFTConfig(use_liger_kernel=True, use_cpu=True, bf16=False), "internlm2")
    check_liger_fits(SFTConfig(use_cpu=True, bf16=False), "persimmon")
    with pytest.raises(UserError, match="use_liger_kernel: Liger has no kernels for persimmon"):
        check_liger_fits(SFTConfig(use_liger_kernel=True, use_cpu=True, bf16=False), "persimmon")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_here_contradict_nothing(path):
    chosen = yaml.safe_load(path.read_text(encoding="utf-8"))
    # One that names no precision gets TRL's on a GPU, which is bfloat16.
    names_none = not chosen.keys() & precision.KEYS
    assert refusals(chosen, gpu_has_bf16=names_none) is None


def test_a_token_that_the_model_has_no_row_for_is_refused():
    packs = Dataset.from_dict({"input_ids": [[1, 2], [399, 400]]})
    check_tokens(packs, 401, "models/a")
    with pytest.raises(UserError, match=r"models/a: its tokenizer gives token 400, and its weights end at 399"):
        check_tokens(packs, 400, "models/a")
