"""Packed samples do not see each other: proved by loss, and refused where it would not hold."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PersimmonConfig, PersimmonForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.data.dataset import IGNORED, load_dataset
from sft.models.loading import load_tokenizer
from sft.training.callbacks import packs_leak
from sft.training.packed_attention import NAME


def loss_alone(model, ids: list[int], labels: list[int]) -> tuple[float, int]:
    """Summed loss and number of predicted tokens of one sample, run by itself."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(labels[1:])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item(), int((targets != IGNORED).sum())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_the_token_weighted_loss_of_its_samples(make_trainer, write_recipe, attention):
    alone = load_recipe([str(write_recipe(packing=False))])
    samples, _ = load_dataset(alone, load_tokenizer(alone.model.model_name_or_path))
    trainer, _ = make_trainer(attn_implementation=attention, lora_dropout=0.0)
    packs = trainer.train_dataset
    by_ids = {tuple(sample["input_ids"]): sample for sample in samples}
    trainer.model.eval()
    packed = 0
    for pack in packs:
        batch = trainer.data_collator([pack])
        with torch.no_grad():
            together = trainer.compute_loss(trainer.model, dict(batch)).item()
            start, total, count = 0, 0.0, 0
            for length in pack["seq_lengths"]:
                ids = tuple(pack["input_ids"][start : start + length])
                loss, tokens = loss_alone(trainer.model, list(ids), by_ids[ids]["labels"])
                start, total, count = start + length, total + loss, count + tokens
        packed += len(pack["seq_lengths"]) > 1
        assert together == pytest.approx(total / count, abs=1e-4)
    assert packed, "no pack held two samples, so nothing was proved"


@pytest.fixture
def leaking_attention():
    """An attention implementation that takes no notice of the mask between samples, only of time."""

    def causal_only(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return output.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("causal_only", causal_only)
    ALL_MASK_ATTENTION_FUNCTIONS.register("causal_only", sdpa_mask)
    yield "causal_only"
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("causal_only")
    ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop("causal_only")


def test_an_attention_that_leaks_between_samples_is_refused_before_the_first_step(make_trainer, leaking_attention):
    trainer, _ = make_trainer(attn_implementation=leaking_attention)
    with pytest.raises(UserError, match="a packed sample sees its neighbour"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_model_whose_attention_is_told_no_positions_gets_masks(make_trainer, tokenizer, tmp_path):
    """Persimmon keeps `position_ids` to itself, so attention cannot tell where a sample begins."""
    config = PersimmonConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    PersimmonForCausalLM(config).save_pretrained(tmp_path / "persimmon")
    tokenizer.save_pretrained(tmp_path / "persimmon")
    trainer, _ = make_trainer(model_name_or_path=str(tmp_path / "persimmon"), max_steps=1)
    assert trainer.base.config._attn_implementation == NAME
    trainer.train()
    assert trainer.base.config._attn_implementation == "sdpa"
    assert trainer.state.global_step == 1


def test_wrapped_packs_and_unpacked_batches_are_not_held_to_it(make_trainer, leaking_attention):
    for keys in ({"packing_strategy": "wrapped"}, {"packing": False}):
        trainer, _ = make_trainer(attn_implementation=leaking_attention, max_steps=1, **keys)
        trainer.train()
        assert trainer.state.global_step == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_probe_finds_no_leak_where_there_is_none_and_changes_nothing(tiny_model, attention):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention).train()
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    assert packs_leak(model, model.config.vocab_size) == 0.0
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
