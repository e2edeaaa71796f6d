"""A run as a job of Slurm, by `docs/slurm.sh`: what stops it and saves has it queued again, and nothing else does."""

from pathlib import Path

import pytest

from sft.core.paths import REPOSITORY
from tests.support.forked_runs import result
from tests.support.slurm import Cluster, why_not_here

pytestmark = [pytest.mark.commands, pytest.mark.skipif(bool(why_not_here()), reason=why_not_here() or "")]
JOB = [REPOSITORY / "docs" / "slurm.sh"]
ON_A_CPU = ["--gpus-per-node", 0, "--cpus-per-task", 1, "--chdir", REPOSITORY]
# Long enough to be stopped three times.
LONGER = ["--max_steps", "150", "--eval_prompts_steps", "50", "--save_steps", "60"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def wait_for_training(cluster):
    """Wait until the run in a folder has trained a step more."""

    def wait(folder: Path) -> None:
        before = steps(folder)
        cluster.wait(lambda: steps(folder) > before)

    return wait


def steps(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_job_on_two_nodes_that_is_stopped_in_every_way_ends_as_an_unbroken_run_does(
    cluster, wait_for_training, runs, recipe, tmp_path
):
    unbroken, folder, printed = tmp_path / "unbroken", tmp_path / "run", tmp_path / "job.out"
    assert runs.run([recipe, *LONGER, "--output_dir", unbroken], unbroken, processes=2).codes == [0, 0]
    place = [*ON_A_CPU, "--nodes", 2, "--output", printed]
    job = cluster.submit(*place, *JOB, recipe, *LONGER, "--output_dir", folder)

    # Its time will soon be up. Slurm looks every half minute, in which the run stands still; the signal wakes it.
    wait_for_training(folder)
    cluster.says("scancel", "--signal=STOP", job)
    cluster.says("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    cluster.start_again(job, "TimeLimit=60")
    assert "stopped by SIGUSR1: checkpoint-" in printed.read_text()
    assert "stopped by SIGTERM: checkpoint-" not in printed.read_text()

    # Preempted, with notice.
    wait_for_training(folder)
    urgent = cluster.submit(
        "--partition", "urgent", "--nodes", 2, "--exclusive", "--output", tmp_path / "urgent.out", "--wrap", "true"
    )
    cluster.wait(lambda: cluster.state(urgent)["JobState"] == "COMPLETED")
    cluster.start_again(job)
    assert "stopped by SIGTERM: checkpoint-" in printed.read_text()

    # Queued again by a person, without notice.
    wait_for_training(folder)
    cluster.says("scontrol", "requeue", job)
    cluster.start_again(job)

    cluster.wait(lambda: cluster.state(job)["JobState"] == "COMPLETED")
    assert cluster.state(job)["Restarts"] == "3"
    assert printed.read_text().count("resuming from ") == 3
    assert result(folder) == result(unbroken)


def test_a_job_that_fails_or_is_cancelled_is_not_queued_again_and_one_that_had_not_begun_is(
    cluster, wait_for_training, recipe, tmp_path
):
    failed = cluster.submit(*ON_A_CPU, "--output", tmp_path / "failed.out", *JOB, recipe, "--lora_r", "none")
    cluster.wait(lambda: cluster.state(failed)["JobState"] == "FAILED")
    assert (cluster.state(failed)["ExitCode"], cluster.state(failed)["Restarts"]) == ("2:0", "0")

    folder, printed = tmp_path / "run", tmp_path / "job.out"
    arguments = [recipe, *LONGER, "--output_dir", folder]
    job = cluster.submit(*ON_A_CPU, "--output", printed, *JOB, *arguments)
    cluster.wait(lambda: printed.exists() and "loading PyTorch" in printed.read_text())
    cluster.says("scancel", "--signal=TERM", job)
    cluster.start_again(job)

    wait_for_training(folder)
    cluster.says("scancel", job)
    cluster.wait(lambda: not cluster.says("squeue", "--noheader"))
    assert (cluster.state(job)["JobState"], cluster.state(job)["Restarts"]) == ("CANCELLED", "1")
