"""An XTuner config becomes the recipe of what XTuner would run, and nothing in it is run."""

import json
from typing import Any

import pytest
import yaml

from model_tools.__main__ import main
from sft.config.load import load_recipe
from sft.core.paths import REPOSITORY
from tests.support.xtuner_configs import DUMP, QLORA
from tests.support.xtuner_edits import CONFIGS, edited
from tests.support.xtuner_oracle import execute, expected


@pytest.fixture
def imported(tmp_path, capsys, monkeypatch):
    """Import a config's text; gives the recipe, its comments, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(source: str, code: int = 0, name: str = "config.py") -> tuple[dict[str, Any], str, str]:
        (tmp_path / name).write_text(source, encoding="utf-8")
        out = tmp_path / "mine.yaml"
        out.unlink(missing_ok=True)
        assert main(["import-xtuner", name, "mine.yaml"]) == code
        said = capsys.readouterr()
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        return yaml.safe_load(text) or {}, comments, said.out + said.err

    return run


def test_the_qlora_config_gives_huangdalis_values(imported):
    recipe, comments, _ = imported(QLORA)
    ours = yaml.safe_load((REPOSITORY / "recipes" / "huangdali.yaml").read_text(encoding="utf-8"))
    assert {key: value for key, value in recipe.items() if ours.get(key, value) != value} == {}
    only_ours = {"output_dir", "truncation", "logging_nan_inf_filter", "seed", "identity_name"}
    assert ours.keys() - recipe.keys() == only_ours
    assert recipe.keys() - ours.keys() == {"dataloader_num_workers", "eval_prompts_generation"}
    assert "prompt_template = PROMPT_TEMPLATE.internlm2_chat: the model's own" in comments
    assert "use_varlen_attn" not in comments
    assert "at the top" not in comments
    assert "nothing takes it" not in comments


@pytest.mark.parametrize("name", CONFIGS)
def test_each_value_that_the_runner_takes_is_in_the_recipe_or_named_in_a_comment(imported, name, tmp_path):
    recipe, comments, said = imported(CONFIGS[name])
    recipe |= recipe.get("eval_prompts_generation", {})
    lost = {}
    for key, (value, word) in expected(execute(tmp_path / "config.py")).items():
        got = recipe.get(key)
        is_there = got == pytest.approx(value) if isinstance(value, float) else got == value
        if not is_there and word not in comments:
            lost[key] = (value, got)
    assert lost == {}
    assert not any(internal in comments + said for internal in ("Symbol(", "Unknown(", "Part(", "PosixPath", "<"))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_recipe_loads(imported, name, tmp_path):
    imported(CONFIGS[name])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    load_recipe(["mine.yaml", "--train_file", str(rows), "--dry_run", "--card", "80"])


def test_what_the_top_says_otherwise_than_what_counts_is_said(imported):
    recipe, comments, _ = imported(CONFIGS["lr in the optimizer"])
    assert recipe["learning_rate"] == 5e-5
    assert "lr = 0.0002, at the top: optim_wrapper.optimizer.lr = 5e-05 counts" in comments
    assert "evaluation_freq = 500, at the top: nothing takes it" in imported(CONFIGS["no asking"])[1]
    assert "mystery = 3: nothing takes it" in imported(QLORA + "mystery = 3\n")[1]


UNKNOWN = {
    "lr = 2e-4": ("lr = best_rate()", "optim_wrapper.optimizer.lr = best_rate() (config.py:", "learning_rate"),
    "batch_size = 1": (
        "import os\nbatch_size = 1\nif os.path.exists('/big'):\n    batch_size = 8",
        "train_dataloader.batch_size = 8 if os.path.exists('/big') (config.py:",
        "per_device_train_batch_size",
    ),
    "max_epochs = 3": ("max_epochs = 9**9**9", "train_cfg.max_epochs = 9 ** 9 ** 9 (config.py:", "num_train_epochs"),
    "'data/huangdali.jsonl'": ("'a' * 10**9", "data_files = 'a' * 10 ** 9 (config.py:", "train_file"),
    "        r=64": ("        r=RANKS[torch.cuda.device_count()]", "model.lora.r = RANKS[", "lora_r"),
    "interval=save_steps": ("interval=len(open('x').read())", "checkpoint.interval = len(open(", "save_steps"),
    "SYSTEM = ''": (
        "SYSTEM = SYSTEM_TEMPLATE.alpaca",
        "system = SYSTEM_TEMPLATE.alpaca: stands in",
        "eval_prompts_system",
    ),
    "['请介绍一下你自己', ": ("[ask(), ", "evaluation_inputs = ask() (config.py:", None),
    "    padding_side='right')": (
        "    padding_side='right')\ntry:\n    max_norm = 1\n    lr = 1\nexcept NameError:\n    lr = 2",
        "optimizer.lr = 2 in a try (config.py:",
        "learning_rate",
    ),
    "'internlm/internlm2_5-7b-chat'": (
        "'{0.__class__}'.format(1)",
        "llm.pretrained_model_name_or_path = '{0.__class__}'.format(1) (config.py:",
        "model_name_or_path",
    ),
}


@pytest.mark.parametrize("old", UNKNOWN)
def test_what_only_running_would_tell_is_named_with_its_line(imported, old):
    new, comment, key = UNKNOWN[old]
    recipe, comments, _ = imported(edited(QLORA, (old, new)))
    assert comment in comments
    assert key not in recipe


def test_a_second_hook_changes_nothing_of_the_first(imported):
    second = "dict(type=EvaluateChatHook, every_n_iters=7, evaluation_inputs=['再问'], system='另一', max_new_tokens=9)"
    once = imported(QLORA)[0]
    recipe, comments, _ = imported(QLORA + f"custom_hooks.append({second})\n")
    assert recipe.pop("eval_prompts") == [*once.pop("eval_prompts"), "再问"]
    assert recipe == once
    for said in ("every_n_iters = 7", "system = '另一'", "max_new_tokens = 9"):
        assert f"custom_hooks[2].{said}: no counterpart here" in comments


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a dump of a run under DeepSpeed", {"gradient_accumulation_steps": 16, "max_grad_norm": 1, "bf16": True}),
        ("batches made by a sampler", {"per_device_train_batch_size": 4, "dataloader_drop_last": True}),
        ("8 bits, said to the model itself", {"load_in_8bit": True}),
        ("a folder named after the config", {"output_dir": "runs/config"}),
        ("what runs as a program", {"lora_r": 64}),
        (
            "how answers are generated",
            {
                "eval_prompts_generation": {
                    "max_new_tokens": 600, "do_sample": True, "temperature": 0.7, "top_p": 0.75, "top_k": 40
                }
            },
        ),
    ],
)  # fmt: skip
def test_what_stands_in_another_place_is_a_key_too(imported, name, keys):
    recipe, _, _ = imported(CONFIGS[name])
    assert {key: recipe.get(key) for key in keys} == keys


def test_a_statement_that_is_not_followed_is_named_and_not_run(imported, tmp_path):
    _, comments, said = imported(QLORA + "open('was_run', 'w')\nfix(model)\nprint('no word of this')\n")
    line = QLORA.count("\n") + 1
    assert f"config.py:{line}: open('was_run', 'w'): not run here" in comments
    assert f"config.py:{line + 1}: fix(model): not run here" in said
    assert "no word of this" not in said
    assert not (tmp_path / "was_run").exists()


def test_the_environment_is_taken_at_its_default_and_said(imported):
    source = edited(QLORA, ("lr = 2e-4", "import os\nlr = float(os.environ.get('LR', '3e-4'))"))
    recipe, comments, _ = imported(source)
    assert recipe["learning_rate"] == 3e-4
    assert "the environment variable LR is taken as its default, '3e-4'" in comments


def test_a_base_is_read_where_it_lies(imported, tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "qlora.py").write_text(QLORA, encoding="utf-8")
    source = (
        "from mmengine.config import read_base\nwith read_base():\n    from .bases.qlora import *\n"
        "model.lora.r = 8\noptim_wrapper.merge(dict(optimizer=dict(lr=1e-5)))\n"
    )
    recipe, _, _ = imported(source)
    assert (recipe["lora_r"], recipe["lora_alpha"], recipe["learning_rate"]) == (8, 16, 1e-5)
    source = (
        "_base_ = ['./bases/qlora.py']\nmodel = dict(lora=dict(r=4), llm=dict(quantization_config=dict(_delete_=True, "
        "load_in_8bit=True)))\noptim_wrapper = dict(optimizer=dict(lr={{_base_.lr}} / 2))\n"
    )
    recipe, _, _ = imported(source)
    assert (recipe["lora_r"], recipe["lora_alpha"], recipe["learning_rate"]) == (4, 16, 1e-4)
    assert recipe["load_in_8bit"]
    assert "load_in_4bit" not in recipe


def test_a_config_with_deepspeed_in_it(imported):
    source = edited(QLORA, ("type=AmpOptimWrapper", "type='DeepSpeedOptimWrapper'"))
    strategy = (
        "strategy = dict(type='DeepSpeedStrategy', bf16=dict(enabled=True), gradient_clipping=0.7, "
        "gradient_accumulation_steps=4, zero_optimization=dict(stage=3, offload_optimizer=dict(device='cpu'), "
        "offload_param=dict(device='none'), reduce_bucket_size=5e8))\n"
    )
    recipe, comments, _ = imported(source + strategy)
    assert (recipe["bf16"], recipe["fp16"], recipe["dtype"]) == (True, False, "bfloat16")
    assert (recipe["max_grad_norm"], recipe["gradient_accumulation_steps"]) == (0.7, 4)
    assert recipe["deepspeed"] == "ds_configs/zero3_offload.json"
    assert "zero3_offload.json stands for it; not taken from it: reduce_bucket_size" in comments
    assert "optim_wrapper.accumulative_counts = 1" in comments


@pytest.mark.parametrize("name", ["dump.json", "dump.yaml"])
def test_mmengines_other_dumps_are_read(imported, name, tmp_path):
    (tmp_path / "config.py").write_text(DUMP)
    names = json.loads(json.dumps(execute(tmp_path / "config.py")))
    dumped = json.dumps(names) if name.endswith(".json") else yaml.safe_dump(names, allow_unicode=True)
    assert imported(dumped, name=name)[0] == imported(DUMP)[0]


NESTED = "[" * 90 + "]" * 90
REFUSED = [
    ("a = (", "config.py:1: not Python"),
    ("a = 1\nb = = 2", "config.py:2: not Python"),
    ("\0", "not Python"),
    ("lr = 1", "config.py: sets no model: is it a whole XTuner config"),
    ("model = build()", "config.py: model = build() (config.py:1): only running the config would tell"),
    (
        "model = dict(type=AutoModelForCausalLM.from_pretrained)",
        "model.type = AutoModelForCausalLM.from_pretrained: XTuner trains dict(type=SupervisedFinetune, llm=...)",
    ),
    ("model = dict(type=LLaVAModel, llm=dict())", "trains a LLaVAModel: only text SFT"),
    ("from xtuner.model import DPO\nmodel = dict(type=DPO, llm=dict())", "trains a DPO: only text SFT"),
    ("model = dict(type='xtuner.model.RewardModel')", "trains a RewardModel: only text SFT"),
    ("framework = 'huggingface'", "is for Transformers' Trainer"),
    ("with read_base():\n    from .gone import *", "config.py:2: its base .gone is not there: put it at gone.py"),
    (
        "with read_base():\n    from xtuner.configs.x import *",
        "config.py:2: its base xtuner.configs.x is not there: copy",
    ),
    ("_base_ = './gone.py'", "config.py:1: its base ./gone.py is not there"),
    ("_base_ = 'config.py'", "config.py:1: is based on config.py, which is based on it"),
    (f"a = {NESTED}", "nests too deeply"),
    ("a = " + "-" * 5000 + "1", "nests too deeply"),
    ("a = []\na.append(a)", "nests too deeply"),
    ("model = dict()\nmodel['self'] = model", "nests too deeply"),
    ("a = [0] * 9999\nb = [a] * 9999", "holds too many values"),
    ("for i in range(9999):\n    for j in range(9999):\n        a = i", "takes too many steps"),
    ("a = [1]\nfor i in range(9999):\n    a.extend(a)", "config.py: sets no model"),
]


@pytest.mark.parametrize(("source", "said"), REFUSED)
def test_what_is_no_config_is_refused_in_one_line(imported, source, said):
    recipe, _, heard = imported(source, code=2)
    assert said in heard
    assert heard.count("\n") == 1
    assert recipe == {}
