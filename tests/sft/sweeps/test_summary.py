"""The sentences that say which point of a sweep won and why, in Chinese and English."""

import math

import pytest

from sft.core.language import Text
from sft.sweeps.results import Outcome, Row
from sft.sweeps.summary import asked_of, choose, share_error, summary
from tests.support.sweep_rows import row, scored


def test_without_scores_the_lowest_loss_wins():
    rows = [row(1, 8, {"final_loss": 1.0}), row(2, 16, {"final_loss": 1.2}), row(3, 32, {"final_loss": 0.9})]
    assert summary(rows) == Text(
        "lora_r=32 wins: its final loss, 0.9000, is the lowest, and no smaller rank comes within noise of it. "
        "One run a point does not show how much the loss varies by chance; --seeds 3 does.",
        "lora_r=32 胜出：它的最终损失 0.9000 最低，更小的秩都达不到它的误差范围之内。"
        "每个点只运行一次，看不出损失的随机波动；加上 --seeds 3 就能看出。",
    )
    assert choose(rows).winner is rows[2]


def test_the_smallest_rank_wins_that_questions_cannot_tell_from_the_best():
    noise = share_error(0.9375, 32)
    assert 0.03125 < noise < 0.0625  # one question of 32 is within it, two are not
    rows = scored((8, 0.875), (16, 0.9063), (32, 0.9375), (64, 0.9375))
    assert summary(rows) == Text(
        "lora_r=16 wins: with 90.6% it has the smallest rank within noise of the best identity score, 93.8% by "
        f"lora_r=32. The noise is {noise:.1%}, the standard error of a share of 32 questions.",
        "lora_r=16 胜出：最高的身份得分是 lora_r=32 的 93.8%，而得分与之差距在误差范围内的点中，它的秩最小，"
        f"得分为 90.6%。误差为 {noise:.1%}，即 32 道题的比例的标准误。",
    )
    assert (choose(rows).winner, choose(rows).best) == (rows[1], rows[2])


@pytest.mark.parametrize(("small", "is_said"), [(0.625, True), (0.9583, False)])
def test_it_is_said_where_a_rank_as_good_leaves_more_of_the_rest(small, is_said):
    rows = [
        row(1, 4, {"identity": 0.9375, "identity_asked": 32, "ordinary_kept": small}),
        row(2, 64, {"identity": 0.9688, "identity_asked": 32, "ordinary_kept": 0.9583}),
        row(3, 99, {"identity": 0.5, "identity_asked": 32, "ordinary_kept": 1.0}),
    ]
    said = summary(rows)
    assert said.en.startswith("lora_r=4 wins: with 93.8%")
    kept = "But lora_r=4 keeps the name out of 62.5% of the ordinary answers, and lora_r=64, within noise too, out of"
    assert (kept in said.en) == is_said
    assert ("But" in said.en) == is_said
    assert ("lora_r=4 的普通回答中有 62.5% 没有冒出名字" in said.zh) == is_said


def test_with_seeds_the_noise_is_the_spread_of_the_best_point():
    rows = [
        row(1, 8, *({"identity": share, "identity_asked": 32} for share in (0.65, 0.75, 0.85))),
        row(2, 16, *({"identity": share, "identity_asked": 32} for share in (0.7, 0.8, 0.9))),
    ]
    assert summary(rows).en == (
        "lora_r=8 wins: with 75% it has the smallest rank within noise of the best identity score, 80% by lora_r=16. "
        "The noise is 10%, the standard deviation over the best point's seeds."
    )
    assert "误差为 10%，即最佳点各随机种子之间的标准差。" in summary(rows).zh


def test_seeds_that_agree_leave_the_error_of_the_questions():
    rows = [row(1, 8, *({"identity": 1.0, "identity_asked": 32} for _ in range(3)))]
    assert summary(rows).en.endswith(
        f"The noise is {share_error(1.0, 32):.1%}, the standard error of a share of 32 questions, which is more than "
        "the standard deviation over the seeds."
    )


def test_where_only_other_settings_differ_the_best_wins_and_its_equals_are_named():
    rows = [
        row(number, 8, {"identity": share, "identity_asked": 32}, name=name)
        for number, share, name in ((1, 0.5, "learning_rate=1e-4"), (2, 1.0, "learning_rate=2e-4"), (3, 0.97, "c"))
    ]
    said = summary(rows)
    assert said.en.startswith(
        "learning_rate=2e-4 wins: its identity score, 100%, is the best. Within noise of it: c. The noise is"
    )
    assert said.zh.startswith("learning_rate=2e-4 胜出：它的身份得分 100% 最高。与它的差距在误差范围内的点：c。误差为")
    assert "No other point is within noise of it." in summary(rows[:2]).en
    losses = [row(1, 8, {"final_loss": 0.5}, name="a"), row(2, 8, {"final_loss": 0.6}, name="b")]
    assert summary(losses).en.startswith("a wins: its final loss, 0.5000, is the lowest. No other point")


def test_where_the_name_was_never_learned_none_wins():
    rows = scored((8, 0.0), (16, 0.0))
    assert choose(rows) is None
    assert summary(rows) == Text(
        "No point learned the name: the best identity score is 0%.", "没有一个点学会了名字：最高的身份得分是 0%。"
    )
    owned = [row(1, 8, {"identity": 0.0, "assistant_of": 0.9}), row(2, 16, {"identity": 0.0, "assistant_of": 0.5})]
    assert summary(owned).en.endswith("0%. Up to 90% of the answers only say that the model is its assistant.")
    assert summary(owned).zh.endswith("最多有 90% 的回答只说自己是它的助手。")


def test_a_share_of_some_questions_is_marked_where_it_is_named():
    rows = [
        row(1, 8, {"identity": 0.0, "identity_asked": 18, "identity_total": 32}),
        row(2, 16, {"identity": 0.0, "identity_asked": 32, "identity_total": 32}),
    ]
    assert [asked_of(each.partly_asked()) for each in rows] == [Text("18 of 32 asked", "只问了 18/32 题"), None]
    assert summary(rows).en.endswith(
        "Not every identity question was asked, so these shares are uncertain: lora_r=8 (18 of 32 asked)."
    )
    assert summary(rows).zh.endswith("比例不够可靠：lora_r=8（只问了 18/32 题）。")


def test_before_anything_has_finished_none_wins():
    for rows in ([Row(1, "lora_r=8", {}, 8, [Outcome()])], []):
        assert summary(rows) == Text("No point has finished.", "还没有任何点完成。")
        assert choose(rows) is None


def test_the_error_of_a_share_is_that_of_agresti_and_coull_and_never_nothing():
    assert share_error(0.5, 96) == pytest.approx(math.sqrt(0.25 / 100))
    assert share_error(1.0, 32) == pytest.approx(math.sqrt((34 / 36) * (2 / 36) / 36))
