"""Under autocast an adapter's input is cast once, by autocast, and what is computed stays the same."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import SFTTrainer

BF16 = {"bf16": True, "dtype": "bfloat16", "lora_dropout": 0.0}


def one_step(trainer) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients of a batch, and how many bytes were kept for the backward pass."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.1)
    kept = {}
    batch = trainer.data_collator([trainer.train_dataset[0]])

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # What `train` does before its first step.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = trainer.training_step(trainer.model_wrapped, batch).item()
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return loss, gradients, sum(kept.values())


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_step_computes_the_same_and_keeps_less(make_trainer, load_in_4bit):
    keys = BF16 | {"load_in_4bit": load_in_4bit}
    loss, gradients, kept = one_step(make_trainer(**keys)[0])
    trainer, _ = make_trainer(**keys)
    trainer._adapter_inputs = None
    expected_loss, expected_gradients, kept_by_peft = one_step(trainer)
    assert loss == expected_loss
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=0)
    assert kept < kept_by_peft


def test_an_answer_between_two_steps_needs_no_autocast(make_trainer):
    trainer, _ = make_trainer(**BF16, eval_prompts=["Who are you?"], max_steps=1)
    trainer.train()
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert trainer.model.get_base_model()(input_ids=ids).logits.isfinite().all()


def test_adapters_cast_again_when_a_step_has_failed(make_trainer, monkeypatch):
    trainer, _ = make_trainer(**BF16)
    monkeypatch.setattr(SFTTrainer, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.training_step(trainer.model, trainer.data_collator([trainer.train_dataset[0]]))
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, BaseTunerLayer)]
    assert layers
    assert all(layer.cast_input_dtype_enabled for layer in layers)
