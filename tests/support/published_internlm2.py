"""InternLM2 as its makers publish it: folders of random weights, and what their code computes, in plain PyTorch.

PEFT adapts the fused modules of `PublishedInternLM2`, which have their names.
"""

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from sft.models.internlm2 import InternLM2Config, InternLM2ForCausalLM
from sft.models.internlm2_tokenizer import RENAMED_PIECES
from sft.models.loading import load_tokenizer
from tests.support.documents import PROSE

THETA, EPSILON = 1_000_000, 1e-5
FACTOR, TRAINED_LENGTH = 2.0, 64


def random_weights(hidden, heads, kv, layers=2, inner=384, vocabulary=300, bias=False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = hidden // heads
    weights = {
        "model.tok_embeddings.weight": torch.randn(vocabulary, hidden),
        "model.norm.weight": 1 + torch.randn(hidden) / 10,
        "output.weight": torch.randn(vocabulary, hidden) / 16,
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes = {
            "attention.wqkv": ((heads + 2 * kv) * head, hidden),
            "attention.wo": (hidden, heads * head),
            "feed_forward.w1": (inner, hidden),
            "feed_forward.w3": (inner, hidden),
            "feed_forward.w2": (hidden, inner),
        }
        weights |= {f"{at}{name}.weight": torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
        weights |= {f"{at}{name}.weight": 1 + torch.randn(hidden) / 10 for name in ("attention_norm", "ffn_norm")}
        if bias:
            weights |= {
                f"{at}{name}.bias": torch.randn(shapes[name][0]) / 4 for name in ("attention.wqkv", "attention.wo")
            }
    return weights


def write_folder(folder: Path, weights: dict, hidden, heads, kv, bias=False, shards=1, pickled=False) -> Path:
    """A folder as InternLM2's makers publish it: their names, their config, their remote code named."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    ending = "bin" if pickled else "safetensors"
    stem = "pytorch_model" if pickled else "model"
    where = {}
    for shard in range(shards):
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}.{ending}"
        part = {name: weights[name] for name in names[shard::shards]}
        torch.save(part, folder / file) if pickled else save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
        "bias": bias,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": weights["model.layers.0.feed_forward.w1.weight"].shape[0],
        "max_position_embeddings": TRAINED_LENGTH,
        "model_type": "internlm2",
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv,
        "pad_token_id": 2,
        "rms_norm_eps": EPSILON,
        "rope_scaling": {"type": "dynamic", "factor": FACTOR},
        "rope_theta": THETA,
        "tie_word_embeddings": False,
        "vocab_size": weights["output.weight"].shape[0],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def train_pieces(folder: Path, texts: list[str]) -> None:
    """Write a tokenizer.model with InternLM2's settings and reserved pieces, a small one, learned from texts."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=1200,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        user_defined_symbols=["[UNUSED_TOKEN_3]", *RENAMED_PIECES],
        character_coverage=0.99,
        minloglevel=2,
    )
    corpus.unlink()


def tiny_internlm2(folder: Path) -> Path:
    """A random InternLM2 in its makers' layout, with their tokenizer.model and what is built of it."""
    folder.mkdir()
    train_pieces(folder, PROSE)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    InternLM2ForCausalLM(InternLM2Config(vocab_size=1200, bias=True, **shape, **heads)).save_pretrained(folder)
    load_tokenizer(str(folder)).save_pretrained(folder)
    return folder


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
