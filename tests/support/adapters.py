"""Every kind of adapter on the smallest model of its architecture, with random weights."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from sft.models import internlm2

internlm2.register_with_transformers()

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"vocab_size": 100, "num_key_value_heads": 2, **SIZES}
SIDE = {**SIZES, "hidden_size": 32}


def llama(**keys) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**LLAMA | keys))


def clip_config() -> CLIPConfig:
    text = {**SIDE, "vocab_size": 100, "max_position_embeddings": 16}
    vision = {**SIDE, "image_size": 32, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def internlm2_model() -> internlm2.InternLM2ForCausalLM:
    config = internlm2.InternLM2Config(**LLAMA, bias=True)
    return internlm2.InternLM2ForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=64))


def mixtral() -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2))


def lora(**keys) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | keys)


def save_adapter(base, folder: Path, config: LoraConfig, path: Path) -> Path:
    """An adapter of random weights on a model that lies in `folder`."""
    torch.manual_seed(1)
    base.name_or_path = str(folder)
    tuned = get_peft_model(base, config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data += torch.randn_like(weight) * 0.05
    tuned.save_pretrained(path)
    return path


KINDS = {
    "LoRA": (llama, lora()),
    "rsLoRA": (llama, lora(use_rslora=True)),
    "DoRA": (llama, lora(use_dora=True)),
    "ranks that differ": (llama, lora(rank_pattern={"q_proj": 8}, alpha_pattern={"up_proj": 3})),
    "whole modules": (llama, lora(modules_to_save=["lm_head", "embed_tokens"])),
    "embedding": (llama, lora(target_modules=["embed_tokens", "q_proj"])),
    "trainable tokens": (llama, lora(trainable_token_indices=[3, 5])),
    "InternLM2, fused and with bias": (internlm2_model, lora()),
    "GPT-2, whose layers lie transposed": (gpt2, lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "CLIP": (lambda: CLIPModel(clip_config()), lora(target_modules=["q_proj", "visual_projection"], task_type=None)),
    "a vision tower": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**SIDE, image_size=32, patch_size=8)),
        lora(target_modules=["v_proj", "fc1"], task_type=None),
    ),
    "experts": (mixtral, lora(target_modules=["q_proj", "o_proj"])),
}
