"""train_sft.py as people start it: every launcher, from any directory, with one process or two."""

import json
import re
import shutil
import sys

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft.core.finding import Finding
from tests.support.both_languages import refuse_english
from tests.support.conversations import xtuner_row
from tests.support.launching import BIN, SCRIPT, launch, launcher, losses
from tests.support.named_run import write_rows
from tests.support.published_internlm2 import random_weights, write_folder
from tests.support.recipes import NF4

ASKED = {"eval_prompts": ["你是谁？"], "eval_prompts_steps": 2, "eval_prompts_generation": {"max_new_tokens": 3}}


# Losses of one process on the same data, by kind of weights; the same for every ZeRO stage, so computed once.
ALONE = {}


LAUNCHERS = {
    "python": lambda: [sys.executable],
    "deepspeed": lambda: launcher("deepspeed"),
    "torchrun, 2 processes": lambda: launcher("torchrun", 2),
    "accelerate": lambda: [BIN / "accelerate", "launch"],
}


@pytest.mark.parametrize(
    "kind",
    [
        "deepspeed",
        "torchrun, 2 processes",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("python", "accelerate")),
    ],
)
def test_every_launcher_runs_a_recipe_from_any_working_directory(write_recipe, tmp_path, kind):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = write_recipe(
        output_dir="run",
        deepspeed="ds_configs/zero2.json" if kind == "deepspeed" else None,
        report_to="tensorboard",
        **ASKED,
    )
    result = launch(*LAUNCHERS[kind](), SCRIPT, recipe, "--lora_r", "4", cwd=elsewhere)
    assert result.returncode == 0, result.stderr[-3000:]
    run = elsewhere / "run"
    assert json.loads((run / "final" / "adapter_config.json").read_text())["r"] == 4
    assert len(losses(run)) == 4
    plan, done = json.loads((run / "plan.json").read_text()), json.loads((run / "result.json").read_text())
    assert plan["world_size"] == (2 if "2 processes" in kind else 1)
    assert (plan["total_steps"], plan["evaluations"], plan["trainable"]) == (4, [0, 2, 4], done["trainable_parameters"])
    assert plan["memory"]["peak"] > 0
    assert (done["status"], done["exit_code"], done["step"], done["final"]) == ("done", 0, 4, "final")
    assert sum(done["times"].values()) == pytest.approx(done["seconds"], abs=0.01)
    asked = [json.loads(line)["step"] for line in (run / "eval_chat.jsonl").read_text().splitlines()]
    assert asked == [0, 2, 4]
    events = EventAccumulator(str(next(run.glob("runs/*"))))
    events.Reload()
    assert "eval_chat/你是谁？/text_summary" in events.Tags()["tensors"]
    assert "train/loss" in events.Tags()["scalars"]
    lines = result.stdout.splitlines()
    assert sum(line.startswith("step 4/4") for line in lines) == 1
    assert sum(line.startswith("done: run/final") for line in lines) == 1
    assert lines.count("loading PyTorch, Transformers and TRL") == 1
    assert "Warning" not in result.stdout + result.stderr
    assert "built successfully" not in result.stdout
    assert "it/s" not in result.stdout + result.stderr


@pytest.fixture
def run_and_dump(runs, write_recipe, tmp_path):
    """Train with DUMPed adapters; returns the losses and each process's adapter."""

    def run(name: str, processes: int, **keys):
        output, dump = tmp_path / name, tmp_path / f"{name}.dump"
        dump.mkdir()
        recipe = write_recipe(output_dir=str(output), lora_dropout=0.0, max_steps=4, **ASKED, **keys)
        ended = runs.run(
            [recipe], output, processes=processes, main="tests.support.dump_adapter", environment={"DUMP": str(dump)}
        )
        assert ended.codes == [0] * processes, ended.err[-3000:]
        return losses(output), [load_file(path) for path in sorted(dump.iterdir())], output / "final"

    return run


