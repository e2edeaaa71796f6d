"""The smallest real tokenizers."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.conversations import CONVERSATIONS, SMOLLM2_TEMPLATE


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 pieces with SmolLM2's chat template."""
    text = [part for conversation in CONVERSATIONS for turn in conversation for part in turn]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*text, "system", "user", "assistant"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = SMOLLM2_TEMPLATE
    return fast


def sentencepiece_tokenizer(template: str, *, adds_space: bool = False, controls: tuple[str, ...] = ()):
    """A tokenizer.json as Llama 2's: pieces with a mark for the blank, bytes for what has none."""
    fast = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    prepend = [normalizers.Prepend("▁")] if adds_space else []
    fast.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *[f"<0x{number:02X}>" for number in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, max_token_length=8)
    fast.train_from_iterator([part for talk in CONVERSATIONS for turn in talk for part in turn], trainer)
    stored = json.loads(fast.to_str())
    # What is a byte is a piece like others, and no control token.
    stored["added_tokens"] = stored["added_tokens"][:3]
    fast = Tokenizer.from_str(json.dumps(stored))
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(controls)})
    tokenizer.chat_template = template
    return tokenizer
