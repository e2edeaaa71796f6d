"""Settings that contradict each other, or that this machine cannot train, are refused with what to do."""

import re

import pytest
import yaml
from trl import SFTConfig

from sft.config.deepspeed import read_config
from sft.config.machine_check import check_liger_fits, refuse_contradictions
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.models import precision


class Refused(Exception):
    pass


def refusals(chosen: dict, **machine) -> str | None:
    def refuse(key, problem):
        raise Refused(f"{key}: {problem}")

    config = read_config(chosen["deepspeed"])[0] if chosen.get("deepspeed") else {"zero_optimization": {}}
    try:
        refuse_contradictions(chosen, refuse, zero_stage=config["zero_optimization"].get("stage", 0), **machine)
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


def test_liger_is_refused_for_a_model_that_it_would_ignore():
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
    assert refusals(chosen, gpu_has_bf16=names_none or bool(chosen.get("bf16"))) is None