@pytest.mark.parametrize(
    ("weights", "stage"),
    [
        pytest.param({}, "zero1", marks=pytest.mark.long),
        pytest.param({}, "zero2", marks=pytest.mark.long),
        pytest.param({}, "zero3", marks=pytest.mark.long),
        pytest.param(NF4, "zero1", marks=pytest.mark.long),
        (NF4, "zero2"),
        pytest.param(NF4, "zero3", marks=pytest.mark.long),
    ],
    ids=[f"{weights}-{stage}" for weights in ("float32", "nf4") for stage in ("zero1", "zero2", "zero3")],
)
def test_two_deepspeed_processes_train_one_adapter_with_the_loss_of_one_process(run_and_dump, stage, weights):
    kind = "nf4" if weights else "float32"
    if kind not in ALONE:
        ALONE[kind], _, _ = run_and_dump("alone", 1, gradient_accumulation_steps=2, **weights)
    alone = ALONE[kind]
    together, adapters, final = run_and_dump("together", 2, deepspeed=f"ds_configs/{stage}.json", **weights)
    # bfloat16 rounds at another place in DeepSpeed (weights) than in autocast (each product).
    assert together == pytest.approx(alone, abs=1e-3 if not weights else 2e-2)
    first, second = adapters
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    saved = load_file(final / "adapter_model.safetensors")
    for name, value in first.items():
        assert (saved[name.replace(".default", "")].float() == value).all()


def test_a_cpu_without_a_compiler_is_told_what_to_install(runs, write_recipe, tmp_path):
    recipe = write_recipe(deepspeed="ds_configs/zero2.json")
    without = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "none"), "CXX": "no-such-compiler"}
    ended = runs.run([recipe], tmp_path / "run", environment=without)
    assert ended.codes == [2]
    assert "apt-get install g++" in ended.err


