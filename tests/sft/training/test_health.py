"""Broken training: noticed within the step, explained, stopped or warned of."""

import math

import pytest

from sft.config.load import load_recipe
from sft.core.errors import RunFailed
from sft.training.health import Health, peak_learning_rate


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(loss):
    with pytest.raises(RunFailed, match=rf"step 7: the loss is {loss}: lower learning_rate"):
        Health().check_loss(7, loss, 10)


def test_a_batch_without_supervised_tokens_stops_the_run():
    with pytest.raises(RunFailed, match=r"step 7: this batch holds no supervised token"):
        Health().check_loss(7, 0.0, 0)


def test_a_loss_of_twice_its_first_and_far_above_it_has_exploded():
    health = Health()
    for step, loss in enumerate([3.0, 2.5, 2.8, 2.0, 2.0, 1.5, 7.0, 8.0], start=1):
        health.check_loss(step, loss, 10)
    with pytest.raises(RunFailed, match=r"step 9: the loss has exploded: 7\.00 lately, 2\.50 at first: lower"):
        health.check_loss(9, 9.0, 10)


@pytest.mark.parametrize("losses", [[6.0, 6.3, 7.0, 6.1, 6.2, 9.0, 9.5, 9.8, 9.5, 9.8], [0.3] * 5 + [3.2] * 9])
def test_a_loss_that_is_high_or_was_low_may_rise_somewhat(losses):
    health = Health()
    for step, loss in enumerate(losses, start=1):
        health.check_loss(step, loss, 10)


def test_single_spikes_are_no_explosion():
    health = Health()
    for step in range(1, 40):
        health.check_loss(step, 20.0 if step % 3 == 0 else 1.0, 10)


def test_gradients_of_zero_stop_the_run_and_small_ones_do_not():
    health = Health()
    health.check_gradients(1, 1e-12)
    with pytest.raises(RunFailed, match="step 2: all gradients are zero"):
        health.check_gradients(2, 0.0)


def test_where_the_recipe_warns_the_run_continues_and_each_problem_is_reported_once(capsys):
    health = Health(stops=False)
    for step in (1, 2, 3):
        health.check_loss(step, math.nan, 10)
        health.check_gradients(step, 0.0)
    printed = capsys.readouterr().out
    assert printed.count("the loss is nan") == 1
    assert printed.count("all gradients are zero") == 1


@pytest.mark.parametrize(
    ("warmup", "steps", "rises"), [(3, 100, True), (100, 100, True), (500, 100, False), (0, 1, True)]
)
def test_a_warmup_longer_than_the_run_is_seen(write_recipe, warmup, steps, rises):
    args = load_recipe([str(write_recipe(warmup_steps=warmup))]).training
    peak = peak_learning_rate(args, warmup, steps)
    health = Health()
    if rises:
        health.check_schedule(args.learning_rate, steps, peak)
    else:
        assert peak == pytest.approx(args.learning_rate * 99 / 500)
        with pytest.raises(RunFailed, match=r"never rises above 0\.0002 in 100 steps, learning_rate is 0\.001"):
            health.check_schedule(args.learning_rate, steps, peak)
