"""What only a GPU shows: its attention kernel, mixed precision, a run that resumes and is asked on the way.

They skip where torch finds no GPU; tests of the same parts on a CPU are beside those parts.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.evaluation.chat_eval import ChatEval
from sft.evaluation.score_eval import ScoreEval
from sft.models.fused_lora import fuse_lora, unfuse_lora
from sft.models.internlm2 import InternLM2Config, InternLM2ForCausalLM
from sft.training.callbacks import packs_leak
from sft.training.gpu import CountSkippedSteps
from sft.training.packed_attention import NAME, use_packed_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HALF = [torch.float16, torch.bfloat16]
LENGTHS = (5, 1, 90, 31)
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}
FP16 = NF4 | {"fp16": True, "dtype": "float16"}


def pack_of(lengths) -> dict:
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": (torch.arange(sum(lengths)) * 7 % 300)[None].cuda(), "position_ids": positions.cuda()}


def gradients_of(model, pack) -> list[torch.Tensor]:
    logits = model(**pack, use_cache=False).logits.float()
    return [logits, *torch.autograd.grad(logits.logsumexp(-1).square().sum(), model.parameters())]


@pytest.mark.parametrize("dtype", HALF)
def test_attention_by_sample_is_as_near_to_float32_as_masked_attention(tiny_model, dtype):
    exact, masked, by_sample = (
        gradients_of(prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=kind).cuda()), pack_of(LENGTHS))
        for kind, prepare in ((torch.float32, same), (dtype, same), (dtype, attending_by_sample))
    )
    for right, theirs, ours in zip(exact, masked, by_sample, strict=True):
        error, allowed = ((result.float() - right).norm() / right.norm() for result in (ours, theirs))
        assert error < 1.5 * allowed + 1e-3


def same(model):
    return model


def attending_by_sample(model):
    use_packed_attention(model)
    return model


@pytest.mark.parametrize("dtype", HALF)
def test_no_sample_sees_its_neighbour(tiny_model, dtype):
    model = attending_by_sample(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).cuda())
    assert packs_leak(model, model.config.vocab_size) == 0.0


def test_padded_batches_and_answers_are_those_of_sdpa(tiny_model, tokenizer):
    plain, by_sample = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float16).cuda() for _ in range(2))
    use_packed_attention(by_sample)
    batch = tokenizer(["Who are you?", "I"], return_tensors="pt", padding=True, padding_side="left").to("cuda")
    for inputs in (batch, tokenizer("Who are you?", return_tensors="pt").to("cuda")):
        assert torch.equal(
            *(model.generate(**inputs, max_new_tokens=8, do_sample=False) for model in (plain, by_sample))
        )


def test_fused_lora_computes_what_peft_does(make_trainer):
    trainer, _ = make_trainer(**FP16, lora_dropout=0.0)
    model, pack = trainer.model, pack_of(LENGTHS)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    results = []
    for fused in (True, False):
        assert fuse_lora(model) if fused else not unfuse_lora(model)
        with torch.autocast("cuda", torch.float16):
            loss = model.train()(**pack, use_cache=False).logits.float().logsumexp(-1).square().mean()
        results.append([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm() + 1e-6


def test_fused_dropout_drops_its_share_and_keeps_the_mean(make_trainer):
    trainer, _ = make_trainer(**FP16, lora_dropout=0.25)
    layer = next(module for module in trainer.model.modules() if hasattr(module, "lora_A"))
    for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        torch.nn.init.normal_(weight, std=0.5)
    x = torch.randn(1, 64, layer.in_features, device="cuda", dtype=torch.float16)
    with torch.autocast("cuda", torch.float16), torch.no_grad():
        exact = layer.eval()(x).float()
        mean = torch.stack([layer.train()(x).float() for _ in range(400)]).mean(0)
    assert (mean - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("deepspeed", [None, "ds_configs/zero2.json"])
def test_the_mirrors_precision_trains_and_counts_what_its_scaler_skips(make_trainer, deepspeed):
    trainer, _ = make_trainer(**FP16, max_steps=12, deepspeed=deepspeed, activation_checkpointing=True)
    counted = next(each for each in trainer.callback_handler.callbacks if isinstance(each, CountSkippedSteps))
    trainer.train()
    assert counted.steps == 12
    assert counted.skipped < 12
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert trainer.base.config._attn_implementation == NAME


def final_weights(make_trainer, output_dir, *, asks=False, resume=None, **keys) -> list[torch.Tensor]:
    trainer, _ = make_trainer(
        **FP16, full_determinism=True, output_dir=str(output_dir), max_steps=8, lora_dropout=0.1,
        identity_name="黄大力", eval_prompts=["你是谁？"], eval_prompts_steps=2, **keys,
    )  # fmt: skip
    for callback in (ChatEval, ScoreEval) if asks else ():
        trainer.add_callback(callback(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]


def test_under_full_determinism_asking_and_resuming_change_no_bit(make_trainer, tmp_path):
    once = final_weights(make_trainer, tmp_path / "once", save_strategy="steps", save_steps=5)
    asked = final_weights(make_trainer, tmp_path / "asked", asks=True)
    resumed = final_weights(make_trainer, tmp_path / "resumed", resume=str(tmp_path / "once" / "checkpoint-5"))
    torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, once, asked))
    assert all(map(torch.equal, once, resumed))


def test_liger_puts_its_kernels_into_internlm2(tiny_model, tokenizer, make_trainer, tmp_path):
    pytest.importorskip("liger_kernel")
    llama = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = {key: value for key, value in llama.config.to_dict().items() if key not in ("model_type", "architectures")}
    model = InternLM2ForCausalLM(InternLM2Config(**config))
    model.load_state_dict(llama.state_dict())
    model.save_pretrained(tmp_path / "internlm2")
    tokenizer.save_pretrained(tmp_path / "internlm2")
    keys = {"model_name_or_path": str(tmp_path / "internlm2"), "lora_dropout": 0.0}
    losses = []
    for liger in (False, True):
        trainer, _ = make_trainer(use_liger_kernel=liger, **keys)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert "Liger" in str(trainer.base.model.norm)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
