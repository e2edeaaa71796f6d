"""InternLM2's tokenizer gives sentencepiece's ids, on the real model where it is and on a small one everywhere."""

import json
from pathlib import Path

import pytest
import sentencepiece

from sft.core.errors import UserError
from sft.data.labels import IGNORED
from sft.models.internlm2_tokenizer import CHAT_TEMPLATE, RENAMED_PIECES, with_names_of
from sft.models.loading import load_tokenizer
from tests.support.documents import PROSE
from tests.support.encoding import MARKED, VARIED, encode_one_by_one, samples_of
from tests.support.published_internlm2 import train_pieces

REPOSITORY = Path(__file__).parents[3]
REAL = REPOSITORY.parent / "shared" / "data" / "internlm2" / "tokenizer.model"
TEXTS = [
    *PROSE,
    *(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "sft").rglob("*.py"))),
    "  two  spaces ",
    "\n\n\ttabs\r\n",
    "",
    " ",
    "1234567890 １２ Ｅ",
    "🙂 é 龘 ▁ \u200b",
    "null\0character",
    "[UNUSED_TOKEN_3]",
]


@pytest.fixture(scope="module", params=["small", "real"])
def folder(request, tmp_path_factory) -> Path:
    """A model folder with config and tokenizer as published."""
    folder = tmp_path_factory.mktemp("internlm2")
    if request.param == "small":
        train_pieces(folder, TEXTS)
    elif REAL.exists():
        (folder / "tokenizer.model").write_bytes(REAL.read_bytes())
    else:
        pytest.skip("the real tokenizer.model is not here; the small one is tested in the same way")
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    (folder / "config.json").write_text(json.dumps({"model_type": "internlm2", "vocab_size": size}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(str(folder))


def test_ids_and_text_are_sentencepieces(folder, tokenizer):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    # What names a special token is that token here, and mere text to sentencepiece.
    differ = (*tokenizer.all_special_tokens, *RENAMED_PIECES)
    texts = [
        text for whole in TEXTS for text in (whole, *whole.splitlines()) if not any(name in text for name in differ)
    ]
    assert len(texts) > 500
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_special_tokens_stand_where_the_reserved_pieces_stood(folder, tokenizer):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for reserved, name in RENAMED_PIECES.items():
        assert tokenizer.encode(name, add_special_tokens=False) == [reference.piece_to_id(reserved)]
    assert len(tokenizer) == reference.get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    if len(tokenizer) > 90_000:
        assert len(tokenizer) == 92_544
        assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [92543, 92542]


def test_a_model_with_the_tokenizers_names_has_its_ids_and_takes_no_text_for_a_special_token(folder, tokenizer):
    renamed = sentencepiece.SentencePieceProcessor(model_proto=with_names_of(folder / "tokenizer.model", tokenizer))
    names = [renamed.id_to_piece(number) for number in range(renamed.get_piece_size())]
    assert names == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert all(renamed.is_control(tokenizer.convert_tokens_to_ids(name)) for name in RENAMED_PIECES.values())
    for text in TEXTS:
        if not any(name in text for name in (*tokenizer.all_special_tokens, *RENAMED_PIECES)):
            assert renamed.encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_loss_falls_on_the_answer_and_its_end(tokenizer):
    messages = [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是黄大力。"}]
    [(ids, labels)] = samples_of(tokenizer, [messages])
    assert ids[0] == 1
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "我是黄大力。<|im_end|>"


def test_it_is_saved_and_read_back_as_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.chat_template == CHAT_TEMPLATE


def test_a_tokenizer_that_does_not_fit_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2", "vocab_size": 500}))
    with pytest.raises(UserError, match="the model's embedding has 500 rows"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"tokenizer\.model: "):
        load_tokenizer(str(tmp_path))


def test_a_model_without_the_reserved_pieces_is_refused(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=1000, model_type="bpe",
        byte_fallback=True, character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2", "vocab_size": 1000}))
    with pytest.raises(UserError, match="lacks the pieces for"):
        load_tokenizer(str(tmp_path))


def test_many_at_once_are_encoded_as_one_by_one(tokenizer):
    assert samples_of(tokenizer, VARIED) == encode_one_by_one(tokenizer, MARKED["internlm2"], VARIED)
