"""YAML as people write it: the right line, the key, and what to write instead, in one line."""

import os
from pathlib import Path

import pytest

from sft.config.settings import read_settings
from sft.core.errors import UserError

LAST = "dataset_num_proc: 1\n"


def write_in_place(write_recipe, written: str) -> tuple[Path, int]:
    """A recipe with a key written so, and how many lines stand before it."""
    path = write_recipe()
    key = written.lstrip().partition("：")[0].partition(":")[0].partition("=")[0].strip()
    kept = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{key}:"))
    path.write_text(f"{kept}{written}\n{LAST}", encoding="utf-8")
    return path, kept.count("\n")


def refusal(write_recipe, written: str) -> tuple[int, str]:
    """The line, counted from the first that was written, and what is said of it."""
    path, before = write_in_place(write_recipe, written)
    with pytest.raises(UserError, match=r"^[^\n]+$") as refused:
        read_settings([str(path)])
    place, _, said = str(refused.value).removeprefix(f"{path}:").partition(": ")
    return int(place) - before, said


@pytest.mark.parametrize(
    ("written", "line", "said"),
    [
        ("lora_r：64", 1, "lora_r: a full-width colon; write it as `lora_r: 64`"),
        ("lora_r ： 64", 1, "lora_r: a full-width colon; write it as `lora_r: 64`"),
        ("lora_r:64", 1, "lora_r: no space after the colon; write it as `lora_r: 64`"),
        ("lora_r:\u300064", 1, "lora_r: a full-width or no-break space after the colon; write it as `lora_r: 64`"),
        ("lora_r:\u00a064", 1, "lora_r: a full-width or no-break space after the colon; write it as `lora_r: 64`"),
        ("lora_r = 64", 1, "lora_r: an equals sign; write it as `lora_r: 64`"),
        ("\tlora_r: 64", 1, "lora_r: a tab at the start; write it as `lora_r: 64`"),
        ("eval_prompts: [你是谁，介绍一下你自己]", 1,
         "eval_prompts: ， does not part the items of a list, so `你是谁，介绍"),
        ("eval_prompts:\n  - Hi\n  - Tell me: who are you?", 3,
         "eval_prompts: a colon and a space make `Tell me` a map"),
        ("eval_prompts_system: You are: Dali", 1, "not YAML: a colon and a space in a text make it a mapping: put the"),
        ("train_file: \"C:\\data\\new.jsonl\"", 1,
         "not YAML: in double quotes a backslash begins an escape: put the pa"),
        ("eval_prompts: [Who are you?]", 1, "not YAML: a ? inside [ ] ends nothing: put the text in quotes"),
        ("eval_prompts: [你是谁", 1, "not YAML: a [ is opened and never closed, or a text in it needs quotes"),
        ("eval_prompts:\n  - Hi\n  - \"你是谁", 3, "not YAML: a quote is opened and never closed"),
        ("eval_prompts:\n  - 'What's up?'", 2, "not YAML: a text goes on behind its closing quote or ]: use"),
        ("eval_prompts:\n  - @黄大力 你是谁", 2, "not YAML: a text that begins with one of @ ` % needs quotes"),
        ("eval_prompts:\n  - !important read", 2, "eval_prompts: a ! at the start is no text to YAML: put the text"),
        ("eval_prompts:\n  - a\n    - b", 3, "eval_prompts: is indented further than the item above, and so one te"),
        ("eval_prompts:\n  -你是谁", 2, "eval_prompts: no space after the -; write it as `- 你是谁`"),
        ("lora_r: 8\n  lora_alpha: 16", 2, "not YAML: is indented; begin every key at the left edge"),
        ("eval_prompts: [a] b", 1, "not YAML: a text goes on behind its closing quote or ]"),
        ("eval_prompts_generation:\n  stop_strings: User: x", 2, "not YAML: a colon and a space in a text make it"),
        ("lora_r:\t8", 1, "not YAML: a tab before a key or a value: write a space"),
        ("lora_r 8", 1, "not YAML: no `key: value`"),
        ("lora_r: 8\n---\nlora_alpha: 16", 2, "not YAML: a recipe is one document: take out the second ---"),
        ("eval_file: None", 1, "eval_file: None is a word to YAML; leave the line out, or write null"),
        ("lora_target_modules: q_proj,v_proj", 1,
         "lora_target_modules: q_proj,v_proj: is one name to PEFT; write a list:"),
        ("lora_target_modules: q_proj，v_proj", 1,
         "lora_target_modules: q_proj，v_proj: is one name to PEFT; write a list:"),
        ("model_name_or_path: ~/model", 1,
         f"model_name_or_path: ~/model: only a shell knows ~; write {os.path.expanduser('~')}"),
        ("model_name_or_path: ${MODEL}", 1,
         "model_name_or_path: ${MODEL}: only a shell fills in variables; write the pa"),
        ("output_dir: $HOME/run", 1, "output_dir: $HOME/run: only a shell fills in variables"),
        ("dtype: bf16", 1, "dtype: 'bf16' is not one of auto, bfloat16, float16, float32; did you mean bfloat16?"),
        ("optim: adam", 1, "optim: 'adam' is not one of adamw_torch, adamw_torch_fused, "),
        ("optim: adamW_8bit", 1, "optim: 'adamW_8bit' is not one of adamw_torch, "),
        ("epochs: 3", 1, "epochs: no such setting; here it is num_train_epochs"),
        ("LORA_R: 3", 1, "LORA_R: no such setting; did you mean lora_r?"),
        ("model:\n  dtype: float32", 1,
         "model: no such setting; here it is model_name_or_path; a recipe is flat: write the keys "
         "below it at the left edge"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_or_other_than_meant_is_told_by_what_it_is(write_recipe, written, line, said):
    found, text = refusal(write_recipe, written)
    assert text.startswith(said)
    assert found == line


@pytest.mark.parametrize(
    "written",
    [
        "eval_prompts: ['你是谁，介绍一下你自己', \"Tell me: who are you?\"]",
        "eval_prompts:\n- 你是谁，介绍一下你自己\n- 'Tell me: who are you?'",
        "eval_prompts_system: 'None'",
        "eval_prompts:\n  - a text that goes on\n    below - with a dash",
        "eval_prompts: ['Who are you?', What is 2 - 1]",
        "eval_prompts_system: https://example.org/a:b",
        "\u3000lora_r: 16",
        "lora_target_modules: '.*(q|v)_proj{1,2}'",
        "lora_target_modules: [q_proj, v_proj]",
    ],
)
def test_what_is_meant_as_it_is_read_passes(write_recipe, written):
    path, _ = write_in_place(write_recipe, written)
    read_settings([str(path), *(() if "eval_prompts:" in written else ("--eval_prompts", "你是谁"))])


def test_a_value_that_is_no_choice_on_the_command_line_is_told_the_nearest(write_recipe):
    with pytest.raises(UserError, match=r"command line: dtype: 'bf16' is not one of .*; did you mean bfloat16\?"):
        read_settings([str(write_recipe()), "--dtype", "bf16"])
    with pytest.raises(UserError, match="command line: epochs: no such setting; here it is num_train_epochs"):
        read_settings([str(write_recipe()), "--epochs", "3"])
