"""InternLM2 and InternLM2.5 without remote code: Transformers' own Llama behind InternLM2's names.

In: a folder as its makers published it. Out: a model whose weights load straight from it, into any precision, and are
written back under the same names. InternLM2 is Llama but for one thing: queries, keys and values lie in one matrix,
`wqkv`, grouped by key head. Source: InternLM2 Technical Report, arXiv 2403.17297, and its published checkpoints.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

QUERY, KEY, VALUE = (f"self_attn.{name}_proj" for name in "qkv")


class InternLM2Config(LlamaConfig):
    """The published config.json: `bias` is Llama's attention_bias, the rest has Llama's names."""

    model_type = "internlm2"

    def __post_init__(self, bias: bool | None = None, attn_implementation: str | None = None, **kwargs):
        # The published file pins `attn_implementation: eager`, which would win over what a recipe asks for.
        if bias is not None:
            self.attention_bias = bias
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict:
        """The config under the names its makers' loaders and other engines look for, beside Transformers' own."""
        rope = dict(self.rope_parameters or {})
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        scaling = None if kind == "default" else {"type": kind, **rope}
        return super().to_dict() | {"bias": self.attention_bias, "rope_theta": theta, "rope_scaling": scaling}


class InternLM2ForCausalLM(LlamaForCausalLM):
    """Llama under InternLM2's configuration; the names of its weights are `register_with_transformers`'s."""

    config_class = InternLM2Config


class SplitWqkv(ConversionOps):
    """Splits `wqkv`, `(kv_heads * (group + 2) * head_dim, ...)` with each group's queries first, into three."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, config=None, **_):
        """See `ConversionOps`."""
        (fused,) = input_dict.values()
        fused = fused[0] if isinstance(fused, list) else fused
        group = config.num_attention_heads // config.num_key_value_heads
        heads = fused.unflatten(0, (config.num_key_value_heads, group + 2, config.head_dim))
        parts = (heads[:, :group], heads[:, group : group + 1], heads[:, group + 1 :])
        return {target: part.flatten(0, 2).contiguous() for target, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The opposite, for writing."""
        return JoinWqkv()


class JoinWqkv(ConversionOps):
    """Joins queries, keys and values into `wqkv` again."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, config=None, **_):
        """See `ConversionOps`."""
        (target,) = target_patterns
        parts = [input_dict[pattern] for pattern in source_patterns]
        parts = [part[0] if isinstance(part, list) else part for part in parts]
        heads = [part.unflatten(0, (config.num_key_value_heads, -1, config.head_dim)) for part in parts]
        return {target: torch.cat(heads, dim=1).flatten(0, 2).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        """The opposite, for writing."""
        return SplitWqkv()


def as_llama(config: dict) -> dict:
    """A published config.json as Llama's, which every engine knows; for weights under the parameters' names.

    Transformers 4, which other engines stand on, reads `torch_dtype`, and the frequencies of positions as they are
    named in the published file.
    """
    fields = InternLM2Config(**{key: value for key, value in config.items() if key != "auto_map"}).to_dict()
    bias = fields.pop("bias")
    if dtype := fields.get("dtype"):
        fields["torch_dtype"] = dtype
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": bias, "mlp_bias": False}
    return fields | llama


def register_with_liger() -> set[str]:
    """Let Liger put its kernels into InternLM2 as it does into Llama, which it is; returns the types of all it knows.

    Raises:
        ImportError: Liger is not installed.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    MODEL_TYPE_TO_APPLY_LIGER_FN.setdefault(InternLM2Config.model_type, MODEL_TYPE_TO_APPLY_LIGER_FN["llama"])
    return set(MODEL_TYPE_TO_APPLY_LIGER_FN)


def register_with_transformers() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know internlm2; a second call changes nothing."""
    AutoConfig.register("internlm2", InternLM2Config, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(
        "internlm2",
        [
            WeightRenaming("tok_embeddings", "embed_tokens"),
            WeightRenaming(r"^output\.", "lm_head."),
            WeightRenaming("attention_norm", "input_layernorm"),
            WeightRenaming("ffn_norm", "post_attention_layernorm"),
            WeightRenaming(r"feed_forward\.w1", "mlp.gate_proj"),
            WeightRenaming(r"feed_forward\.w3", "mlp.up_proj"),
            WeightRenaming(r"feed_forward\.w2", "mlp.down_proj"),
            WeightRenaming(r"attention\.wo", "self_attn.o_proj"),
            WeightConverter("attention.wqkv", [QUERY, KEY, VALUE], [SplitWqkv()]),
        ],
        overwrite=True,
    )
