"""Judges where loss falls under any chat template, by another way than the code: with words that stand nowhere else.

Every message is one such word; where it stands in the stock text, what the prompt supplies before it and which end
token stands behind it are read off with `str.index` and a list of the end tokens that model makers use.
"""

import json
import re

from transformers import PreTrainedTokenizerFast

from sft.core.paths import REPOSITORY
from sft.data.encoding import LossRules, encode
from sft.models.chat_template import ChatTemplate
from tests.support.chat_templates import with_tokens
from tests.support.encoding import supervised_runs

SHARED = REPOSITORY.parent / "shared/data/templates.json"
# Tokens of their own in the tokenizers that such templates come with.
CONTROL = re.compile(
    r"<[|｜][^<>{}'\"\s|｜]+[|｜]>|<(?:start|end)_of_turn>|<\|?turn\|?>|</?s>|<sop>|<sep>|<seed:[a-z_:]+>|<SPECIAL_\d+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|gMASK|THINK|TOOL_CALLS|AVAILABLE_TOOLS)\]|\[\|[a-z]+\|\]|<[bB][oO][sS](?:_TOKEN)?>|<eos>"
)
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|eom|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<sep>",
    "<|end_of_text|>", "<|end_of_turn|>", "<|endofturn|>", "[|endofturn|]", "<｜end▁of▁sentence｜>", "<seed:eos>",
    "<|END_OF_TURN_TOKEN|>", "<SPECIAL_12>", "<|message_sep|>", "</s>", "<eos>", "<|endoftext|>",
)  # fmt: skip
# Between an answer and its end token some makers write others that close what they opened before it.
CLOSING = r"(?:\s|<\|END_RESPONSE\|>|<\|END_TEXT\|>|<\|/h\|>)*"


def tokenizer_for(entry: dict, base: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a template of the shared file, and with the control tokens that it writes as tokens."""
    bos, eos = entry["bos"] or "<s>", entry["eos"] or "</s>"
    controls = sorted({*CONTROL.findall(entry["template"]), bos, eos})
    copy = with_tokens(base, entry["template"], controls, bos_token=bos, eos_token=eos)
    copy.name_or_path = entry["family"]
    return copy


def token_starts(tokenizer, text: str) -> set[int]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return {start for start, _ in encoded["offset_mapping"]}


def expected_run(tokenizer, messages: list[dict], answer: int, text: str) -> tuple[str, bool]:
    """What of a text carries loss for one answer, and whether an end token closes it."""
    word = messages[answer]["content"]
    assert text.count(word) == 1, "a word of its own"
    place = text.index(word)
    prompt = tokenizer.apply_chat_template(messages[:answer], tokenize=False, add_generation_prompt=True)
    question = messages[answer - 1]["content"]
    supplied = prompt[prompt.index(question) + len(question) :]
    head = text[text.index(question) + len(question) : place]
    start = place - len(head) + len(supplied) if head.startswith(supplied) else None
    if start is None and supplied.startswith(head):
        start = place
    if start is None:
        alike = next(index for index in range(len(head)) if head[index] != supplied[index])
        both = token_starts(tokenizer, head) & token_starts(tokenizer, supplied)
        cuts = [match.end() for match in CONTROL.finditer(head[:alike])] + [cut for cut in both if cut <= alike]
        start = place - len(head) + (max(cuts) or len(head))
    tail = text[place + len(word) :]
    end = re.match(CLOSING + "(?:" + "|".join(map(re.escape, ENDS)) + ")", tail)
    return text[start : place + len(word) + (end.end() if end else 0)], bool(end)


def judge(tokenizer, messages: list[dict]) -> tuple[bool, bool]:
    """Whether loss falls where it should on a conversation of words of their own; whether every answer has its end."""
    [samples] = encode(ChatTemplate(tokenizer), [{"messages": messages}], LossRules())
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    is_exact, has_ends = True, True
    for sample in samples:
        runs = supervised_runs(tokenizer, sample.input_ids, sample.labels)
        last = max(number for number in answers if messages[number]["content"] in tokenizer.decode(sample.input_ids))
        seen = messages[: last + 1]
        ids = tokenizer.apply_chat_template(seen, return_dict=False)
        text = tokenizer.apply_chat_template(seen, tokenize=False)
        trained, answers = answers[: len(runs)], answers[len(runs) :]
        expected = [expected_run(tokenizer, seen, answer, text) for answer in trained]
        has_ends &= all(has_end for _, has_end in expected)
        is_exact &= sample.input_ids.tolist() == ids
        # A token that begins before what is expected, and reaches into it, carries loss with it.
        is_exact &= len(runs) == len(expected) and all(
            run.endswith(text_expected) and len(run) - len(text_expected) < 3
            for run, (text_expected, _) in zip(runs, expected, strict=True)
        )
    return is_exact and not answers, has_ends


def shared_templates() -> list[dict]:
    """What the file holds, as family, source, template, bos and eos; nothing where it is not here."""
    return json.loads(SHARED.read_text(encoding="utf-8")) if SHARED.is_file() else []