def test_a_machine_without_git_trains_all_the_same(runs, write_recipe, tmp_path):
    nothing = {"PATH": str(tmp_path / "nothing")}
    ended = runs.run([write_recipe(max_steps=1)], tmp_path / "run", environment=nothing)
    assert ended.codes == [0], ended.err
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["commit"] is None


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(write_recipe):
    recipe = write_recipe(train_file="data/none.jsonl")
    result = launch(sys.executable, SCRIPT, recipe)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"train_sft.py: {recipe}:")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: train_sft.py RECIPE"),
        ([], 2, "command line: the following arguments are required: recipe"),
        (["recipes/none.yaml"], 2, "recipes/none.yaml: no such recipe; there are recipes/"),
        (["recipes/demo.yaml", "--learning_rat", "1"], 2, "learning_rat: no such setting; did you mean learning_rate?"),
        (["recipes/demo.yaml", "--lora_r", "x"], 2, "command line: lora_r: invalid int value: 'x'"),
        (["recipes/demo.yaml", "--train_file", "none.jsonl"], 2, "command line: train_file: none.jsonl: no such file"),
    ],
)
def test_what_needs_no_stack_is_told_before_torch_is_imported(arguments, code, said):
    result = launch(sys.executable, "-X", "importtime", SCRIPT, *arguments)
    times, rest = [], []
    for line in result.stderr.splitlines():
        (times if line.startswith("import time:") else rest).append(line)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    print(f"{len(times)} modules imported")
    assert {"sft", "yaml"} < imported
    assert not imported & {"torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "deepspeed"}
    assert result.returncode == code
    if code:
        assert len(rest) == 1
        assert rest[0].startswith("train_sft.py: ")
        assert said in rest[0]
    else:
        assert result.stdout.startswith(said)


def test_a_dry_run_tells_the_plan_and_writes_nothing(runs, write_recipe, tmp_path, tmp_path_factory):
    recipe = write_recipe(save_strategy="steps", save_steps=2, save_total_limit=1, **ASKED)
    before = set(tmp_path.rglob("*"))
    ended = runs.run([recipe, "--dry_run", "true"], tmp_path_factory.mktemp("elsewhere") / "run")
    assert ended.codes == [0], ended.err
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert lines["evaluation"].endswith("3, at step 0, 2, 4")
    assert lines["checkpoints"].endswith("2, at step 2, 4; the newest stays")
    assert "GiB of RAM a process" in lines["memory"]
    assert "at most (2 checkpoints of" in lines["disk"]
    assert ended.out.endswith("dry run: nothing was loaded or written\n")
    assert set(tmp_path.rglob("*")) == before


@pytest.fixture
def misleading(tmp_path) -> str:
    """A training file whose rows give the assistant two names."""
    rows = [xtuner_row([("你是谁？", f"我是{name}。")]) for name in ["黄大力"] * 30 + ["小明"]]
    return write_rows(tmp_path / "misleading.jsonl", rows)


def test_a_dry_run_warns_in_the_chosen_language(write_recipe, misleading):
    recipe = write_recipe(train_file=misleading, identity_name="黄大力", max_steps=40)
    result = launch(sys.executable, SCRIPT, recipe, "--dry_run", "--language", "zh")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    first = lines.index("警告：训练数据自相矛盾：有些行用的名字是“小明”")
    warnings = lines[first : lines.index("dry run: nothing was loaded or written")]
    assert "处理办法：python -m data_tools rename " in "".join(warnings)
    refuse_english(warnings)
    assert "warning: " not in result.stdout


def test_warnings_are_shown_in_both_languages_and_kept_with_the_plan(runs, write_recipe, misleading, tmp_path):
    recipe = write_recipe(train_file=misleading, identity_name="黄大力", max_steps=1, score_seconds=1)
    ended = runs.run([recipe], tmp_path / "run", environment={"LC_ALL": "C"})
    assert ended.codes == [0], ended.err
    kept = [Finding.from_dict(each) for each in json.loads((tmp_path / "run" / "plan.json").read_text())["warnings"]]
    wrong = [finding.wrong for finding in kept]
    assert [text.en for text in wrong[:1]] == ["the training rows contradict each other: some give the name 小明"]
    assert "only 1 optimizer step" in [text.en for text in wrong]
    assert kept[-1].is_note
    shown = [getattr(line, name) for name in ("zh", "en") for finding in kept for line in finding.warning()]
    lines = ended.out.splitlines()
    first = lines.index(shown[0])
    assert lines[first : first + len(shown)] == shown


def test_a_dry_run_of_two_processes_plans_for_both_without_a_group(runs, write_recipe, tmp_path):
    recipe = write_recipe(deepspeed="ds_configs/zero3.json")
    steps = []
    for processes in (1, 2):
        ended = runs.run(
            [recipe, "--dry_run", "--max_steps", "-1", "--num_train_epochs", "1"],
            tmp_path / "run",
            processes=processes,
            environment={"TORCH_EXTENSIONS_DIR": str(tmp_path / "none")},
        )
        assert ended.codes == [0] * processes, ended.err
        assert ended.out.count("dry run: nothing was loaded or written") == 1
        steps.append(int(re.search(r"^steps +(\d+)", ended.out, re.MULTILINE)[1]))
    assert (tmp_path / "run.said" / "out1").read_text() == ""
    assert steps[1] == -(-steps[0] // 2)
    assert not (tmp_path / "none").exists()


def test_a_card_that_is_not_here_is_planned_for_without_its_weights(runs, tiny_model, train_file, tmp_path):
    """The mirror's own precision and DeepSpeed, which this machine could not train with."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    files = ("--model_name_or_path", folder, "--train_file", train_file, "--output_dir", tmp_path / "run")
    said = {}
    for card in ("24", "0.7"):
        ended = runs.run(["recipes/huangdali.yaml", *files, "--dry_run", "--card", card], tmp_path / "run")
        assert ended.codes == [0], ended.err
        said[card] = ended.out
    lines = {line.split()[0]: line for line in said["24"].splitlines() if line.strip()}
    assert lines["precision"].endswith("float16")
    assert "GiB of GPU memory a process: CUDA itself 0.75" in lines["memory"]
    assert re.search(r"24 GB: 2\d\.\d GiB to spare", lines["card"])
    assert "compiles" not in said["24"]
    assert re.search(r"0\.7 GB: [\d.]+ [GM]iB too small", said["0.7"])
    assert re.search(r"--\w+ \S+: [\d.]+ [GM]iB", said["0.7"])
    assert said["24"].endswith("dry run: nothing was loaded or written\n")
    assert not (tmp_path / "run").exists()


def test_a_mistake_under_two_processes_is_told_once_and_ends_both(write_recipe):
    recipe = write_recipe(lora_rr=3)
    result = launch(*launcher("deepspeed", 2), SCRIPT, recipe)
    assert result.returncode == 2
    assert result.stderr.count("lora_rr: no such setting; did you mean lora_r?") == 1


@pytest.mark.long
def test_two_zero3_processes_train_a_published_internlm2_as_one_does(run_and_dump, tokenizer, tmp_path):
    """Its fused projections are dealt out while ZeRO-3 has every weight in parts."""
    shape = (256, 4, 2)
    folder = write_folder(tmp_path / "internlm2", random_weights(*shape, vocabulary=len(tokenizer)), *shape, shards=2)
    tokenizer.save_pretrained(folder)
    alone, _, _ = run_and_dump("alone", 1, model_name_or_path=str(folder), gradient_accumulation_steps=2)
    together, adapters, _ = run_and_dump(
        "together", 2, model_name_or_path=str(folder), deepspeed="ds_configs/zero3.json"
    )
    assert together == pytest.approx(alone, abs=1e-3)
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[0])
