"""A recipe is read strictly: what is not understood is refused with file, line, key and what to do."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from accelerate import PartialState
from transformers.integrations import is_deepspeed_zero3_enabled

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY


def test_a_recipe_and_overrides_reach_the_fields_of_trl_transformers_and_peft(write_recipe):
    path = write_recipe(learning_rate="2e-4", eval_prompts=["你是谁", "Who are you"], lora_r=64)
    recipe = load_recipe([str(path), "--lora_r", "32", "--local_rank=0", "--packing", "false"])
    assert recipe.training.learning_rate == 2e-4
    assert recipe.model.lora_r == 32
    assert recipe.training.packing is False
    assert recipe.run.eval_prompts == ["你是谁", "Who are you"]
    assert recipe.run.eval_prompts_generation == {"max_new_tokens": 100, "do_sample": False}


def test_a_word_that_yaml_takes_for_a_boolean_is_read_as_it_is_written(write_recipe):
    path = write_recipe()
    path.write_text(path.read_text().replace("save_strategy: 'no'", "save_strategy: no") + "eval_prompts: [no, 12]\n")
    assert "save_strategy: no\n" in path.read_text()
    recipe = load_recipe([str(path)])
    assert recipe.training.save_strategy == "no"
    assert recipe.run.eval_prompts == ["no", "12"]


def test_one_prompt_or_module_may_stand_without_brackets(write_recipe):
    recipe = load_recipe([str(write_recipe(eval_prompts="你是谁", lora_target_modules="all-linear"))])
    assert recipe.run.eval_prompts == ["你是谁"]
    assert recipe.model.lora_target_modules == "all-linear"


def test_generation_settings_come_from_the_recipe_and_as_json_from_the_command_line(write_recipe):
    path = write_recipe(eval_prompts=["Who are you?"], eval_prompts_generation={"max_new_tokens": 7})
    assert load_recipe([str(path)]).run.eval_prompts_generation == {"max_new_tokens": 7, "do_sample": False}
    overridden = load_recipe([str(path), "--eval_prompts_generation", '{"do_sample": true}'])
    assert overridden.run.eval_prompts_generation == {"max_new_tokens": 100, "do_sample": True}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rat: 1", "learning_rat: no such setting; did you mean learning_rate?"),
        ("zzz: 1", "zzz: no such setting"),
        ("env: {A: b}", "env: no such setting"),
        ("lora_r: 6.5", "lora_r: invalid int value: '6.5'"),
        ("packing: maybe", "packing: Truthy value expected"),
        ("packing_strategy: tight", "packing_strategy: 'tight' is not one of bfd"),
        ("truncation: silently", "truncation: 'silently' is not one of error"),
        ("learning_rate: [1, 2]", "learning_rate: a list does not fit here"),
        ("learning_rate:", "learning_rate: no value"),
        ("max_steps: 0", "max_steps: 0 is not a number of steps above 0; leave it out to train num_train_epochs"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size: 0 is not a whole number of at least 1"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps: 0 is not a whole number of at least 1"),
        ("learning_rate: -1e-4", "learning_rate: -0.0001 is not a number above 0"),
        ("num_train_epochs: 0", "num_train_epochs: 0 is not a number above 0"),
        ("max_length: 0", "max_length: 0 is not a whole number of at least 1"),
        ("lora_r: 0", "lora_r: 0 is not a whole number of at least 1"),
        ("lora_dropout: 1.5", "lora_dropout: 1.5 is not a share from 0 to below 1"),
        ("save_steps: 0", "save_steps: 0 is not a number above 0"),
        ("adam_beta2: 1", "adam_beta2: 1 is not a share from 0 to below 1"),
        ("lora_r: 8\nlora_r: 16", "lora_r: set twice"),
        ("eval_prompts_steps: -1", "eval_prompts_steps: -1 is not a number of steps"),
        ("eval_prompts_generation: '{x'", "eval_prompts_generation: {x: not JSON (Expecting property name"),
        ("eval_prompts_generation: '[1]'", "eval_prompts_generation: [1]: JSON, but no object; write a mapping"),
        ("lr_scheduler_kwargs: x", "lr_scheduler_kwargs: x: not JSON (Expecting value"),
        ("eval_prompts: ['']", "eval_prompts: an item is empty; leave it out"),
        ("eval_prompts: [null, a]", "eval_prompts: an item is empty; leave it out"),
        ("learning_rate: 0", "learning_rate: 0 is not a number above 0"),
        ("weight_decay: inf", "weight_decay: inf is not a number of at least 0"),
        ("seed: 4294967296", "seed: 4.29497e+09 is not a whole number from 0 to 4294967295"),
        ("warmup_steps: 1.5", "warmup_steps: 1.5 is not a whole number of steps, or a share of them from 0"),
        ("save_total_limit: 0", "save_total_limit: 0 is not a whole number of at least 1; leave it out to keep all"),
        ("pad_to_multiple_of: 0", "pad_to_multiple_of: 0 is not a whole number of at least 1"),
        ("label_smoothing_factor: 1.5", "label_smoothing_factor: 1.5 is not a share"),
        ("neftune_noise_alpha: -1", "neftune_noise_alpha: -1 is not a number above 0"),
        ("ddp_timeout: 0", "ddp_timeout: 0 is not a number of seconds above 0"),
        ("output_dir: .", "output_dir: .: holds "),
        ("output_dir: train_sft.py", "output_dir: train_sft.py: is a file; name a folder"),
        ("lora_task_type: SEQ_CLS", "lora_task_type: a chat model is of the type CAUSAL_LM"),
        ("model_init_kwargs: {dtype: float16}", "model_init_kwargs: dtype: has a key of its own; write dtype"),
        ("model_init_kwargs: {revision: a}", "model_init_kwargs: revision: has a key of its own; write model_revision"),
        ("model_revision: v2", "model_revision: "),
        ("accelerator_config: {split_batches: true}", "accelerator_config: split_batches: per_device_train_batch_size"),
        ("accelerator_config: {even_batches: false}", "accelerator_config: even_batches: processes with fewer batches"),
        (
            "accelerator_config: {non_blokking: true}",
            "accelerator_config: non_blokking: no such field; did you mean no",
        ),
        ("accelerator_config: my.json", "accelerator_config: my.json: write it as a mapping"),
        ("metric_for_best_model: accuracy", "metric_for_best_model: accuracy: the held-out loss alone is measured"),
        ("save_strategy: best", "save_strategy: best needs metric_for_best_model"),
        ("deepspeed: {}", "deepspeed: is empty; name a configuration"),
        ("max_length: null", "max_length: packing needs a length"),
        ("eval_prompts: [[a]]", "eval_prompts: a list does not fit here"),
        ("logging_dir: x", "logging_dir: gone in Transformers 5"),
        ("max_epochs: 3", "max_epochs: XTuner's name; here it is num_train_epochs"),
        ("eval_strategy: steps", "eval_strategy: there is no held-out file to evaluate on; name one with eval_file"),
        ("save_strategy: sometimes", "save_strategy: "),
        ("train_file: [a.jsonl]", "train_file: a.jsonl: write each file as {path: data/a.jsonl, weight: 1.0}"),
        ("train_file: [{path: a.jsonl, wieght: 2}]", "train_file: wieght: no key of a file; did you mean weight?"),
        ("train_file: [{path: a.jsonl, weight: 0}]", "train_file: a.jsonl: weight 0: must be a number above 0"),
        ("train_file: [{path: none.jsonl}]", "train_file: none.jsonl: no such file; make one with"),
        ("eval_file: none.jsonl", "eval_file: none.jsonl: no such file; hold one out with: python -m data_tools split"),
        ("deepspeed: ds_configs/zero9.json", "deepspeed: ds_configs/zero9.json: no such file; there are ds_configs/"),
        ("chat_template_path: nowhere.jinja", "chat_template_path: nowhere.jinja: not a .jinja file"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(write_recipe, line, said):
    path = write_recipe()
    kept = "".join(
        f"{key}: {value}\n" for key, value in yaml.safe_load(path.read_text()).items() if f"{key}:" not in line
    )
    path.write_text(kept + line + "\n")
    number = len((kept + line).splitlines())
    with pytest.raises(UserError) as error:
        load_recipe([str(path)])
    assert str(error.value).startswith(f"{path}:{number}: {said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"train_file": "data/none.jsonl"}, "make one with: python -m data_tools generate --name 黄大力 --rows 1500"),
        ({"train_file": None}, "train_file: missing"),
        ({"model_name_or_path": None}, "model_name_or_path: missing"),
        ({"load_in_4bit": True, "use_peft": False}, "load_in_4bit: quantised weights cannot be trained"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit: weights are held in 4 bits or in 8; leave out"),
        (
            {"eval_prompts": ["a"], "eval_prompts_generation": {"max_tokens": 5}},
            "eval_prompts_generation: max_tokens is no field of Transformers' GenerationConfig",
        ),
        (
            {"attn_implementation": "flex_attention"},
            "attn_implementation: flex_attention has no backward pass on a CPU",
        ),
        ({"attn_implementation": "sdpaa"}, "attn_implementation: sdpaa: no such attention; did you mean sdpa?"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed: train_micro_batch_size_per_gpu: missing"),
        ({"deepspeed": {"train_batch_size": "auto"}}, "deepspeed: zero_optimization: missing"),
        ({"eval_file": __file__, "per_device_eval_batch_size": 2}, "per_device_eval_batch_size: must be 1"),
        ({"fp16": True}, "fp16: needs a GPU and this machine has none"),
        ({"fp16": True}, "to plan for a GPU that is not here: --dry_run --card 24"),
        ({"card": 24}, "card: is the GPU that a dry run plans for; add --dry_run"),
        ({"card": 0, "dry_run": True}, "card: 0 is not the GB of a GPU, above 0, such as 24"),
        ({"use_liger_kernel": True}, "use_liger_kernel: its kernels run on a GPU, and this machine has none"),
        (
            {"model_init_kwargs": {"use_kernels": True}},
            "model_init_kwargs: use_kernels needs the package kernels; pip install 'kernels>=",
        ),
        (
            {"activation_offloading": True},
            "activation_offloading: moves what a GPU keeps to RAM, and this machine has no GPU",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(write_recipe, keys, said):
    with pytest.raises(UserError, match=r"tiny\.yaml") as error:
        load_recipe([str(write_recipe(**keys))])
    assert said in str(error.value)


@pytest.mark.parametrize("key", ["lora_r: 8", "lora_alpha: 16", "use_dora: true", "use_rslora: true"])
def test_a_key_of_lora_without_an_adapter_is_refused(write_recipe, key):
    path = write_recipe()
    kept = {name: value for name, value in yaml.safe_load(path.read_text()).items() if "lora" not in name}
    del kept["use_peft"]
    path.write_text(f"{yaml.safe_dump(kept)}{key}\n")
    with pytest.raises(UserError, match=f"{key.split(':')[0]}: would change nothing by itself; add use_peft: true"):
        load_recipe([str(path)])
    # Said in so many words, it is what is wanted.
    assert load_recipe([str(path), "--use_peft", "false"]).model.use_peft is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lora_x", "1"], "command line: lora_x: no such setting"),
        (["--lora-rr", "1"], "command line: lora_rr: no such setting; did you mean lora_r?"),
        (["--lora_r", "x"], "command line: lora_r: invalid int value"),
        (["--lr", "1"], "command line: lr: XTuner's name"),
        (["another.yaml"], "another.yaml: one recipe at a time"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_one_line(write_recipe, arguments, said):
    with pytest.raises(UserError) as error:
        load_recipe([str(write_recipe()), *arguments])
    assert said in str(error.value)


def test_no_recipe_or_a_missing_one_lists_what_there_is():
    with pytest.raises(UserError, match="required: recipe"):
        load_recipe([])
    with pytest.raises(UserError, match=r"recipes/demo\.yaml"):
        load_recipe(["recipes/none.yaml"])


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"- a\n", "this holds none"), (b"", "this holds none"), (b"a: [1\n", "not YAML"), (b"\xff", "not UTF-8")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=said):
        load_recipe([str(path)])


def test_old_spellings_are_read_as_the_new_ones_and_said_once(write_recipe, capsys):
    path = write_recipe()
    text = path.read_text().replace("warmup_steps: 0.03", "warmup_ratio: 0.05").replace("activation_", "gradient_")
    path.write_text(text)
    recipe = load_recipe([str(path), "--max_seq_length", "64"])
    assert recipe.training.warmup_steps == 0.05
    assert recipe.training.activation_checkpointing is False
    assert recipe.training.max_length == 64
    said = capsys.readouterr().out
    for note in (
        "warmup_ratio is now warmup_steps",
        "gradient_checkpointing is now",
        "max_seq_length is now max_length",
    ):
        assert said.count(note) == 1


def test_paths_are_found_in_the_repository_from_any_working_directory(write_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe([str(write_recipe()), "--chat_template_path", "benchmarks/templates/smollm2_marked.jinja"])
    assert recipe.training.chat_template_path == str(REPOSITORY / "benchmarks/templates/smollm2_marked.jinja")


def test_the_resolved_recipe_can_be_run_again_and_holds_no_secret(write_recipe, tmp_path):
    recipe = load_recipe([str(write_recipe()), "--lora_r", "4", "--push_to_hub", "true", "--hub_token", "hf_secret"])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert "hf_secret" not in again.read_text()
    assert "# lora_dropout: 0.05" in again.read_text()
    reread = load_recipe([str(again)])
    assert reread.model == recipe.model
    assert reread.chosen == {key: value for key, value in recipe.chosen.items() if key != "hub_token"}


READ = """
import json, os, sys
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers.integrations import deepspeed as hf_deepspeed
from sft.config.load import load_recipe, read_recorded_recipe

