"""InternLM2 as its makers' code computes it, in plain PyTorch under their names; PEFT adapts its fused modules."""

import torch
from torch import nn
from torch.nn import functional

from tests.sft.models.test_internlm2 import EPSILON, THETA


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, kv: int):
        super().__init__()
        self.heads, self.kv, self.size = heads, kv, hidden // heads
        self.wqkv = nn.Linear(hidden, (heads + 2 * kv) * self.size, bias=False)
        self.wo = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length, group = len(x), self.heads // self.kv
        fused = self.wqkv(x).view(length, self.kv, group + 2, self.size)
        queries = self.turned(fused[:, :, :group].reshape(length, self.heads, self.size))
        keys = self.turned(fused[:, :, group]).repeat_interleave(group, 1)
        values = fused[:, :, group + 1].repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in (queries, keys, values)), is_causal=True
        )
        return self.wo(mixed.transpose(0, 1).reshape(length, -1))

    def turned(self, vectors: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(len(vectors))[:, None] * THETA ** -(torch.arange(0, self.size, 2) / self.size)
        angles = torch.cat([steps, steps], -1)[:, None]
        first, second = vectors.chunk(2, -1)
        return vectors * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class FeedForward(nn.Module):
    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.w1, self.w3 = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, kv: int, inner: int):
        super().__init__()
        self.attention, self.feed_forward = Attention(hidden, heads, kv), FeedForward(hidden, inner)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(hidden, EPSILON), nn.RMSNorm(hidden, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Body(nn.Module):
    def __init__(self, hidden: int, heads: int, kv: int, inner: int, vocabulary: int):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, kv, inner) for _ in range(2))
        self.norm = nn.RMSNorm(hidden, EPSILON)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class PublishedInternLM2(nn.Module):
    """`(length,)` ids to `(length, vocabulary)` logits, up to the length it was trained for."""

    def __init__(self, weights: dict[str, torch.Tensor], hidden: int, heads: int, kv: int):
        super().__init__()
        vocabulary, inner = len(weights["output.weight"]), len(weights["model.layers.0.feed_forward.w1.weight"])
        self.model = Body(hidden, heads, kv, inner, vocabulary)
        self.output = nn.Linear(hidden, vocabulary, bias=False)
        self.load_state_dict(weights)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output(self.model(ids))
