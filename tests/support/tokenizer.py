"""The smallest real tokenizer."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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
