"""Precision: which a recipe that names none is computed in on a CPU; weights that are trained held in full.

A GPU is fast in bfloat16, TRL's default. Of CPUs only those are that multiply it in hardware: there bfloat16 is several
times as fast as float32, on others several times as slow (benchmarks/README.md).
"""

import torch

KEYS = {"dtype", "bf16", "fp16"}


def of_this_cpu(*, use_peft: bool) -> dict[str, str | bool]:
    """`dtype` and `bf16` as this CPU is fastest in them; weights that are trained themselves stay in float32."""
    is_fast = multiplies_bfloat16()
    return {"dtype": "bfloat16" if is_fast and use_peft else "float32", "bf16": is_fast}


def multiplies_bfloat16() -> bool:
    """Whether this CPU has the instructions for bfloat16 products that torch uses: AVX512-BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def hold_in_float32(model: torch.nn.Module) -> None:
    """Hold trainable weights in float32; autocast still computes in the recipe's precision.

    TRL stores the adapter of a quantised model in bfloat16, whose 8 bits lose updates of a small learning rate and
    which the fp16 gradient scaler refuses. DeepSpeed keeps float32 masters of its own.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
