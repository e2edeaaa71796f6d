"""Every kind of adapter on the smallest model of its architecture, with random weights."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import KasaConfig
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model_tools.__main__ import main
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


def gemma() -> GemmaForCausalLM:
    """Its embeddings have a scale, a buffer that is in no file."""
    return GemmaForCausalLM(GemmaConfig(**LLAMA, head_dim=16, tie_word_embeddings=False))


def deepseek() -> DeepseekV3ForCausalLM:
    """The routers of its experts have a bias that is a buffer, and in the files."""
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    sizes = LLAMA | {"num_key_value_heads": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **ranks, **experts))


def lora(**keys) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | keys)


def merge(base: Path, adapter: Path | str, out: Path, *options: str) -> int:
    """Merge without comparing afterwards; returns the exit code."""
    return main(["merge", str(base), str(adapter), str(out), "--no-verify", *options])


def save_adapter(base, folder: Path, config: PeftConfig, path: Path) -> Path:
    """An adapter of random weights on a model that lies in `folder`."""
    torch.manual_seed(1)
    base.name_or_path = str(folder)
    tuned = get_peft_model(base, config)
    for weight in tuned.parameters():
        if weight.requires_grad:
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
    "an attention of PyTorch's": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**SIDE, image_size=32, patch_size=8)),
        lora(target_modules=["attention", "fc1"], task_type=None),
    ),
    "tokens of embeddings with a scale": (gemma, lora(trainable_token_indices=[3, 5])),
    "whole embeddings with a scale": (gemma, lora(modules_to_save=["embed_tokens", "lm_head"])),
    "routers with a buffer": (deepseek, lora()),
    "whole routers with a buffer": (deepseek, lora(target_modules=["q_b_proj"], modules_to_save=["gate"])),
    "experts": (mixtral, lora(target_modules=["q_proj", "o_proj"])),
    "inside experts": (
        mixtral,
        lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ),
    "biases of its own": (lambda: llama(attention_bias=True), lora(target_modules=["q_proj"], bias="lora_only")),
    "all biases": (gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")),
    "biases in LoRA": (lambda: llama(attention_bias=True), lora(target_modules=["q_proj"], lora_bias=True)),
    "some layers": (llama, lora(target_modules=["q_proj", "down_proj"], layers_to_transform=[1])),
    "whole modules with LoRA inside": (llama, lora(modules_to_save=["mlp"])),
    "DoRA on embeddings": (llama, lora(target_modules=["embed_tokens", "q_proj"], use_dora=True)),
    "KaSA, which changes the base": (llama, lora(target_modules=["q_proj"], kasa_config=KasaConfig())),
    "an orthogonal start": (llama, lora(target_modules=["q_proj"], init_lora_weights="orthogonal")),
}

_TWO = {"target_modules": ["q_proj", "down_proj"]}
_SQUARE = {"target_modules": ["q_proj"]}
_PROMPT = {"num_virtual_tokens": 4}
# What PEFT needs to make an adapter of each kind on a model of LLAMA's size with biases in its attention.
SETTINGS: dict[str, dict] = {
    "ADALORA": {**_TWO, "total_step": 10, "init_r": 4},
    "ADAMSS": {**_TWO, "r": 8},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BEFT": _SQUARE,
    "BOFT": _TWO,
    "C3A": {**_SQUARE, "block_size": 16},
    "CARTRIDGE": _PROMPT,
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {**_TWO, "n_frequency": 10},
    "FROD": {**_SQUARE, "progressbar": False},
    "IA3": {**_TWO, "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {},
    "MISS": {**_TWO, "r": 8},
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "OFT": {**_TWO, "oft_block_size": 8},
    "OSF": {**_TWO, "effective_rank": 8},
    "POLY": _TWO,
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "PVERA": {**_SQUARE, "r": 8},
    "P_TUNING": _PROMPT,
    "RANDLORA": {**_SQUARE, "r": 8},
    "ROAD": {**_TWO, "group_size": 16},
    "SHADOW": {},
    "SUPERTUNING": _TWO,
    "TINYLORA": {**_TWO, "u": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [3, 5]},
    "UNILORA": _TWO,
    "VBLORA": {**_TWO, "vector_length": 16, "num_vectors": 8},
    "VERA": {**_SQUARE, "r": 8},
    "WAVEFT": {**_TWO, "n_frequency": 20},
    "XLORA": {"hidden_size": 64, "adapters": {}},
}
# An adapter of these is a config alone here: the first is made of others, the second needs a library of its own.
ONLY_CONFIGS = ("XLORA", "ADAMSS")


def save_kind(kind: PeftType, base, folder: Path, path: Path) -> Path:
    """An adapter of random weights, of any kind that PEFT has, on a model that lies in `folder`."""
    settings = {"task_type": "CAUSAL_LM"} | SETTINGS.get(kind.value, {**_TWO, "r": 4})
    if kind.value not in ONLY_CONFIGS:
        return save_adapter(base, folder, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings), path)
    path.mkdir()
    content = settings | {"peft_type": kind.value, "base_model_name_or_path": str(folder)}
    (path / "adapter_config.json").write_text(json.dumps(content))
    return path
