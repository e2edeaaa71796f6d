"""A recipe that is only looked at says what the one that is trained by says, and wants only the files that are read."""

import pytest

from sft.config.load import load_recipe
from sft.config.viewed_recipe import view_recipe
from sft.core.errors import UserError
from sft.core.paths import PATH_KEYS

READ_BY_A_PREVIEW = (
    "max_length", "packing", "packing_strategy", "shuffle_dataset", "seed", "dataset_num_proc", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last",
    "padding_free", "pad_token", "chat_template_path", "trust_remote_code", "world_size",
)  # fmt: skip


def test_it_has_the_values_of_the_recipe_that_is_trained_by(write_recipe):
    arguments = [str(write_recipe(loss_on="last_answer")), "--max_length", "300", "--packing", "true"]
    viewed, trained = view_recipe(arguments, PATH_KEYS), load_recipe(arguments)
    assert (viewed.run, viewed.path, viewed.name) == (trained.run, trained.path, trained.name)
    assert viewed.model.model_name_or_path == trained.model.model_name_or_path
    for key in READ_BY_A_PREVIEW:
        assert getattr(viewed.training, key) == getattr(trained.training, key), key
    assert viewed.training.max_length == 300


def test_only_files_that_are_read_must_be_there(write_recipe):
    path = str(write_recipe(train_file="none.jsonl", eval_file="none.jsonl", score_file="none.yaml", identity_name="a"))
    assert view_recipe([path], reads=()).run.identity_name == "a"
    for key in ("train_file", "eval_file", "score_file"):
        with pytest.raises(UserError, match=f"{key}: none.* no such file"):
            view_recipe([path], reads=(key,))
