"""sweep.py as people start it: real runs of a tiny model, compared, gone on with, interrupted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

import sweep
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.sweeps.grid import PlannedPoint
from sft.sweeps.runner import Interruption, PointRun, make_slots, run_all
from sft.sweeps.sweep import lock_folder
from tests.support.launching import hear_interrupts

QUESTIONS = """
identity: ["Who are you?", 你是谁？]
ordinary: ["What is the capital of France?"]
texts: [Paris is big.]
"""
SCRIPT = str(REPOSITORY / "sweep.py")
# A recipe's name is shown on the page; a person may call it anything.
HOSTILE = "<i>黄&大力"


@dataclass
class Bench:
    """A folder to sweep in, with recipes of the tiny model."""

    folder: Path
    model: Path
    data: Path

    def recipe(self, name: str, **keys) -> str:
        settings = {
            "model_name_or_path": str(self.model), "train_file": str(self.data), "dtype": "float32", "bf16": False,
            "use_peft": True, "lora_target_modules": "all-linear", "max_length": 256, "packing": True,
            "per_device_train_batch_size": 1, "activation_checkpointing": False, "learning_rate": 1e-3, "max_steps": 4,
            "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        }  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | keys, allow_unicode=True), encoding="utf-8")
        return path.name

    def scored(self, name: str, **keys) -> str:
        (self.folder / "questions.yaml").write_text(QUESTIONS, encoding="utf-8")
        return self.recipe(name, identity_name="黄大力", score_file="questions.yaml", **keys)

    def start(self, *arguments: str) -> subprocess.Popen:
        kept = {key: value for key, value in os.environ.items() if key in ("HOME", "PATH", "LANG", "TMPDIR")}
        ours = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, SCRIPT, *arguments], cwd=self.folder, env=kept | ours, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=hear_interrupts,
        )  # fmt: skip

    def sweep(self, *arguments: str) -> "Ended":
        process = self.start(*arguments)
        said, problem = process.communicate(timeout=500)
        return Ended(process.returncode, said, problem)

    def results(self, name: str) -> "Swept":
        folder = self.folder / "work_dirs" / f"{name}.sweep"
        with open(folder / "sweep.csv", encoding="utf-8") as file:
            table = {row["point"]: row for row in csv.DictReader(file)}
        records = {
            path.parent.name: (path.stat().st_mtime_ns, json.loads(path.read_text(encoding="utf-8")))
            for path in folder.glob("*/sweep_point.json")
        }
        return Swept(folder, table, (folder / "sweep.html").read_text(encoding="utf-8"), records)


@dataclass
class Ended:
    code: int
    said: str
    problem: str


@dataclass
class Swept:
    """What a sweep left: its folder, the rows of the table, the page, and when each finished point was recorded."""

    folder: Path
    table: dict[str, dict]
    page: str
    records: dict[str, tuple[int, dict]]


@pytest.fixture(scope="module")
def bench(tiny_model, train_file, tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sweeps"), tiny_model, train_file)


@pytest.fixture(scope="module")
def compared(bench) -> tuple[Ended, Swept]:
    """Two ranks with alpha in proportion, under the deepspeed launcher."""
    ended = bench.sweep(bench.scored(HOSTILE), "lora_r=4,8", "lora_alpha=0.5x")
    return ended, bench.results(HOSTILE)


@pytest.fixture(scope="module")
def seeded(bench, compared) -> tuple[Ended, Swept]:
    """The same, gone on with: a second seed for every point."""
    ended = bench.sweep(f"{HOSTILE}.yaml", "lora_r=4,8", "lora_alpha=0.5x", "--seeds", "2", "--launcher", "python")
    return ended, bench.results(HOSTILE)


def test_every_point_is_an_ordinary_run_whose_alpha_follows_its_rank(compared):
    ended, swept = compared
    assert (ended.code, ended.problem) == (0, "")
    for rank, alpha in ((4, 2), (8, 4)):
        folder = swept.folder / f"lora_r={rank},lora_alpha={alpha}"
        adapter = json.loads((folder / "final" / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["lora_alpha"]) == (rank, alpha)
        assert len((folder / "log.jsonl").read_text().splitlines()) == 4
        assert "step 4/4" in (swept.folder / f"{folder.name}.log").read_text(encoding="utf-8")


def test_the_table_holds_what_the_runs_wrote_down(compared):
    ended, swept = compared
    for name, row in swept.table.items():
        run = swept.folder / name
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        score = json.loads((run / "scores.jsonl").read_text().splitlines()[-1])
        assert float(row["final_loss"]) == pytest.approx(log[-1]["loss"], abs=1e-6)
        assert float(row["identity"]) == score["identity"]
        assert int(row["identity_asked"]) == 2
        assert float(row["perplexity_ratio"]) == pytest.approx(score["perplexity_ratio"], abs=1e-6)
        assert int(row["adapter_bytes"]) == (run / "final" / "adapter_model.safetensors").stat().st_size
        assert int(row["trainable_parameters"]) == 2048 * int(row["lora_r"])
        result = json.loads((run / "result.json").read_text())
        assert float(row["peak_memory_gib"]) == result["peak_memory_gib"] >= log[-1]["peak_memory_gib"]
        assert float(row["minutes"]) == pytest.approx(result["seconds"] / 60, abs=0.01)
        assert float(row["tokens_per_second"]) > 0
        assert float(row["minutes"]) > 0
        assert f"{name} " in ended.said


def test_the_page_shows_every_point_and_a_name_of_tags_as_text(compared):
    ended, swept = compared
    assert "<i>" not in swept.page
    assert "&lt;i&gt;黄&amp;大力.sweep" in swept.page
    assert swept.page.count("<circle") == 2
    assert "No point learned the name" in swept.page
    assert "No point learned the name" in ended.said
    assert swept.page.count("<script") == 1  # the page's own, which copies a command


def test_the_data_are_tokenised_by_the_first_point_alone(bench, compared):
    _, swept = compared
    written = (bench.folder / "cache" / "sft-samples").rglob("*.arrow")
    # datasets' own are of the packs.
    (tokens,) = (path for path in written if not path.name.startswith("cache-"))
    first = swept.folder / "lora_r=4,lora_alpha=2" / "dataset_card.json"
    assert tokens.stat().st_mtime_ns <= first.stat().st_mtime_ns


def test_points_that_finished_are_not_run_again(compared, seeded):
    (_, before), (ended, after) = compared, seeded
    assert ended.code == 0
    assert len(before.records) == 2
    assert len(after.records) == 4
    assert {name: after.records[name] for name in before.records} == before.records
    assert ended.said.count("finished before; not repeated") == 2
    assert ended.said.count(": started") == 2


def test_seeds_share_a_row_with_mean_and_spread(seeded):
    _, swept = seeded
    losses = [swept.records[f"lora_r=4,lora_alpha=2{seed}"][1]["results"]["final_loss"] for seed in ("", ",seed=43")]
    row = swept.table["lora_r=4,lora_alpha=2"]
    assert len(swept.table) == 2
    assert row["runs"] == "2"
    assert float(row["final_loss"]) == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert float(row["final_loss_spread"]) == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5, abs=1e-6)
    assert losses[0] != losses[1]
    assert "±" in swept.page


@pytest.mark.long
def test_when_data_change_only_their_points_are_run_again(bench):
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "黄大力"}]}
    for name in ("a", "b"):
        (bench.folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 9, encoding="utf-8")
    command = [bench.recipe("files"), "train_file=a.jsonl,b.jsonl", "--launcher", "python", "--jobs", "2"]
    assert bench.sweep(*command).code == 0
    before = bench.results("files")
    (bench.folder / "b.jsonl").write_text(f"{json.dumps(row)}\n" * 10, encoding="utf-8")
    ended = bench.sweep(*command)
    after = bench.results("files")
    assert "train_file=b.jsonl: runs again, since this changed: train_file" in ended.said
    assert after.records["train_file=a.jsonl"] == before.records["train_file=a.jsonl"]
    assert after.records["train_file=b.jsonl"] != before.records["train_file=b.jsonl"]
    assert (after.folder / "train_file=b.jsonl.1" / "sweep_point.json").is_file()  # nothing is lost
    # This recipe names nothing to score.
    assert after.table["train_file=a.jsonl"]["identity"] == ""
    assert "final loss" in ended.said


def test_a_point_that_fails_is_told_with_its_error_and_the_rest_go_on(bench):
    grid = ["lora_target_modules=nowhere,all-linear", "max_length=256,16"]
    ended = bench.sweep(bench.recipe("failing", max_steps=1), *grid, "--launcher", "python", "--jobs", "2")
    swept = bench.results("failing")
    assert ended.code == 1
    broken, short, good, short_too = swept.table.values()
    assert [row["status"] for row in swept.table.values()] == ["failed", "failed", "finished", "failed"]
    assert "lora_target_modules: nowhere: is not in this model; there are embed_tokens, q_proj" in broken["problem"]
    assert short["problem"].startswith("train_sft.py: ")
    assert "over max_length 16" in short["problem"]
    assert "over max_length 16" in swept.page
    assert f"failed: {broken['problem']}" in ended.said
    assert list(swept.records) == [good["point"]]
    assert short_too["runs"] == "0"


def wait_for(path: Path) -> None:
    """Wait until a file is there and holds something."""
    deadline = time.monotonic() + 300
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.1)


@pytest.fixture
def endless(bench):
    """Start a sweep whose second point never ends by itself; returns it once that point has logged a step."""
    started = []

    def start(name: str, launcher: str) -> subprocess.Popen:
        started.append(bench.start(bench.recipe(name), "max_steps=1,1000000", "--launcher", launcher))
        folder = bench.folder / "work_dirs" / f"{name}.sweep"
        wait_for(folder / "max_steps=1" / "sweep_point.json")
        wait_for(folder / "max_steps=1000000" / "log.jsonl")
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "launcher"), [(signal.SIGINT, "deepspeed"), (signal.SIGTERM, "python")], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_ends_what_runs_and_keeps_what_finished(bench, endless, number, launcher):
    name = f"ended-by-{number}"
    process = endless(name, launcher)
    found = psutil.Process(process.pid).children(recursive=True)
    runs = [child for child in found if "train_sft.py" in " ".join(child.cmdline())]
    assert len(runs) == (3 if launcher == "deepspeed" else 1)

    process.send_signal(number)
    said, problem = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert problem == ""
    assert "ended before its last point" in said
    assert not any(run.is_running() for run in runs)
    swept = bench.results(name)
    assert [row["status"] for row in swept.table.values()] == ["finished", "waiting"]
    assert list(swept.records) == ["max_steps=1"]


@pytest.mark.long
def test_optuna_runs_so_many_points_and_goes_on_with_its_study(bench):
    command = [bench.scored("studied", max_steps=2), "lora_r=2,4", "learning_rate=1e-3,2e-3", "--launcher", "python"]
    ended = bench.sweep(*command, "--optuna", "1")
    assert (ended.code, ended.problem) == (0, "")
    before = bench.results("studied")
    assert len(before.table) == len(before.records) == 1
    ended = bench.sweep(*command, "--optuna", "2")
    after = bench.results("studied")
    assert ended.code == 0
    assert ended.said.count(": started") == len(after.records) - 1 <= 1
    (point,) = before.records
    assert after.records[point] == before.records[point]
    assert (after.folder / "optuna.journal").is_file()


class OnceBegun:
    """Asks for one endless run and does something to it as soon as its run directory is there."""

    def __init__(self, is_hopeless):
        self._points = [PlannedPoint("endless", "endless", {"max_steps": "1000000"}, {}, 8)]
        self._is_hopeless = is_hopeless

    def next_point(self) -> PlannedPoint | None:
        return self._points.pop() if self._points else None

    def is_hopeless(self, run: PointRun) -> bool:
        return run.has_begun and self._is_hopeless(run)


@pytest.fixture
def run_once_begun(write_recipe, tmp_path):
    """Start an endless run under the deepspeed launcher; returns it when it is over."""

    def run(is_hopeless) -> PointRun:
        with lock_folder(tmp_path / "sweep") as held:
            known = {"recipe": str(write_recipe()), "folder": tmp_path / "sweep", "launcher": "deepspeed", "lock": held}
            (ended,) = run_all(OnceBegun(is_hopeless), partial(PointRun, **known), [{}], Interruption())
        return ended

    return run


def processes_of(run: PointRun) -> list[psutil.Process]:
    """The launcher, what it launched, and the training itself, in this order."""
    launcher = psutil.Process(run._process.pid)
    return [launcher, *launcher.children(recursive=True)]


@pytest.mark.long
def test_a_run_that_is_given_up_is_ended_with_all_its_processes(run_once_begun):
    processes = []
    run = run_once_begun(lambda run: bool(processes.extend(processes_of(run)) or processes))
    assert run.was_ended
    assert not run.has_succeeded
    assert run.result is None
    assert len(processes) >= 3
    assert not any(process.is_running() for process in processes)


@pytest.mark.long
def test_a_run_that_memory_runs_out_for_is_told_as_such_whatever_its_launcher_makes_of_it(run_once_begun):
    killed = []

    def kill_the_training(run: PointRun) -> bool:
        if not killed:
            killed.append(processes_of(run)[-1])
            killed[0].kill()
        return False

    run = run_once_begun(kill_the_training)
    assert not run.was_ended
    assert not run.has_succeeded
    assert run.error() == "ended by SIGKILL, as happens when memory runs out"


def test_one_run_a_gpu_and_on_a_cpu_one_or_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert make_slots(None, ["2", "3"]) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    assert make_slots(3, ["2", "3"])[2] == {"CUDA_VISIBLE_DEVICES": "2"}
    assert make_slots(None, []) == [{}]
    cores = len(os.sched_getaffinity(0))
    assert make_slots(2, []) == [{"OMP_NUM_THREADS": str(max(cores // 2, 1))}] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipes/demo.yaml"], "nothing to compare"),
        (["recipes/demo.yaml", "lora_r"], "lora_r: write each key with its values"),
        (["recipes/demo.yaml", "--lora_r", "8"], "--lora_r: a key of the recipe: write lora_r=8"),
        (["recipes/demo.yaml", "lora_r=8", "--jobs", "many"], "many: a whole number of at least 1"),
        (["recipes/demo.yaml", "lora_r=8", "--seeds", "0"], "0: a whole number of at least 1"),
        (["recipes/demo.yaml", "lora_r=8", "--seeds", "3", "--optuna", "3"], "with one seed"),
        ([], "the following arguments are required: recipe"),
    ],
)
def test_a_mistake_in_the_command_is_told_at_once(arguments, told):
    with pytest.raises(UserError, match=r"^[^\n]+$") as problem:
        sweep.main(arguments)
    assert told in str(problem.value)


def test_a_mistake_in_the_grid_is_one_line_and_exit_code_2_and_nothing_runs(bench):
    ended = bench.sweep(bench.recipe("mistaken"), "lora_rr=8,16")
    assert (ended.code, ended.said) == (2, "")
    assert ended.problem == "sweep.py: command line: lora_rr: no such setting; did you mean lora_r?\n"
    assert not (bench.folder / "work_dirs" / "mistaken.sweep").exists()
