"""The points of a sweep: what the command line's words stand for, and what the points' folders are called."""

import pytest

from sft.core.errors import UserError
from sft.sweeps.grid import arguments_of, name_of, points_of, read_grid


def points(*words: str, rank: int = 16, seeds: tuple[int, ...] = (42,)) -> list[dict]:
    return points_of(read_grid(list(words)), rank, list(seeds))


def names(*words: str, **more) -> list[str]:
    return [name_of(point) for point in points(*words, **more)]


def test_every_combination_is_a_point_and_the_last_key_turns_fastest():
    assert names("lora_r=8,16", "learning_rate=1e-4,2e-4") == [
        "lora_r=8,learning_rate=1e-4",
        "lora_r=8,learning_rate=2e-4",
        "lora_r=16,learning_rate=1e-4",
        "lora_r=16,learning_rate=2e-4",
    ]


def test_an_alpha_written_as_a_ratio_follows_the_rank_and_a_number_stays():
    assert names("lora_r=8,16,64", "lora_alpha=0.25x") == [
        "lora_r=8,lora_alpha=2",
        "lora_r=16,lora_alpha=4",
        "lora_r=64,lora_alpha=16",
    ]
    assert names("lora_alpha=1/3x", "lora_r=6") == ["lora_alpha=2,lora_r=6"]
    assert names("lora_r=8,16", "lora_alpha=16") == ["lora_r=8,lora_alpha=16", "lora_r=16,lora_alpha=16"]


def test_a_ratio_without_ranks_in_the_grid_takes_the_recipes():
    assert names("lora_alpha=0.5x,2x", rank=12) == ["lora_alpha=6", "lora_alpha=24"]


def test_a_point_that_two_combinations_give_is_there_once():
    assert names("lora_r=8,64", "lora_alpha=0.25x,16") == [
        "lora_r=8,lora_alpha=2",
        "lora_r=8,lora_alpha=16",
        "lora_r=64,lora_alpha=16",
    ]


def test_the_first_seed_is_the_recipes_own_so_that_its_point_is_the_one_without_seeds():
    assert names("lora_r=8", seeds=(42, 43, 44)) == ["lora_r=8", "lora_r=8,seed=43", "lora_r=8,seed=44"]


def test_values_reach_train_sft_as_they_were_written():
    (point,) = points("packing=no", "learning_rate=2e-4", "lora_target_modules=[q_proj, v_proj]")
    assert arguments_of(point) == ["--packing=no", "--learning_rate=2e-4", "--lora_target_modules", "q_proj", "v_proj"]
    (point,) = points("eval_prompts_generation={max_new_tokens: 8}")
    assert arguments_of(point) == ['--eval_prompts_generation={"max_new_tokens": 8}']
    assert points("deepspeed='',ds_configs/zero2.json")[0] == {"deepspeed": ""}


def test_an_old_spelling_is_todays_key():
    assert names("warmup_ratio=0.03") == ["warmup_steps=0.03"]


def test_a_name_can_be_a_folder_and_two_points_never_share_one():
    found = names("train_file=data/a.jsonl,data_a.jsonl,../a b.jsonl", "identity_name=黄大力")
    assert len(set(found)) == 3
    assert all("/" not in name and " " not in name and "黄大力" in name for name in found)
    assert found[1] == "train_file=data_a.jsonl,identity_name=黄大力"
    long = names(f"eval_prompts_system={'很' * 200}1,{'很' * 200}2")
    assert len(set(long)) == 2
    assert all(len(name.encode()) < 200 for name in long)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lora_r"], "lora_r: write each key with its values"),
        (["=8"], "=8: write each key"),
        (["lora_r="], "lora_r=: no values"),
        (["lora_r=8,[16"], "lora_r=8,[16: cannot be read"),
        (["lora_r=8", "lora_r=16"], "lora_r is given twice"),
        (["output_dir=a,b"], "output_dir cannot be swept"),
        (["resume_from_checkpoint=true"], "resume cannot be swept"),
        (["lora_r=6", "lora_alpha=0.25x"], "0.25 x lora_r 6 is 1.5, and PEFT takes whole numbers"),
        (["lora_alpha=0x"], "choose a ratio above 0"),
        (["learning_rate=2x"], "learning_rate=2x: only lora_alpha follows the rank"),
        (["lora_r=many", "lora_alpha=2x"], "lora_r=many: a rank is a whole number"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, told):
    with pytest.raises(UserError, match=r"^[^\n]+$") as problem:
        points(*words)
    assert told in str(problem.value)


def test_seeds_are_given_in_one_way():
    with pytest.raises(UserError, match="seed and --seeds: choose one"):
        points("seed=1,2", seeds=(1, 2))
