"""How strongly an adapter's output counts: the number that LoRA multiplies it with."""


def lora_scale(alpha: float, rank: int, *, is_rslora: bool) -> float:
    """alpha/r (LoRA, arXiv:2106.09685), or alpha/√r (rsLoRA, arXiv:2312.03732)."""
    return alpha / (rank**0.5 if is_rslora else rank)


def scale_line(alpha: float, rank: int, *, is_rslora: bool) -> str:
    """Such as "r 64, alpha 16: scale alpha/r = 0.25"."""
    root = "√" if is_rslora else ""
    return f"r {rank}, alpha {alpha}: scale alpha/{root}r = {lora_scale(alpha, rank, is_rslora=is_rslora):g}"