def state():
    shared = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)]
    torchs = [torch.get_num_threads(), torch.backends.fp32_precision, torch.get_default_dtype(), torch.initial_seed()]
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    return [dict(os.environ), *shared, *torchs, reference, torch.distributed.is_initialized(), os.getcwd()]

before = state()
assert "deepspeed" not in sys.modules
recipe = load_recipe(sys.argv[1:])
training = recipe.training
is_unchanged = state() == before and read_recorded_recipe(recipe.path, recipe.chosen) and state() == before
batch = training.hf_deepspeed_config.get_value("train_batch_size")
print(json.dumps([is_unchanged, training.world_size, training.process_index, batch]))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_reading_a_recipe_changes_nothing_in_the_process_or_on_the_disk(write_recipe, tmp_path, processes):
    """Beside a launcher that started two, a process that opened a group would wait here for the other one."""
    recipe = write_recipe(deepspeed="ds_configs/zero3.json", per_device_train_batch_size=3, torch_compile=True)
    before = set(tmp_path.rglob("*"))
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29571"}
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "ops")} | (place if processes == 2 else {})
    result = subprocess.run(
        [sys.executable, "-c", READ, str(recipe)],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [True, processes, 0, 3 * processes]
    assert set(tmp_path.rglob("*")) == before


def test_what_a_trainer_has_set_up_in_the_process_outlives_the_reading_of_another_recipe(make_trainer, write_recipe):
    trainer, _ = make_trainer()
    shared = dict(PartialState._shared_state)
    other = load_recipe([str(write_recipe(deepspeed="ds_configs/zero3.json"))])
    assert PartialState._shared_state == shared
    assert trainer.accelerator.state.num_processes == other.training.world_size == 1
    assert not is_deepspeed_zero3_enabled()
