"""Small chat templates that do what published ones do, and a tokenizer that has their control tokens."""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

BEFORE = "{% for m in messages %}"
PROMPT = "{% endfor %}{% if add_generation_prompt %}"
# Llama 3's kind: no line break after the end, a date in the system message.
HEADERS = (
    "{{ bos_token }}{{ '<|h|>system<|/h|>' + strftime_now('%d %b %Y') + '<|eot|>' }}"
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + '<|eot|>' }}}}"
    f"{PROMPT}{{{{ '<|h|>assistant<|/h|>\n\n' }}}}{{% endif %}}"
)
# Mistral's kind: the end of the text is the end of the turn, and questions have no end.
INST = (
    f"{{{{ bos_token }}}}{BEFORE}{{% if m['role'] == 'user' %}}{{{{ '[INST] ' + m['content'] + ' [/INST]' }}}}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# GLM's kind: nothing ends an answer; the next header begins.
ENDLESS = (
    "{{ '<|start|>' }}"
    f"{BEFORE}{{{{ '<|' + m['role'] + '|>\n' + m['content'] }}}}{PROMPT}{{{{ '<|assistant|>\n' }}}}{{% endif %}}"
)
# Qwen1.5's kind: turns end, but for the last.
ENDLESS_LAST = (
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '\n' + m['content'] }}}}{{% if not loop.last or add_generation_prompt %}}"
    f"{{{{ '<|eot|>\n' }}}}{{% endif %}}{PROMPT}{{{{ '<|h|>assistant\n' }}}}{{% endif %}}"
)
# Qwen3's kind: thinking only in answers that no question follows, an empty one where thinking is off.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '\n' }}}}{{% if m['role'] == 'assistant' %}}"
    "{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.get('reasoning_content', '') %}"
    "{% if '</think>' in m['content'] %}{% set thought = m['content'].split('</think>')[0].split('<think>')[-1] %}"
    "{% endif %}{% if loop.index0 > ns.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ answer }}{% else %}{{ m['content'] }}{% endif %}{{ '<|eot|>\n' }}"
    f"{PROMPT}{{{{ '<|h|>assistant\n' }}}}{{% if enable_thinking is defined and not enable_thinking %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# R1's kind: the prompt opens thinking that no trained answer has.
OPENED = INST + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
# gpt-oss's kind: another token ends the last answer than the earlier ones.
CHANNELS = (
    f"{BEFORE}{{{{ '<|h|>' + m['role'] }}}}{{% if m['role'] == 'assistant' %}}{{{{ '<|final|>' + m['content'] }}}}"
    "{{ '<|return|>' if loop.last else '<|eot|>' }}{% else %}{{ '<|/h|>' + m['content'] + '<|eot|>' }}{% endif %}"
    f"{PROMPT}{{{{ '<|h|>assistant' }}}}{{% endif %}}"
)
# Cohere's kind: two tokens end every message, and the second also begins the text before a question.
CLOSED_TWICE = (
    "{{ '<|start|>Be brief.<|/h|><|eot|>' }}"
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '<|final|>' + m['content'] + '<|/h|><|eot|>' }}}}"
    f"{PROMPT}{{{{ '<|h|>assistant<|final|>' }}}}{{% endif %}}"
)
# Kimi K3's kind: what closes an answer says its name, between tokens that close other things as well.
CLOSED_BY_NAME = (
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '<|final|>' }}}}{{% if m['role'] == 'assistant' %}}"
    "{{ '<|start|>think<|/h|>' + m.get('reasoning_content', '') + '<|/h|>think<|final|>' }}"
    "{{ m['content'] + '<|/h|>answer<|eot|>' }}"
    "{% else %}{{ m['content'] + '<|eot|>' }}{% endif %}"
    f"{PROMPT}{{{{ '<|h|>assistant<|final|><|start|>think<|/h|>' }}}}{{% endif %}}"
)
# GLM-Edge's kind: the next answer is asked for whether it is wanted or not, and nothing ends one.
ALWAYS_ASKS = f"{BEFORE}{{{{ '<|' + m['role'] + '|>\n' + m['content'] }}}}{{% endfor %}}{{{{ '<|assistant|>' }}}}"
TOOLS = (
    "{% if tools %}{{ '<|h|>system\n' + tools | tojson + '<|eot|>\n' }}{% endif %}"
    f"{BEFORE}{{{{ '<|h|>' + m['role'] + '\n' + m['content'] }}}}{{% for call in m.tool_calls or [] %}}"
    "{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}{{ '<|eot|>\n' }}"
    f"{PROMPT}{{{{ '<|h|>assistant\n' }}}}{{% endif %}}"
)
SWALLOWS = (
    f"{BEFORE}{{{{ m['role'] }}}}:{{% for part in m['content'] %}}{{{{ part['text'] }}}}{{% endfor %}}{{% endfor %}}"
)
CONTROLS = ["<|h|>", "<|/h|>", "<|eot|>", "<|return|>", "<|final|>", "<|start|>", "<|user|>", "<|assistant|>", "</s>"]


def with_controls(tokenizer, template: str | dict[str, str], kwargs: dict) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with a template, its control tokens and what the template is given."""
    named = {"bos_token": "<|endoftext|>", "eos_token": "</s>", "pad_token": "<|im_start|>"}
    copy = with_tokens(tokenizer, template, CONTROLS, **named)
    copy.init_kwargs["chat_template_kwargs"] = kwargs
    return copy


def with_tokens(tokenizer, template, controls: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with more special tokens, some of them named, and with a template."""
    copy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    copy.add_special_tokens({**named, "additional_special_tokens": controls})
    copy.chat_template = template
    return copy
