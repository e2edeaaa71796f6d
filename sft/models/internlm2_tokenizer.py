"""Builds InternLM2's fast tokenizer from its `tokenizer.model`, and refuses one that does not agree with it.

In: a sentencepiece BPE model. Out: a `PreTrainedTokenizerFast` that gives the very ids sentencepiece gives. The classes
its makers published load on Transformers 5 too, but there `<|im_end|>` becomes an id past the embedding's last row.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sft.core.errors import UserError

# What the reserved pieces became when the model learned to chat.
RENAMED_PIECES = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NORMAL, USER_DEFINED, CONTROL = (
    ModelProto.SentencePiece.Type.Value(name) for name in ("NORMAL", "USER_DEFINED", "CONTROL")
)
PROBE = "Hello, 世界！  你是谁？\n\tdef f(x): return x**2  # 1234 é 🙂 龘"


def build_tokenizer(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.model` for a model whose embedding has `vocab_size` rows, with a chat template.

    Raises:
        UserError: the file is no such model, or the tokenizer would not give sentencepiece's ids.
    """
    proto = _read(path)
    pieces = [RENAMED_PIECES.get(piece.piece, piece.piece) for piece in proto.pieces]
    if missing := set(RENAMED_PIECES.values()) - set(pieces):
        raise UserError(f"{path}: lacks the pieces for {', '.join(sorted(missing))}: is it InternLM2's?")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(proto, pieces),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=sorted(RENAMED_PIECES.values(), key=pieces.index),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    _check(path, fast, pieces, vocab_size)
    return fast


def with_names_of(path: Path, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """A `tokenizer.model` whose pieces have the names that the tokenizer gives them, and what is special is no text.

    Engines that read this file and not `tokenizer.json` would else take `<|im_end|>` for seven pieces of text.

    Raises:
        UserError: the file is no sentencepiece model.
    """
    proto = _read(path)
    names = tokenizer.convert_ids_to_tokens(list(range(min(len(proto.pieces), len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    for number, (entry, name) in enumerate(zip(proto.pieces, names, strict=False)):
        entry.piece = name
        if number in special and entry.type in (NORMAL, USER_DEFINED):
            entry.type = CONTROL
    return bytes(proto.SerializeToString())


def _read(path: Path) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as problem:
        raise UserError(f"{path}: not a sentencepiece model ({problem}): download it again") from None
    return proto


def _tokenizer(proto: ModelProto, pieces: list[str]) -> Tokenizer:
    # sentencepiece never matches a piece that is a null character: it goes byte by byte.
    vocabulary = {"<null>" if piece == "\0" else piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(proto), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(
        [
            AddedToken(piece, normalized=False, special=False)
            for piece, entry in zip(pieces, proto.pieces, strict=True)
            if entry.type == USER_DEFINED and piece == entry.piece
        ]
    )
    return tokenizer


def _merges(proto: ModelProto) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first, as sentencepiece merges."""
    ids = {entry.piece: number for number, entry in enumerate(proto.pieces) if entry.type == NORMAL}
    merges = [
        (-proto.pieces[number].score, number, ids[piece[:cut]], piece[:cut], piece[cut:])
        for piece, number in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(merges)]


def _check(path: Path, fast: PreTrainedTokenizerFast, pieces: list[str], vocab_size: int) -> None:
    """Refuse a tokenizer with ids the embedding has no row for, or with other ids than sentencepiece's."""
    if len(fast) != len(pieces) or len(fast) > vocab_size:
        raise UserError(f"{path}: makes {len(fast):,} ids, and the model's embedding has {vocab_size:,} rows")
    for original, name in RENAMED_PIECES.items():
        if fast.convert_tokens_to_ids(name) != pieces.index(name):
            raise UserError(f"{path}: {name} is not where {original} was: the tokenizer cannot be trusted")
    reference = SentencePieceProcessor(model_file=str(path))
    ids = fast.encode(PROBE, add_special_tokens=False)
    if ids != reference.encode(PROBE) or fast.decode(ids) != PROBE:
        raise UserError(f"{path}: the fast tokenizer disagrees with sentencepiece on a probe: it cannot be trusted")
