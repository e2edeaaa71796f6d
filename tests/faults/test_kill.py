"""SIGKILL at seeded moments: the same command, run again, ends as if nothing had happened, bit for bit."""

import random

import pytest

from sft.runs import checkpoints
from tests.support.forked_runs import Kill, result
from tests.support.moments import MOMENTS

pytestmark = pytest.mark.long

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]
KINDS = {"1 process": (1, []), "1 process, ZeRO-2": (1, ZERO2), "2 processes, ZeRO-2": (2, ZERO2)}
OFTEN = {"1 process": MOMENTS, "1 process, ZeRO-2": min(4, MOMENTS), "2 processes, ZeRO-2": MOMENTS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(runs, recipe, tmp_path, outcome, kind):
    processes, flags = KINDS[kind]
    unbroken = tmp_path / "unbroken"
    ended = runs.run([recipe, *flags, "--output_dir", unbroken], unbroken, processes=processes)
    assert ended.codes == [0] * processes, ended.err[-2000:]
    expected = result(unbroken)

    dice = random.Random(kind)
    resumed = 0
    for moment in range(OFTEN[kind]):
        folder = tmp_path / f"killed{moment}"
        arguments = [recipe, *flags, "--output_dir", folder]
        rank = dice.randrange(processes)
        # Half of the killers strike at once, half up to 20 ms later: inside a library's write, or a step.
        kill = Kill(dice.randint(1, ended.touches[rank]), dice.choice([0, dice.uniform(0, 0.02)]), rank)
        killed = runs.run(arguments, folder, processes=processes, kill=kill)
        assert -9 in killed.codes or not any(killed.codes), killed.err[-2000:]
        for checkpoint in checkpoints.in_order(folder):
            checkpoints.verify(checkpoint)
        again = runs.run(arguments, folder, processes=processes)
        assert again.codes == [0] * processes, (kill, again.err[-2000:])
        assert result(folder) == expected, kill
        assert len(checkpoints.in_order(folder)) == 2
        assert not list(folder.glob(".*"))
        resumed += "resuming from" in again.out
    outcome(
        f"SIGKILL at {OFTEN[kind]} moments, {kind}",
        f"same losses and adapter, bit for bit ({resumed} resumed from a checkpoint, the others had none yet)",
    )
    assert resumed
