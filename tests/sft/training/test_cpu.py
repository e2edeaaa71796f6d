"""On a CPU the head runs on supervised tokens alone; loss, gradients and metrics stay what TRL's head gives."""

import pytest
import torch
from torch.nn import functional

from sft.data.labels import IGNORED
from sft.training.cpu import HEAD_TILE, SupervisedLogProbs


def log_probs_by_the_book(hidden, weight, bias, targets):
    return -functional.cross_entropy(functional.linear(hidden, weight, bias), targets, reduction="none")


@pytest.mark.parametrize("tokens", [1, 7, 2 * HEAD_TILE + 3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_log_probs_entropy_hits_and_gradient_are_those_of_a_softmax(tokens, has_bias):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    weight, targets = torch.randn(50, 16, dtype=torch.float64), torch.randint(50, (tokens,))
    bias = torch.randn(50, dtype=torch.float64) if has_bias else None
    share = torch.rand(tokens, dtype=torch.float64)
    log_probs, entropy, is_top1 = SupervisedLogProbs.apply(hidden, weight, bias, targets)
    (ours,) = torch.autograd.grad((log_probs * share).sum(), hidden)
    expected = log_probs_by_the_book(hidden, weight, bias, targets)
    (gradient,) = torch.autograd.grad((expected * share).sum(), hidden)
    logits = functional.linear(hidden, weight, bias)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, gradient, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        entropy.double(), torch.distributions.Categorical(logits=logits).entropy(), atol=1e-4, rtol=1e-4
    )
    assert is_top1.tolist() == (logits.argmax(-1) == targets).tolist()


def one_batch(trainer) -> tuple[float, dict, dict]:
    """Loss, gradients and metrics of a batch, with an adapter that does something."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return loss.item(), gradients, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_loss_gradients_and_metrics_of_a_batch_are_those_of_trls_head(make_trainer, monkeypatch, load_in_4bit):
    keys = {"load_in_4bit": load_in_4bit, "lora_dropout": 0.0}
    loss, gradients, metrics = one_batch(make_trainer(**keys)[0])
    monkeypatch.setattr("sft.training.trainer.use_masked_lm_head", lambda model: None)
    expected_loss, expected_gradients, expected_metrics = one_batch(make_trainer(**keys)[0])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert metrics == pytest.approx(expected_metrics, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-3)


def test_only_supervised_tokens_reach_the_head(make_trainer, monkeypatch):
    rows = []
    apply = SupervisedLogProbs.apply
    monkeypatch.setattr(
        "sft.training.cpu.SupervisedLogProbs.apply",
        lambda hidden, *rest: rows.append(len(hidden)) or apply(hidden, *rest),
    )
    trainer, card = make_trainer(max_steps=-1, num_train_epochs=1)
    trainer.train()
    first_tokens = sum(pack["labels"][0] != IGNORED for pack in trainer.train_dataset)
    assert sum(rows) == card.supervised_tokens - first_tokens


def test_a_batch_without_a_supervised_token_has_a_loss_of_zero(make_trainer):
    trainer, _ = make_trainer()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch["labels"].fill_(IGNORED)
    loss = trainer.model(**batch, fused_lm_head=True).loss
    loss.backward()
    assert loss.item() == 0


def test_a_head_that_is_trained_stays_trls(make_trainer, monkeypatch):
    monkeypatch.setattr("sft.training.cpu.SupervisedLogProbs.apply", None)
    trainer, _ = make_trainer(use_peft=False, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
