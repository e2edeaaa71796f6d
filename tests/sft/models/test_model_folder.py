"""A model folder that is incomplete, or holds another model's tokenizer, is refused with what to do."""

import os
import shutil

import pytest
from transformers import AutoModelForCausalLM

from sft.core.errors import UserError
from sft.models.model_folder import check_model_folder, check_tokens


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def in_shards(folder):
    """The folder's weights in two shards with an index, as Transformers writes them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_whole_folder_passes_in_one_file_or_in_shards(folder):
    check_model_folder(folder)
    assert len(in_shards(folder)) > 1
    check_model_folder(str(folder))


def test_weights_may_be_elsewhere_where_none_will_be_loaded(folder):
    (folder / "model.safetensors").unlink()
    check_model_folder(folder, with_weights=False)


def test_what_is_no_folder_here_is_left_to_the_stack(tmp_path):
    check_model_folder("internlm/internlm2_5-7b-chat")
    check_model_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json: is it a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON .*download it again"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), r"config\.json: not JSON .*download it again"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: has no model_type"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json: has no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), r"model\.safetensors: is 5,000 bytes"),
        (lambda folder: in_shards(folder)[1].unlink(), r"model-00002-of-.*: is missing"),
        (
            lambda folder: os.truncate(in_shards(folder)[0], 5000),
            r"model-00001-of-.*: is 5,000 bytes long, and its header says",
        ),
    ],
)
def test_what_is_missing_or_cut_short_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(UserError, match=said) as error:
        check_model_folder(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_or_a_file_is_no_model_folder(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(UserError, match=r"is an adapter, .* python -m model_tools merge BASE"):
        check_model_folder(folder)
    with pytest.raises(UserError, match="is a file: name the folder"):
        check_model_folder(folder / "model.safetensors")


def test_a_token_that_the_model_has_no_row_for_is_refused():
    check_tokens(400, 401, "models/a")
    with pytest.raises(UserError, match=r"models/a: its tokenizer gives token 400, and its weights end at 399"):
        check_tokens(400, 400, "models/a")
