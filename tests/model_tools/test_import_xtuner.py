"""An XTuner config becomes the recipe of the same settings, and nothing in it is run."""

import pytest
import yaml

from model_tools.__main__ import main
from sft.config.load import load_recipe
from sft.core.paths import REPOSITORY

QLORA = """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR

pretrained_model_name_or_path = 'internlm/internlm2_5-7b-chat'
use_varlen_attn = False
alpaca_en_path = 'data/huangdali.jsonl'
prompt_template = PROMPT_TEMPLATE.internlm2_chat
max_length = 1024 * 2
pack_to_max_length = True
batch_size = 1
accumulative_counts = 1
sequence_parallel_size = 1
accumulative_counts *= sequence_parallel_size
dataloader_num_workers = 0
max_epochs = 3
optim_type = AdamW
lr = 2e-4
betas = (0.9, 0.999)
weight_decay = 0
max_norm = 1
warmup_ratio = 0.03
save_steps = 500
save_total_limit = 2
evaluation_freq = 500
SYSTEM = SYSTEM_TEMPLATE.alpaca
evaluation_inputs = ['请介绍一下你自己', 'Please introduce yourself']
mystery = something_of_mine()

model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        torch_dtype=torch.float16,
        quantization_config=dict(
            type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True, bnb_4bit_quant_type='nf4')),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))
train_dataset = dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path='json', data_files=dict(train=alpaca_en_path)),
    dataset_map_fn=None, max_length=max_length)
optim_wrapper = dict(
    type=AmpOptimWrapper, optimizer=dict(type=optim_type, lr=lr), loss_scale='dynamic', dtype='float16')
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, end=warmup_ratio * max_epochs),
    dict(type=CosineAnnealingLR, eta_min=0.0, begin=warmup_ratio * max_epochs, end=max_epochs)]
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)
randomness = dict(seed=None, deterministic=False)
open('was_run', 'w')
"""


@pytest.fixture
def imported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(source: str, code: int = 0) -> tuple[dict, str]:
        (tmp_path / "config.py").write_text(source, encoding="utf-8")
        assert main(["import-xtuner", "config.py", "mine.yaml"]) == code
        said = capsys.readouterr()
        out = tmp_path / "mine.yaml"
        return yaml.safe_load(out.read_text(encoding="utf-8")) if out.exists() else {}, said.out + said.err

    return run


def test_the_qlora_config_gives_huangdalis_values(imported, tmp_path):
    recipe, said = imported(QLORA)
    ours = yaml.safe_load((REPOSITORY / "recipes" / "huangdali.yaml").read_text(encoding="utf-8"))
    assert {key: value for key, value in recipe.items() if ours.get(key, value) != value} == {}
    only_ours = {"output_dir", "truncation", "logging_nan_inf_filter", "seed", "identity_name"}
    assert ours.keys() - recipe.keys() == only_ours
    assert recipe.keys() - ours.keys() == {"dataloader_num_workers"}
    assert "SYSTEM = SYSTEM_TEMPLATE.alpaca: known only by running the config; set eval_prompts_system yourself" in said
    assert "prompt_template = PROMPT_TEMPLATE.internlm2_chat: the model's own" in said
    assert "mystery = something_of_mine(): no counterpart here" in said
    assert " = open('was_run', 'w'): no counterpart here" in said
    assert "use_varlen_attn" not in said
    assert not (tmp_path / "was_run").exists()


def test_the_recipe_it_writes_is_one_that_loads(imported, train_file):
    imported(QLORA)
    recipe = load_recipe(["mine.yaml", "--train_file", str(train_file)], for_training=False)
    assert (recipe.model.lora_r, recipe.training.max_length, recipe.training.learning_rate) == (64, 2048, 2e-4)


def test_what_is_reckoned_in_the_config_is_reckoned_here(imported):
    source = QLORA.replace("sequence_parallel_size = 1", "sequence_parallel_size = 4 + 2 * 2")
    assert imported(source)[0]["gradient_accumulation_steps"] == 8


def test_of_a_condition_only_the_branch_that_would_run_is_read(imported):
    condition = "if use_varlen_attn:\n    lr = 1\nelse:\n    weight_decay = 0.1\nif mystery:\n    lr = 2\n"
    recipe, said = imported(QLORA + condition)
    assert (recipe["learning_rate"], recipe["weight_decay"]) == (2e-4, 0.1)
    assert "if mystery: lr = 2: no counterpart here" in said
    assert "if use_varlen_attn" not in said


def test_full_fine_tuning_bf16_steps_and_several_files(imported):
    source = QLORA.replace("dtype='float16'", "dtype='bfloat16'").replace(
        "max_epochs=max_epochs)\nrandomness", "max_iters=40)\nrandomness"
    )
    source = source.replace("data_files=dict(train=alpaca_en_path)", "data_files=['a.jsonl', 'b.jsonl']")
    source = source.replace("seed=None", "seed=7").replace("optim_type = AdamW", "optim_type = PagedAdamW32bit")
    source += "\nmodel = dict(type=SupervisedFinetune, llm=dict(torch_dtype=torch.bfloat16))\n"
    recipe, _ = imported(source)
    assert (recipe["fp16"], recipe["bf16"], recipe["dtype"]) == (False, True, "bfloat16")
    assert (recipe["max_steps"], recipe["seed"], recipe["optim"]) == (40, 7, "paged_adamw_32bit")
    assert recipe["train_file"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    assert not {"use_peft", "load_in_4bit", "lora_r"} & recipe.keys()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a = (", "config.py:1: not Python"),
        ("lr = 1", "config.py: assigns no pretrained_model_name_or_path"),
        ("max_length = 1 / 0\nlr = 2", "assigns no pretrained_model_name_or_path"),
        ("model = dict(type=LLaVAModel, llm=dict())", "trains a LLaVAModel: only text SFT"),
        ("\0", "not Python"),
    ],
)
def test_what_is_no_config_is_refused_in_one_line(imported, source, said):
    recipe, heard = imported(source, code=2)
    assert said in heard
    assert heard.count("\n") == 1
    assert recipe == {}
