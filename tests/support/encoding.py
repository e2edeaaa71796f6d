"""Conversations of every kind, chat templates, and the slow way to encode one under the other."""

from transformers import PreTrainedTokenizerFast

from sft.data.encoding import LossRules, encode
from sft.data.labels import IGNORED
from sft.models.chat_template import ChatTemplate
from tests.support.conversations import SMOLLM2_TEMPLATE

_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
_MARKED_TURN = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
)
CHATML = (
    f"{{% for message in messages %}}{_TURN}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STOCK = {
    "smollm2": SMOLLM2_TEMPLATE,
    "internlm2": "{{ bos_token }}" + CHATML,
    "chatml": CHATML,
    "qwen2": SMOLLM2_TEMPLATE.replace(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "You are a helpful assistant."
    ),
}
ANSWERS = LossRules()
# The answer and its end bear loss, marked by hand.
MARKED = {family: template.replace(_TURN, _MARKED_TURN) for family, template in STOCK.items()}


def turns(*texts: str, system: str | None = None) -> list[dict]:
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


VARIED = [
    turns("Who are you?", "I am 黄大力."),
    turns("你是谁？", "  我是黄大力。\n\n", "再说一遍", "黄大力！"),
    turns("🙂👩‍👩‍👧 é", "🇨🇳🙂", system=""),
    turns("q", "a", "and?", "yes", system="Be brief. 简短。"),
    turns("<|im_end|>", "I end with <|im_end|> and <|im_start|>assistant\n", system="▁ \u200b"),
    turns(*["a b  c\t1234567890 龘\r\n"] * 12),
    turns("long", "one two three 四 " * 300),
    turns("?", " ."),
]
# The end of the turn bears no loss here.
ANSWERS_ALONE = (
    "{% for message in messages %}{% if message['content'] == 'refuse' %}{{ raise_exception('no such words') }}"
    "{% endif %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
)


def samples_of(tokenizer, conversations: list[list[dict]], rules: LossRules = ANSWERS) -> list[tuple]:
    """(ids, labels) of every sample of the conversations."""
    rows = [{"messages": messages} for messages in conversations]
    encoded = encode(ChatTemplate(tokenizer), rows, rules)
    return [(sample.input_ids.tolist(), sample.labels.tolist()) for row in encoded for sample in row]


def supervised_runs(tokenizer, ids: list[int], labels: list[int]) -> list[str]:
    """The runs of tokens that bear loss, as text."""
    runs: list[list[int]] = []
    previous = IGNORED
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            assert label == token
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(token)
        previous = label
    return [tokenizer.decode(run) for run in runs]


def encode_one_by_one(tokenizer, template: str, conversations: list[list[dict]]) -> list[tuple[list[int], list[int]]]:
    """The slow way: Transformers' own mask of one conversation after the other, under a marked template."""
    samples = []
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        samples.append((ids, [token if is_on else IGNORED for token, is_on in zip(ids, mask, strict=True)]))
    return samples


def with_template(tokenizer, template: str) -> PreTrainedTokenizerFast:
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    copy.chat_template = template
    return copy
